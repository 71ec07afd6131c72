"""The door to the hub's thread.

Celery's event loop has one thread, and its data are guarded by that alone: Celery replaces its
locks by dummies there. So whatever the pool has to say is put into a mailbox, and a pipe that the
hub reads tells it to look. (``Hub.call_soon`` of older kombu neither wakes the hub nor may be
called by other threads.)
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Calls that other threads have left for the hub's thread, in order."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._rung = False
        self._closed = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there is something."""
        return self._read

    def post(self, call: Callable[[], object]) -> None:
        """Have something called in the hub's thread. Any thread, whatever locks it holds."""
        self._calls.append(call)
        self._ring()

    def _ring(self) -> None:
        if not self._rung and not self._closed:
            self._rung = True
            try:
                os.write(self._write, b"r")
            except BlockingIOError:
                pass  # it is full of rings already

    def empty(self) -> None:
        """Call what is there; what comes meanwhile has its turn after the hub's other work.

        In the hub's thread. A call may raise, to end the loop; those behind it are not lost.
        """
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            pass
        self._call()

    def fill(self, source: Callable[[], object]) -> None:
        """Call what posts here, then what it has posted, without a ring. In the hub's thread."""
        self._rung = True
        try:
            source()
        except BaseException:
            self._rung = False
            self._ring()
            raise
        self._call()

    def _call(self) -> None:
        self._rung = False  # what is posted from here on rings again
        try:
            for _ in range(len(self._calls)):
                # A signal handler that has interrupted one call may have emptied the box.
                if not self._calls:
                    break
                self._calls.popleft()()
        finally:
            if self._calls:
                self._ring()

    def wait(self, seconds: float) -> None:
        """Sleep until there is something, no longer than so many seconds."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)

    def close(self) -> None:
        """Close the pipe; nobody may post any more. May be called more than once."""
        if not self._closed:
            self._closed = True
            os.close(self._read)
            os.close(self._write)
