"""Jobs whose deaths have a story to tell."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from typing import Any, NoReturn

import faults
from work import note, ring, wait_at


def parse(page: str, depth: int = 2) -> NoReturn:
    """Three calls deep, the last of which is not Python's."""
    read(page, depth)


def read(page: str, depth: int) -> NoReturn:
    decode(page)


def decode(page: str) -> NoReturn:
    os.abort()  # the line that must be named


class NoRepr:
    """What it is sent as can be shown; it itself cannot."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        with open(self.path, "a") as file:
            file.write("asked\n")
        raise RuntimeError("no repr")


def abort_with(*things: Any, **named: Any) -> NoReturn:
    os.abort()


def abort_if(number: int) -> int:
    if number == 3:
        os.abort()
    return number


def complain_and_abort(text: str) -> NoReturn:
    os.write(2, text.encode() + b"\n")
    os.abort()


def print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def leave_a_child_with_stderr() -> int:
    """A child that holds standard error and outlives the worker that leaves in peace."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid


def hold_memory(megabytes: int, bell: str, gate: str) -> int:
    block = bytearray(b"x" * (megabytes * 2**20))
    ring(bell)
    wait_at(gate)
    return len(block)


def hold_memory_in_child(megabytes: int) -> NoReturn:
    code = (
        "open('/proc/self/oom_score_adj', 'w').write('1000');"  # rather this than the worker
        f"b = bytearray(b'x' * ({megabytes} * 2**20)); import time; time.sleep(60)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    raise AssertionError("the child has ended")


def sleep_in_c(path: str) -> int:
    """A call in C that any signal ends early, with the interpreter's lock held."""
    left = int(ctypes.PyDLL(None).sleep(60))
    note(path, "ran on")
    return left


def fork_a_child_that_aborts() -> int:
    """In another function than the next job's, so that the two can be told apart."""
    pid = os.fork()
    if pid == 0:
        os.abort()
    return os.waitpid(pid, 0)[1]


def stubborn(bell: str) -> NoReturn:
    """Goes on when it is told to end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    faults.hang(bell)


class UnpleasantTag:
    def __repr__(self) -> str:
        raise SystemExit(7)


def grow_for_ever() -> NoReturn:
    blocks = []
    while True:
        blocks.append(bytearray(b"x" * 2**20))


def grow_if(number: int) -> int:
    if number == 2:
        grow_for_ever()
    return number


def enter_group(path: str) -> None:
    """An initializer: the worker moves into a control group."""
    with open(os.path.join(path, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))


def limit_address_space(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))


def hold_the_interpreter(bell: str) -> NoReturn:
    """In a loop in C, with the interpreter's lock held, deaf to all but faulthandler's signal."""
    ring(bell)
    sum(range(10**13))
    raise AssertionError("that cannot have been all")


def exit_from_outside_python() -> NoReturn:
    ctypes.CDLL(None)._exit(3)
    raise AssertionError("still here")


def die_of(signum: int) -> NoReturn:
    signal.signal(signum, signal.SIG_DFL)  # whoever runs the tests may have it ignored
    faults.kill_self(signum)
    raise AssertionError("still here")


def use_up_processor_time() -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    while True:
        pass
