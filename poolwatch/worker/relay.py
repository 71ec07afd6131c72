"""A worker's log records go to its parent, which has the handlers.

The handlers that a worker has inherited by being forked are put away, or each record would be
handled here and there. Those that the initializer or a job adds are the user's own and stay.
"""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Iterator

from poolwatch.transport import relay
from poolwatch.transport.relay import RelayEnd

_PATIENCE_MS = 20  # how long a record may wait for room; only after one that needed not


class RelayHandler(logging.Handler):
    """Sends records to the parent; never waits long, and never raises.

    Args:
        end: where to.
    """

    def __init__(self, end: RelayEnd) -> None:
        super().__init__(end.level)
        self._sock = socket.socket(fileno=end.fd)
        self._sock.setblocking(False)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, or count it as dropped when there is no room for it."""
        try:
            message = relay.encode(record, self._dropped)
        except Exception:  # noqa: BLE001  (logging's own rule: said on stderr, not raised)
            self.handleError(record)
            return
        if self._send(message) or (not self._dropped and self._wait() and self._send(message)):
            self._dropped = 0
        else:
            self._dropped += 1

    def _send(self, message: bytes) -> bool:
        try:
            self._sock.send(message)
        except OSError:
            return False  # no room, or the pool is gone
        return True

    def _wait(self) -> bool:
        """Give the parent a moment: a job that logs without end is slowed down by that.

        A parent that does not read at all holds a job up once, not with each record.
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        return bool(poll.poll(_PATIENCE_MS))


def install(end: RelayEnd) -> None:
    """Relay the records of all loggers of this process."""
    handler = RelayHandler(end)
    root = logging.getLogger()
    level = end.level or end.root_level
    root.setLevel(min(end.root_level or level, level))
    for logger in (root, *_loggers()):
        for inherited in list(logger.handlers):
            logger.removeHandler(inherited)
        if logger is root or not logger.propagate:
            logger.addHandler(handler)


def _loggers() -> Iterator[logging.Logger]:
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger
