"""Functions that run in workers for the tests of maps' chunks."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from work import note


def die_at(item: tuple[int, int, str]) -> int:
    """Notes every item; the guilty one kills the worker once what was before it is delivered."""
    number, guilty, path = item
    note(path, number)
    if number == guilty:
        os.kill(os.getpid(), signal.SIGKILL)
    busy_for(0.002)
    return number


def busy_for(seconds: float) -> None:
    """Uses so much time, so that the outcomes before leave the worker."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def slow_at(item: tuple[int, int]) -> int:
    """Takes 0.05 s for every item and for ever for one."""
    number, slow = item
    if number == slow:
        threading.Event().wait()
    busy_for(0.05)
    return number


def refuse_at(item: tuple[int, int]) -> Any:
    """Raises for one item, returns what cannot be pickled for the next."""
    number, guilty = item
    if number == guilty:
        raise KeyError(number)
    return threading.Lock() if number == guilty + 1 else number
