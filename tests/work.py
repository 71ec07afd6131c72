"""Jobs that do what they should, and the handshakes by which jobs and tests know of each other.

They live in a module of their own because workers that are started afresh import them by name.
"""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import os
import random
import sys
import time
from typing import Any, NoReturn

# -- handshakes --------------------------------------------------------------------------------


def ring(bell: str, text: object = None) -> None:
    """Tells the test that something has happened: a line, the own pid if none is given."""
    line = os.getpid() if text is None else text
    descriptor = os.open(bell, os.O_WRONLY)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def wait_at(gate: str) -> None:
    descriptor = os.open(gate, os.O_RDONLY)
    os.read(descriptor, 1)
    os.close(descriptor)


def ring_and_wait(bell: str, gate: str, text: object = None) -> int:
    ring(bell, text)
    wait_at(gate)
    return os.getpid()


def echo_after(item: tuple[str, str, int]) -> int:
    """Rings, waits at the gate, and returns the number."""
    bell, gate, number = item
    ring_and_wait(bell, gate)
    return number


def note(path: str, text: object) -> None:
    """Appends a line in one write, so that it is there wholly or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def count_lines(path: str) -> int:
    if not os.path.exists(path):
        return 0
    with open(path) as file:
        return sum(1 for _ in file)


# -- calls -------------------------------------------------------------------------------------


def square(number: int) -> int:
    return number * number


def square_or_ring(item: object) -> int:
    """Squares a number; fails with a word, or rings the bell behind a path."""
    if isinstance(item, str) and os.path.exists(item):
        ring(item)
    return item * item  # type: ignore[operator]


def add(left: int, right: int = 0) -> int:
    return left + right


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def noted(path: str, number: int) -> int:
    note(path, number)
    return number


def noted_with(path: str, number: int, payload: bytes) -> int:
    """The same, with something that takes a while to receive."""
    assert payload
    return noted(path, number)


def noted_at_gate(path: str, number: int, bell: str, gate: str) -> int:
    ring_and_wait(bell, gate)
    return noted(path, number)


def noted_slowly(path: str, number: int, seconds: float) -> int:
    note(path, number)
    time.sleep(seconds)
    return number


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def busy_for(seconds: float) -> str:
    """Python code all the time, so that an exception from a signal would hit it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "undisturbed"


def log_something() -> str:
    logging.getLogger("faults").warning("a worker can log")
    return "logged"


def terminate_own_child() -> int | None:
    """The exit code of a forked child that was asked to terminate; None if it did not."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
    child.start()
    child.terminate()
    child.join(5)
    exitcode = child.exitcode
    child.kill()
    return exitcode


def draw(bell: str, gate: str) -> tuple[float, float]:
    import numpy  # here: most jobs do without, and it takes its time

    ring_and_wait(bell, gate)
    return random.random(), float(numpy.random.random())


def read_stdin() -> str:
    return sys.stdin.read() if sys.stdin else ""


def use_pool(kind: str) -> list[int]:
    """The squares of 0, 1 and 2, by way of another pool or process."""
    if kind == "poolwatch":
        import poolwatch

        with poolwatch.Pool(1) as pool:
            return pool.map(square, range(3))
    if kind == "multiprocessing":
        with multiprocessing.get_context("fork").Pool(1) as pool:
            return pool.map(square, range(3))
    if kind == "concurrent.futures":
        with concurrent.futures.ProcessPoolExecutor(1) as executor:
            return list(executor.map(square, range(3)))
    process = multiprocessing.get_context("fork").Process(target=square, args=(2,))
    process.start()
    process.join()
    return [0, 1, 4] if process.exitcode == 0 else []


# -- data --------------------------------------------------------------------------------------


def size_of(payload: Any) -> int:
    return len(payload)


def echo(payload: Any) -> Any:
    return payload


def total(numbers: Any) -> int:
    return int(sum(numbers))


def add_one_in_place(array: Any) -> Any:
    array += 1
    return array


def call(function: Any) -> Any:
    return function()


def big_after(size: int, seconds: float) -> bytes:
    time.sleep(seconds)
    return bytes(size)


# -- maps and initializers ---------------------------------------------------------------------


def play(role: tuple[str, ...]) -> None:
    """An item of a map: fine, failing at once, or failing when it is let go."""
    if role[0] == "early":
        ring(role[1], "early fails")
        raise ValueError("early")
    if role[0] == "late":
        ring_and_wait(role[1], role[2], "late waits")
        raise ValueError("late")


_kept: list[Any] = []


def note_pid(path: str) -> None:
    note(path, os.getpid())


def keep(*things: Any) -> None:
    """An initializer that keeps what it is given, for later jobs."""
    _kept[:] = things


def put_under_lock(item: object) -> object:
    queue, lock, _, function = _kept
    with lock:
        queue.put(item)
    return function()


_kept: list[int] = []


def keep_affinity() -> None:
    """An initializer that notes where it runs."""
    _kept[:] = sorted(os.sched_getaffinity(0))


def kept_affinity() -> int:
    (processor,) = _kept
    return processor
