"""Functions that run in workers for the tests of imap."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, NoReturn

import work
from chunk_work import busy_for


class Unpicklable:
    """Pickles nowhere."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("not me")


def _explode() -> NoReturn:
    raise RuntimeError("does not unpickle")


class Explosive:
    """Pickles, and raises when it is unpickled in another process."""

    def __reduce__(self) -> Any:
        return _explode, ()


def misbehave(number: int) -> Any:
    """Dies, raises, or returns what cannot travel, by number; else returns the number."""
    busy_for(0.002)  # so that the outcomes before leave the worker
    match number:
        case 3:
            os.kill(os.getpid(), signal.SIGKILL)
        case 5:
            raise KeyError(number)
        case 7:
            return threading.Lock()
        case 9:
            return Explosive()
    return number


def stay_if_zero(item: tuple[int, str, str]) -> int:
    """The first item rings and waits at the gate."""
    number, bell, gate = item
    if number == 0:
        work.ring_and_wait(bell, gate)
    return number


def slow_if_three(number: int) -> int:
    """One item takes for ever."""
    busy_for(0.002)
    if number == 3:
        threading.Event().wait()
    return number


def type_name(value: object) -> str:
    return type(value).__name__
