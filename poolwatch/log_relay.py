"""The parent's end of the relay of log records: read by the supervisor, handled by the delivery.

The supervisor's thread moves bytes only. What waits for handlers that are slower than the workers
log is bounded; what is beyond is dropped, counted, and the count is logged.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from poolwatch.transport import relay
from poolwatch.transport.relay import LARGEST, RelayEnd

logger = logging.getLogger("poolwatch")

_MOST_RECORDS = 10_000
_MOST_BYTES = 16 * 1024 * 1024
_AT_ONCE = 128  # records between two looks at anything else, on both threads
_TELL_EVERY = 1.0  # seconds between two lines about dropped records


class LogRelay:
    """Takes in the records of one pool's workers.

    Args:
        pool: name of the pool, for the line about dropped records.
        level: of the records that travel; 0 for all that the loggers let pass.
        deliver: has something called on the delivery thread.

    Attributes:
        end: what workers need.
        dropped: records that were lost so far, here and in the workers.

    Raises:
        OSError: no descriptors to be had.
    """

    def __init__(
        self, pool: str, level: int, deliver: Callable[[Callable[[], object]], None]
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        # By number: a forked child must keep the other end, for workers that it makes, and has no
        # objects that would close it when they are collected.
        self._ours: int | None = ours.detach()
        self._theirs: int | None = theirs.detach()
        self.end = RelayEnd(self._theirs, level, logging.getLogger().level)
        self.dropped = 0
        self._told = 0
        self._told_at = float("-inf")
        self._pool = pool
        self._deliver = deliver
        self._lock = threading.Lock()  # for what follows
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._scheduled = False

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return -1 if self._ours is None else self._ours

    # -- the supervisor's thread -----------------------------------------------------------------

    def on_readable(self) -> None:
        """Take in some records."""
        self._read(_AT_ONCE)

    def finish(self) -> None:
        """Take in what is left, once no worker is."""
        while self._read(_AT_ONCE):
            pass
        self.close()

    def _read(self, count: int) -> bool:
        """Take in so many records; return False when there are no more."""
        with self._lock:
            more = self._read_locked(count)
            schedule = bool(self._waiting) and not self._scheduled
            self._scheduled = self._scheduled or schedule
        if schedule:
            self._deliver(self._handle_some)
        return more

    def _read_locked(self, count: int) -> bool:
        # A function of its own: at the end of a loop directly inside of a ``with``, a signal
        # handler that raises leaves the lock taken (Python 3.12 and later).
        more = True
        while count and more:
            count -= 1
            try:
                message = os.read(self.fileno(), LARGEST)
            except OSError:  # nothing to read, or closed
                message = b""
            more = bool(message)
            if more and self._has_room(message):
                self._waiting.append(message)
                self._bytes += len(message)
            elif more:
                self.dropped += 1
        return more

    def _has_room(self, message: bytes) -> bool:
        return len(self._waiting) < _MOST_RECORDS and self._bytes + len(message) <= _MOST_BYTES

    # -- the delivery thread ---------------------------------------------------------------------

    def _handle_some(self) -> None:
        """Handle some records, then let callbacks have their turn."""
        for _ in range(_AT_ONCE):
            with self._lock:
                if not self._waiting:
                    break
                message = self._waiting.popleft()
                self._bytes -= len(message)
            self._handle(message)
        with self._lock:
            more = self._scheduled = bool(self._waiting)
        self._tell_of_dropped()
        if more:
            self._deliver(self._handle_some)

    def _handle(self, message: bytes) -> None:
        try:
            record, dropped = relay.decode(message)
            self.dropped += dropped
            handle(record)
        except BaseException:
            # A filter or a handler of the user's, even exit(): the other records are not to blame.
            logger.exception("%s: a worker's log record could not be handled", self._pool)

    def _tell_of_dropped(self) -> None:
        now = time.monotonic()
        if self.dropped > self._told and now >= self._told_at + _TELL_EVERY:
            lost, self._told, self._told_at = self.dropped - self._told, self.dropped, now
            logger.warning("%s: %d log records of workers were dropped", self._pool, lost)

    # -- the end ---------------------------------------------------------------------------------

    def abandon(self) -> None:
        """In a forked child: let go of what is read from. It may be about to make a worker."""
        ours, self._ours = self._ours, None
        if ours is not None:
            os.close(ours)

    def close(self) -> None:
        """Close both ends; may be called more than once."""
        ours, self._ours = self._ours, None
        theirs, self._theirs = self._theirs, None
        for fd in (ours, theirs):
            if fd is not None:
                os.close(fd)


def handle(record: logging.LogRecord) -> None:
    """Have a worker's record handled as if it had been logged here.

    A logger that does not exist here is not made, or workers could fill this process with them: the
    nearest one above it has the level and the handlers that a new one would have.
    """
    loggers = logging.Logger.manager.loggerDict
    name = record.name
    while name:
        found = loggers.get(name)
        if isinstance(found, logging.Logger):
            break
        name = name.rpartition(".")[0]
    else:
        found = logging.getLogger()
    assert isinstance(found, logging.Logger)
    if not found.isEnabledFor(record.levelno):
        return
    if found.name == record.name:
        found.handle(record)
    else:
        found.callHandlers(record)
