"""What workers write to standard error: passed on, and the last of it kept for the postmortem.

With ``capture_stderr`` a worker's descriptor 2 is a pipe that the supervisor reads: C libraries
that abort write there why, and nobody could tell afterwards whose line it was. What comes is
written to the parent's own standard error by a thread of its own, which may block; the supervisor
never does. What that thread cannot keep up with is dropped and counted.

What a worker has started may hold its end of the pipe when it has left, so a pipe is read until
its end, or the pool's.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable

from poolwatch.delivery import Delivery
from poolwatch.loop import EventLoop

_AT_ONCE = 64 * 1024  # bytes, the size of a pipe
_KEPT = 16 * 1024  # bytes of which the postmortem is told
_MOST_WAITING = 4 * 1024 * 1024  # bytes that wait to be written
_STDERR = 2


class Forwarding:
    """Writes to the parent's standard error, on a thread that is made when it is needed.

    Attributes:
        dropped: bytes that were not written, because too many waited.
    """

    def __init__(self, name: str, substitute: Delivery) -> None:
        self._delivery = Delivery(f"{name}-stderr", substitute)
        # Where it was closed when the program began, that number is something else's by now.
        self._is_open = sys.__stderr__ is not None
        self._lock = threading.Lock()  # for what follows
        self._waiting: list[bytes] = []
        self._bytes = 0
        self.dropped = 0

    def write(self, data: bytes) -> None:
        """Have something written; does not wait. In the supervisor's thread."""
        with self._lock:
            if not self._is_open or self._bytes > _MOST_WAITING:
                self.dropped += len(data)
                return
            is_first = not self._waiting
            self._waiting.append(data)
            self._bytes += len(data)
        if is_first:
            self._delivery.put(self._write_waiting)

    def _write_waiting(self) -> None:
        with self._lock:
            data, self._waiting, self._bytes = b"".join(self._waiting), [], 0
        _write_all(data)

    def stop(self, seconds: float) -> None:
        """Write what waits, no longer than so many seconds, and end."""
        self._delivery.stop()
        self._delivery.join(seconds)


def _write_all(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(_STDERR, rest) :]
        except OSError:
            return  # closed, or its reader is gone: nobody to show it to


class CapturedStderr:
    """One worker's standard error, read in the supervisor's thread.

    Args:
        fd: our end of the pipe, which this object owns.
        loop: calls back when there is something to read.
        forward: is handed what comes.
        on_end: called when the pipe has been closed.
    """

    def __init__(
        self,
        fd: int,
        loop: EventLoop,
        forward: Callable[[bytes], None],
        on_end: Callable[[CapturedStderr], None],
    ) -> None:
        self._fd = fd
        self._loop = loop
        self._forward = forward
        self._on_end = on_end
        self._tail: deque[tuple[float, bytes]] = deque()  # pieces, each with when it came
        self._line = b""  # that has not come to its end
        loop.watch(self, self.read)

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._fd

    def read(self) -> None:
        """Take in what is there; close at the end."""
        while self._fd >= 0:
            try:
                data = os.read(self._fd, _AT_ONCE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._pass_on(b"", at_end=True)
                self.close()
                self._on_end(self)
                return
            self._keep(data)
            self._pass_on(data)
            if len(data) < _AT_ONCE:
                return

    def _pass_on(self, data: bytes, at_end: bool = False) -> None:
        """Pass on whole lines only, so that those of several workers do not run into each other."""
        data = self._line + data
        end = 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))
        if at_end or len(data) - end > _KEPT:
            end = len(data)
        self._line = data[end:]
        if end:
            self._forward(data[:end])

    def _keep(self, data: bytes) -> None:
        self._tail.append((self._loop.time(), data[-_KEPT:]))
        kept = sum(len(piece) for _, piece in self._tail)
        while len(self._tail) > 1 and kept - len(self._tail[0][1]) >= _KEPT:
            kept -= len(self._tail.popleft()[1])

    def tail(self, since: float = 0.0) -> str | None:
        """Return the last that was written, in whole lines where it is more than fits; or None.

        Args:
            since: only what came after this time, in monotonic seconds.
        """
        data = b"".join(piece for when, piece in self._tail if when >= since)
        text = data[-_KEPT:].decode("utf-8", "replace")
        if len(data) > _KEPT:
            _, _, rest = text.partition("\n")
            text = rest or text  # one very long line
        return text.rstrip() or None

    def finish(self) -> None:
        """Pass on what is there, and close."""
        self.read()
        if self._fd >= 0:
            self._pass_on(b"", at_end=True)
            self.close()

    def close(self) -> None:
        """Read no more; may be called more than once."""
        if self._fd >= 0:
            self._loop.unwatch(self)
            self.abandon()

    def abandon(self) -> None:
        """Close it without the loop, which belongs to the parent of a forked child."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class StandardErrors:
    """All the pipes of one pool.

    Args:
        name: of the pool.
        loop: reads them.
        substitute: writes where no thread is to be had.
    """

    def __init__(self, name: str, loop: EventLoop, substitute: Delivery) -> None:
        self._loop = loop
        self._forwarding = Forwarding(name, substitute)
        self._open: dict[CapturedStderr, None] = {}

    def take(self, fd: int) -> CapturedStderr:
        """Read a worker's standard error from this descriptor, and own it."""
        captured = CapturedStderr(fd, self._loop, self._forwarding.write, self._ended)
        self._open[captured] = None
        return captured

    def _ended(self, captured: CapturedStderr) -> None:
        self._open.pop(captured, None)

    @property
    def dropped(self) -> int:
        """How many bytes were not passed on, because nobody kept up with them."""
        return self._forwarding.dropped

    def finish(self, seconds: float) -> None:
        """Pass on what is there, no longer than so many seconds, and close everything."""
        for captured in list(self._open):
            captured.finish()
        self._open.clear()
        self._forwarding.stop(seconds)

    def abandon(self) -> None:
        """Close everything in a forked child."""
        for captured in self._open:
            captured.abandon()
