"""A thing that happens once, and threads that wait for it.

Not ``threading.Event``: a signal handler that raises in the middle of its ``wait`` or ``set``
(Ctrl-C) leaves its lock taken for ever, and stops whoever sets it.
"""

from __future__ import annotations

import os
import threading
from _thread import allocate_lock

from poolwatch.job import Waiter, release_all
from poolwatch.sleep import acquire

_lock = threading.RLock()  # of all latches; held for a list operation only


class Latch:
    """Is set once, and may be set again."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[Waiter] = []

    def is_set(self) -> bool:
        """Return True once it has been set."""
        return self._is_set

    def set(self) -> None:
        """Let everybody go who waits."""
        self._is_set = True
        # Whoever is added from now on sees that after having been added.
        with _lock:
            release_all(self._waiters)

    def add_waiter(self, waiter: Waiter) -> None:
        """Have something released when it is set, at once if it is; see ``Job.add_waiter``."""
        with _lock:
            self._waiters.append(waiter)
        if self._is_set:
            self.set()

    def remove_waiter(self, waiter: Waiter) -> None:
        """Take back :meth:`add_waiter`; nothing happens when it has been released."""
        with _lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, no longer than so many seconds; return whether it is."""
        if self._is_set:
            return True
        waiter = allocate_lock()
        waiter.acquire()
        with _lock:
            self._waiters.append(waiter)
        if self._is_set:
            return True
        if acquire(waiter, timeout):
            return True
        with _lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return self._is_set


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it at the moment of the fork


os.register_at_fork(after_in_child=_new_lock)
