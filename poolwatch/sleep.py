"""Sleeping on a lock in a thread whose signal handlers must be heard.

A signal that comes between the interpreter's last look for signals and the system call that sleeps,
or that another thread of the process receives, does not end that sleep: its handler runs when the
sleep is over, and Ctrl-C seems to have no effect. Handlers run in the main thread only. So that
thread looks around now and then; soon at first, because signals often come with the beginning of a
job.
"""

from __future__ import annotations

import threading
from _thread import LockType, get_ident
from time import monotonic

_FIRST = 0.05  # seconds until the first look around; doubled each time
_LONGEST = 1.0


def acquire(lock: LockType, timeout: float | None = None) -> bool:
    """Acquire a lock; a signal handler is heard within a second, whenever its signal comes.

    Args:
        lock: it may be released by any thread.
        timeout: seconds to wait at most; None for no bound.

    Returns:
        Whether it was acquired.
    """
    if get_ident() != threading.main_thread().ident:
        return lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
    end = None if timeout is None else monotonic() + timeout
    pause = _FIRST
    while True:
        rest = None if end is None else max(0.0, end - monotonic())
        if rest is not None and rest <= pause:
            return lock.acquire(timeout=rest)
        if lock.acquire(timeout=pause):
            return True
        pause = min(2 * pause, _LONGEST)
