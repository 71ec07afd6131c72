"""Jobs for the tests of the number of workers."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import NoReturn


def die_once(path: str) -> str:
    """Kills its worker the first time that it runs."""
    if not Path(path).exists():
        Path(path).touch()
        die()
    return "survived"


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def processors() -> tuple[int, list[int]]:
    """The own pid, and where this process may run."""
    return os.getpid(), sorted(os.sched_getaffinity(0))


def processors_of_a_child() -> list[int]:
    """Where a process that the job forks may run."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, repr(sorted(os.sched_getaffinity(0))).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    text = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(writing)
    return [int(number) for number in text.strip("[]").split(",")]


_at_import: list[list[int]] = []


def _note_affinity() -> None:
    _at_import.append(sorted(os.sched_getaffinity(0)))


_thread = threading.Thread(target=_note_affinity)
_thread.start()
_thread.join()


def processors_at_import() -> list[int]:
    """Where a thread could run that was started while this module was imported."""
    return _at_import[0]


def does_nothing() -> None:
    """An initializer that does nothing; importing its module is what matters."""
