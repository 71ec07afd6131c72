"""The supervisor's event loop: it sleeps until a stream, a deadline or another thread wakes it.

The heart sees only the methods of :class:`EventLoop`.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from poolwatch.timers import Timer, TimerHeap

_LONGEST_SLEEP = 86_400.0  # seconds; the kernel counts milliseconds in 31 bits


class Source(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""


class EventLoop(Protocol):
    """What the heart needs of a loop; tests put one with a fake clock in its place."""

    def time(self) -> float:
        """Return monotonic seconds. Any thread."""

    def watch(self, source: Source, on_readable: Callable[[], None]) -> None:
        """Call back whenever the source has something to read."""

    def watch_writable(self, source: Source, on_writable: Callable[[], bool]) -> None:
        """Call back whenever the source can be written to, until the callback returns True."""

    def unwatch(self, source: Source) -> None:
        """Forget a source; it may be one that is not watched."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call back at a time. Any thread."""

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call back after so many seconds. Any thread."""

    def cancel(self, timer: Timer) -> None:
        """Call a deadline off. Any thread."""

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back in the loop's thread as soon as possible. Any thread."""


class Loop:
    """Descriptors, deadlines and wake-ups; all methods but the ones marked run in its thread."""

    def __init__(self) -> None:
        self._epoll = hasattr(select, "epoll")
        self._poller = select.epoll() if self._epoll else select.poll()
        self._read_events = select.EPOLLIN if self._epoll else select.POLLIN
        self._write_events = select.EPOLLOUT if self._epoll else select.POLLOUT
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], bool]] = {}
        self._timers = TimerHeap()
        self._lock = threading.RLock()  # for timers, which other threads add
        self._soon: deque[Callable[[], object]] = deque()
        self._sleeping_until: float | None = 0.0
        self._awake = True
        self._closed = False
        self._wake_lock = threading.RLock()  # between waking and closing
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller.register(self._wake_read, self._read_events)

    def time(self) -> float:
        """Return monotonic seconds. Any thread."""
        return time.monotonic()

    def watch(self, source: Source, on_readable: Callable[[], None]) -> None:
        """Call back whenever the source has something to read."""
        fd = source.fileno()
        self._readers[fd] = on_readable
        self._poller.register(fd, self._read_events)

    def watch_writable(self, source: Source, on_writable: Callable[[], bool]) -> None:
        """Call back whenever the source can be written to, until the callback returns True."""
        fd = source.fileno()
        if fd in self._readers:
            self._writers[fd] = on_writable
            self._poller.modify(fd, self._read_events | self._write_events)

    def unwatch(self, source: Source) -> None:
        """Forget a source; it may be one that is not watched."""
        fd = source.fileno()
        if self._readers.pop(fd, None) is not None:
            self._writers.pop(fd, None)
            self._poller.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call back at a time. Any thread."""
        with self._lock:
            timer = self._timers.add(when, callback)
            sooner = self._sleeping_until is None or when < self._sleeping_until
        if sooner:
            self.wake()
        return timer

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call back after so many seconds. Any thread."""
        return self.call_at(self.time() + seconds, callback)

    def cancel(self, timer: Timer) -> None:
        """Call a deadline off. Any thread."""
        with self._lock:
            timer.cancel()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back in the loop's thread as soon as possible. Any thread."""
        self._soon.append(callback)
        self.wake()

    def wake(self) -> None:
        """Make the loop look around, unless it is closed. Any thread."""
        if not self._awake:
            with self._wake_lock:
                # The pipe's number may be somebody else's by now.
                if not self._closed:
                    self._awake = True
                    try:
                        os.write(self._wake_write, b"w")
                    except BlockingIOError:
                        pass  # it is full of wake-ups already

    def run_once(self) -> None:
        """Sleep until something happens, and deal with it."""
        for fd, events in self._sleep():
            if fd == self._wake_read:
                self._drain_wakeups()
                continue
            if events & self._write_events and fd in self._writers:
                self._on_writable(fd)
            reader = self._readers.get(fd)
            if reader is not None and events & ~self._write_events:
                reader()
        while self._soon:
            self._soon.popleft()()
        with self._lock:
            due = self._timers.take_due(self.time())
        for callback in due:
            callback()

    def _sleep(self) -> list[tuple[int, int]]:
        # From here on whoever adds work writes into the pipe; what was added before is seen below.
        self._awake = False
        with self._lock:
            deadline = self._sleeping_until = self._timers.next_deadline()
        if self._soon:
            self._awake = True
            timeout = 0.0
        elif deadline is None:
            timeout = -1.0
        else:
            timeout = min(max(0.0, deadline - self.time()), _LONGEST_SLEEP)
        ready: list[tuple[int, int]]
        if self._epoll or timeout < 0:
            ready = self._poller.poll(timeout)
        else:
            ready = self._poller.poll(timeout * 1000)
        self._awake = True
        return ready

    def _on_writable(self, fd: int) -> None:
        if self._writers[fd]():
            self._writers.pop(fd, None)
            if fd in self._readers:
                self._poller.modify(fd, self._read_events)

    def _drain_wakeups(self) -> None:
        try:
            while os.read(self._wake_read, 4096):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close the loop's descriptors."""
        with self._wake_lock:
            self._closed = True
        self.abandon()

    def abandon(self) -> None:
        """Close them in a forked child, where the lock may be held for ever."""
        self._closed = True
        if isinstance(self._poller, select.epoll):
            self._poller.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
