"""The ring: shared memory in which a worker leaves small results without a system call.

The guarantee: what a worker has put into its ring is there for the parent, whole, whatever becomes
of the worker; what it was writing when it died was never published. So a result leaves the worker
before the next job begins, as it would through a stream, at a fifth of the price.

The frames are those of ``frames``, one behind the other, wrapping around at the end. Only the
worker moves HEAD, after the bytes are in place; only the parent moves TAIL, after it has dealt with
them. One worker and the parent share a ring, nobody else.

A parent that sleeps has to be told. It sets BELL before it goes to sleep; the worker that finds
BELL set after it has moved HEAD clears it and writes one frame into its stream. Both store first
and load afterwards, as with VOID (see ``ledger``), and again the parent's ``membarrier`` makes sure
that at least one of them sees the other's store. A worker whose parent is awake makes no system
call at all. Where there is no membarrier the ring is not used.
"""

from __future__ import annotations

import platform

from poolwatch.transport import kernel
from poolwatch.transport.ledger import HEAD, RING, RING_BYTES, TAIL, Row

LARGEST = RING_BYTES // 4
"""Bytes of a frame that may go through the ring; greater ones go through the stream."""

_MASK = RING_BYTES - 1
# Stores of one processor are seen by the others in their order here; elsewhere a barrier is needed
# between the look at HEAD and the look at what it promises.
_IN_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")


class CorruptRingError(Exception):
    """What is in a ring was not written by ``RingWriter``."""


class RingWriter:
    """The worker's side."""

    __slots__ = ("_fields", "_head", "_ring", "usable")

    def __init__(self, row: Row) -> None:
        self._fields = row.fields
        self._ring = row.ring
        self._head = 0
        self.usable = bool(row.fields[RING])

    def put(self, data: bytes) -> bool:
        """Publish whole frames; False when there is no room for them now."""
        fields, head = self._fields, self._head
        size = len(data)
        end = head + size
        if end - fields[TAIL] > RING_BYTES:
            return False
        start = head & _MASK
        if start + size <= RING_BYTES:
            self._ring[start : start + size] = data
        else:
            first = RING_BYTES - start
            self._ring[start:] = data[:first]
            self._ring[: size - first] = data[first:]
        self._head = end
        fields[HEAD] = end
        return True


class RingReader:
    """The parent's side."""

    __slots__ = ("_fields", "_ring", "_tail")

    def __init__(self, row: Row) -> None:
        self._fields = row.fields
        self._ring = row.ring
        self._tail = 0

    def has_data(self) -> bool:
        """Return True when something has not been taken out yet."""
        try:
            return bool(self._fields[HEAD] != self._tail)
        except ValueError:
            return False  # the worker has just been buried, and its row with it

    def peek(self) -> bytes:
        """Return the frames that have not been taken out yet, without taking them out.

        Raises:
            CorruptRingError: the row has been written over.
        """
        head, tail = self._fields[HEAD], self._tail
        if head == tail:
            return b""
        if not 0 < head - tail <= RING_BYTES:
            raise CorruptRingError(f"the ring cannot hold {head - tail} bytes")
        if not _IN_ORDER:
            kernel.membarrier()
        start, end = tail & _MASK, head & _MASK
        if start < end:
            return bytes(self._ring[start:end])
        return bytes(self._ring[start:]) + bytes(self._ring[:end])

    def consume(self, count: int) -> None:
        """Take out so many bytes; the worker may write over them."""
        self._tail += count
        self._fields[TAIL] = self._tail
