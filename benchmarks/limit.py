"""The bare limit: two processes, a socket pair and pickle, nothing else.

One process pickles calls, the other unpickles them, runs them and pickles what they return. Nobody
supervises anybody. A pool in Python that sleeps while it waits cannot be faster; one that looks at
shared memory for a moment before it goes to sleep can, for waking up is most of a round trip.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 18
_BATCH = 100  # messages of a write, when many are under way
_BATCHES_AHEAD = 4


class Echo:
    """A process that runs calls, and the way to it."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _serve(other)
        other.close()
        self._messages = _messages(self._socket)

    def call(self, job: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Have one call run, and return its result."""
        self._socket.sendall(_pack((job, args)))
        return pickle.loads(next(self._messages)[0])

    def call_many(self, job: Callable[..., Any], count: int) -> None:
        """Have the same call run many times, with many messages in each write."""
        sent = received = 0
        while received < count:
            while sent < count and sent - received < _BATCH * _BATCHES_AHEAD:
                size = min(_BATCH, count - sent)
                self._socket.sendall(b"".join([_pack((job, ())) for _ in range(size)]))
                sent += size
            for message in next(self._messages):
                pickle.loads(message)
                received += 1

    def close(self) -> None:
        """End the other process."""
        self._socket.close()
        os.waitpid(self.pid, 0)


def _pack(obj: object) -> bytes:
    data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def _messages(source: socket.socket) -> Iterator[list[bytes]]:
    """Yield what has come, in lists of whole messages."""
    buffer = bytearray()
    while data := source.recv(_READ_BYTES):
        buffer += data
        position = 0
        batch = []
        while position + 4 <= len(buffer):
            end = position + 4 + _LENGTH.unpack_from(buffer, position)[0]
            if end > len(buffer):
                break
            batch.append(bytes(buffer[position + 4 : end]))
            position = end
        del buffer[:position]
        if batch:
            yield batch


def _serve(source: socket.socket) -> NoReturn:
    """Run calls until the other end is closed; never returns into the caller's code."""
    try:
        for batch in _messages(source):
            replies = []
            for message in batch:
                job, args = pickle.loads(message)
                replies.append(_pack(job(*args)))
            source.sendall(b"".join(replies))
    finally:
        os._exit(0)
