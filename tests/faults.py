"""Jobs, payloads and initializers that misbehave.

They live in a module of their own because workers that are started afresh import them by name.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

from chunk_work import busy_for
from work import count_lines, note, ring, wait_at

from poolwatch import SoftTimeLimitExceeded

# -- calls as items ---------------------------------------------------------------------------


def perform(call: tuple[Any, ...]) -> Any:
    """Makes a call; takes so long that in a chunk the outcomes before have left."""
    return perform_these(*call)


def perform_these(func: Any, *args: Any) -> Any:
    value = func(*args)
    busy_for(0.002)
    return value


# -- jobs that die ----------------------------------------------------------------------------


def kill_self(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(3600)


def exit_at_once(code: int) -> NoReturn:
    os._exit(code)


DEATHS = {
    "SIGKILL": (kill_self, int(signal.SIGKILL), -9, "signal 9 (SIGKILL)"),
    "SIGABRT": (kill_self, int(signal.SIGABRT), -6, "signal 6 (SIGABRT)"),
    "SIGSEGV": (kill_self, int(signal.SIGSEGV), -11, "signal 11 (SIGSEGV)"),
    "exit 0": (exit_at_once, 0, 0, "exitcode 0"),
    "exit 3": (exit_at_once, 3, 3, "exitcode 3"),
}
"""Ways to die: the function, its argument, the exit code, and how an error puts that."""


def note_and_kill_self(path: str) -> None:
    note(path, os.getpid())
    kill_self(signal.SIGKILL)


def sys_exit(code: int) -> NoReturn:
    sys.exit(code)


def die_if(number: int, guilty: int, path: str) -> int:
    """Notes the number; kills the worker if it is the guilty one."""
    note(path, number)
    if number == guilty:
        kill_self(signal.SIGKILL)
    return number


def die_if_of(item: tuple[int, int, str]) -> int:
    return die_if(*item)


def die_until(path: str, times: int) -> int:
    """Kills the worker so many times, then returns how often it was begun in all."""
    note(path, os.getpid())
    begun = count_lines(path)
    if begun <= times:
        kill_self(signal.SIGKILL)
    return begun


def ignore_sigterm() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return os.getpid()


# -- jobs that do not end ---------------------------------------------------------------------


def hang(bell: str) -> NoReturn:
    ring(bell)
    while True:
        time.sleep(3600)


def hang_deaf(bell: str) -> NoReturn:
    """Hangs with every signal ignored that can be."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hang(bell)


def hang_in_regex(bell: str) -> object:
    """Hangs inside C code that never lets go of the interpreter lock."""
    ring(bell)
    return re.match(r"(a+)+$", "a" * 64 + "b")


def hang_in_sum(bell: str) -> int:
    """The same, in C code that does not look for signals either."""
    ring(bell)
    return sum(range(10**12))


def stop_self(bell: str) -> None:
    ring(bell)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def swallow_exit(bell: str) -> str:
    """Returns in spite of the SystemExit that ends it."""
    try:
        hang(bell)
    except SystemExit:
        return "survived"


def catch_soft(bell: str) -> str:
    try:
        hang(bell)
    except SoftTimeLimitExceeded:
        return "cleaned up"


def count_soft(bell: str, seconds: float) -> str:
    """Cleans up for some seconds after its soft limit; says how often it was disturbed."""
    disturbed = 0
    try:
        hang(bell)
    except SoftTimeLimitExceeded:
        disturbed += 1
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except SoftTimeLimitExceeded:
            disturbed += 1
    return f"disturbed {disturbed}"


def _spin(end: float) -> None:
    while time.monotonic() < end:
        pass


def count_soft_passes(seconds: float) -> int:
    """How often the soft limit passes while a job runs for so many seconds.

    The loop has a function of its own: from Python 3.12 on, jumps back of one in a ``try`` may be
    outside of it.
    """
    passed, end = 0, time.monotonic() + seconds
    while True:
        try:
            _spin(end)
            return passed
        except SoftTimeLimitExceeded:
            passed += 1


def swallow_soft(bell: str) -> NoReturn:
    """Goes on in spite of its soft limit."""
    ring(bell)
    while True:
        try:
            time.sleep(3600)
        except SoftTimeLimitExceeded:
            pass


# -- jobs with processes of their own ---------------------------------------------------------


def sleeping_child(bell: str, **options: Any) -> subprocess.Popen:
    child = subprocess.Popen(["sleep", "3600"], **options)
    ring(bell, child.pid)
    return child


def hang_with_child(bell: str) -> None:
    sleeping_child(bell).wait()


def hang_with_two_children(bell: str) -> None:
    """Two children, one of them in a session of its own."""
    sleeping_child(bell)
    sleeping_child(bell, start_new_session=True).wait()


def fork_then_die(bell: str) -> None:
    """Leaves a forked grandchild, a started one and one in a session of its own, and dies."""
    read, write = os.pipe()
    if not os.fork():
        ring(bell)
        os.write(write, b".")
        time.sleep(3600)
    os.read(read, 1)  # it must have rung before it is killed with the rest
    sleeping_child(bell)
    sleeping_child(bell, start_new_session=True)
    kill_self(signal.SIGKILL)


def fork_and_return() -> tuple[int, int]:
    """Returns twice: in the worker, and in a fork of it. Both claim to be the worker."""
    worker = os.getpid()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return os.getpid(), worker


# -- jobs that tamper with their worker ------------------------------------------------------


def close_every_descriptor() -> None:
    os.closerange(3, 1000)


def close_every_descriptor_and_hang() -> NoReturn:
    os.closerange(3, 1000)
    while True:
        time.sleep(3600)


def scribble_on_descriptors() -> None:
    """Writes rubbish into the worker's stream and the memory files that it shares with the pool."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "/memfd:poolwatch")):
                os.set_blocking(int(name), False)
                os.write(int(name), b"\xff" * 4096)
        except OSError:
            pass  # it was the descriptor of the listing, or takes no more


def kill_parent() -> NoReturn:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)
    raise AssertionError("the worker outlives its zygote by an hour")


def wait_with_signals_blocked(bell: str, gate: str) -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ring(bell)
    wait_at(gate)
    return "late"


def hang_with_signals_blocked(bell: str) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    hang_deaf(bell)


def leave_a_thread_with_work(gate: str, path: str) -> int:
    """The thread notes something once it is let go."""

    def finish() -> None:
        wait_at(gate)
        note(path, "finished")

    threading.Thread(target=finish).start()
    return os.getpid()


def leave_a_thread() -> int:
    threading.Thread(target=time.sleep, args=(3600,)).start()
    return os.getpid()


def raise_it(error: type[BaseException], text: str) -> NoReturn:
    raise error(text)


def deeply_nested() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


# -- payloads that misbehave ------------------------------------------------------------------


class PicklesOnlyError(Exception):
    """An exception that can be pickled but not unpickled: its arguments do not match."""

    def __init__(self, left: object, right: object) -> None:
        super().__init__(f"{left} and {right}")


def raise_pickles_only() -> NoReturn:
    raise PicklesOnlyError("this", "that")


def refuse_to_load(text: str) -> NoReturn:
    raise ValueError(text)


class RefusesToLoad:
    """Can be pickled; raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return refuse_to_load, ("this payload refuses to load",)


def return_refuses_to_load() -> RefusesToLoad:
    return RefusesToLoad()


class RefusesToPickle:
    """Raises when it is pickled."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("this payload refuses to be pickled")


def return_refuses_to_pickle() -> RefusesToPickle:
    return RefusesToPickle()


class OwnError(BaseException):
    """No ``Exception``."""


class LeavesWhilePickled:
    """Raises what is no ``Exception`` when it is pickled."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error("from within __reduce__")


class LeavesWhilePickledError(Exception):
    def __reduce__(self) -> NoReturn:
        sys.exit(3)


def raise_leaves_while_pickled() -> NoReturn:
    raise LeavesWhilePickledError("no")


def leave_at_three(item: tuple[int, type[BaseException]]) -> object:
    number, error = item
    return LeavesWhilePickled(error) if number == 3 else number


def refuse_item(number: int) -> object:
    return RefusesToPickle() if number == 3 else number


class RefusesToPickleError(Exception):
    def __reduce__(self) -> NoReturn:
        raise TypeError("this error refuses to be pickled")


def raise_refuses_to_pickle() -> NoReturn:
    raise RefusesToPickleError("no")


class HangsWhileLoading:
    """Rings and hangs when it is unpickled, so that it is the worker that can be killed there."""

    def __init__(self, bell: str) -> None:
        self.bell = bell

    def __reduce__(self) -> tuple[Any, ...]:
        return hang, (self.bell,)


class DiesWhileLoading:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return kill_self, (int(signal.SIGKILL),)


class HangsWhilePickled:
    """Rings and hangs when it is pickled."""

    def __init__(self, bell: str) -> None:
        self.bell = bell

    def __reduce__(self) -> NoReturn:
        hang(self.bell)


def return_hangs_while_pickled(bell: str) -> HangsWhilePickled:
    return HangsWhilePickled(bell)


class BigResult:
    """Rings when the worker begins to pickle it, then is so many bytes."""

    def __init__(self, bell: str, size: int) -> None:
        self.bell = bell
        self.size = size

    def __reduce__(self) -> tuple[Any, ...]:
        ring(self.bell)
        return bytes, (bytes(self.size),)


def return_big(bell: str, size: int) -> BigResult:
    return BigResult(bell, size)


class DiesWhilePickled:
    def __reduce__(self) -> NoReturn:
        kill_self(signal.SIGKILL)
        raise AssertionError("a killed process goes on")


def return_dies_while_pickled(size: int) -> tuple[bytes, DiesWhilePickled]:
    return bytes(size), DiesWhilePickled()


# -- initializers -----------------------------------------------------------------------------


def initializer_raises(path: str) -> NoReturn:
    note(path, os.getpid())
    raise LookupError("no such configuration")


def initializer_dies(path: str) -> None:
    note_and_kill_self(path)


def initializer_hangs(path: str) -> None:
    note(path, os.getpid())
    time.sleep(3600)


def initializer_waits(bell: str, gate: str) -> None:
    ring(bell)
    wait_at(gate)


def initializer_hangs_later(path: str) -> None:
    """The first one comes up, all others hang."""
    note(path, os.getpid())
    if count_lines(path) > 1:
        time.sleep(3600)


def initializer_fails_and_leaves_a_thread(path: str) -> NoReturn:
    """The process does not end by itself."""
    leave_a_thread()
    initializer_raises(path)


def initializer_raises_at_first(path: str, times: int) -> None:
    note(path, os.getpid())
    if count_lines(path) <= times:
        raise LookupError("not yet")
