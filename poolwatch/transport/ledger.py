"""The ledger: one row of shared memory per worker, in which it notes what it has begun.

The guarantee: the supervisor can say of every job that it sent to a worker whether the job has
been started, at any time and also after the worker's death, and it can take back (*void*) all that
has not been started, without stopping the worker.

A row belongs to one worker and the supervisor; no two workers share one, and it is thrown away
with its worker. Every field is one aligned 8-byte store through ``memoryview.cast("Q")``, so no
reader ever sees half a value.

The race that matters is between the worker that begins a job and the supervisor that voids it::

    worker                               supervisor
      STARTED = serial                     VOID = last serial sent
      if serial <= VOID: drop it           membarrier
      else: run it                         look at STARTED

Each side stores first and loads afterwards, so at least one of them sees the other's store, given
a full barrier between the two steps on both sides. The supervisor's ``membarrier`` system call
supplies the barrier on both sides at once, and the worker's hot path holds no lock. The
alternative was one: a record lock of 2.7 us, or a semaphore that a stopped worker may hold. When
both see each other the worker drops a job that the supervisor counts as begun; so the worker says
so (a DROPPED frame), and the supervisor puts the job back.

A serial numbers one *sending* of one job to one worker. A job that is sent again gets another, so
an old entry is never mistaken for a new one. Where the kernel has no membarrier, jobs are sent one
at a time (see ``dispatcher``), and only a job that is being killed anyway is ever voided.

Behind the fields lies the ring in which the worker leaves its results, see ``rings``.
"""

from __future__ import annotations

import mmap
import os

from poolwatch.transport import kernel

# Written by the worker for each job.
STARTED = 0  # serial of the job begun last
STARTED_AT = 1  # when, monotonic nanoseconds; written before STARTED
PHASE = 2  # what the worker is doing, see PHASES
FINISHED = 3  # serial of the job whose result has been written last
HEAD = 4  # bytes that have ever been put into the ring
ITEM = 5  # chunks of a map: index of the item begun last; NO_ITEM before the first
CHUNK_AT = 7  # when the chunk begun last was begun, monotonic nanoseconds
RECEIVING = 6  # serial of the job whose frame has come in part

# Written by the supervisor; on a cache line of their own.
VOID = 8  # jobs up to this serial that have not begun must not begin
TERM_ORDER = 9  # SIGTERM is meant for the job with this serial
SOFT_ORDER = 10  # the soft limit of the job with this serial has passed
SOFT_ITEM = 11  # value of ITEM when the soft limit passed
TAIL = 12  # bytes that have ever been taken out of the ring
SENT = 13  # serial of the job sent last, once its frame is in the stream
RING = 14  # 1 when the worker may use the ring
LOOK_NS = 15  # how long the worker may look for its next job before it goes to sleep

PLACE = 17  # number of the worker's place in the pool, plus one
PROCESSOR = 18  # one more than the number of the processor that it is pinned to; 0 for none

# Written by both.
BELL = 16  # 1: after the next result in the ring, write into the stream to wake the parent

# Written by the zygote, between the fork and the worker's first own instruction.
UNPINNED = 23  # errno with which the kernel refused to pin the worker to its processor, or 0

NO_ITEM = 2**64 - 1

_FIELDS = 24
_RING_START = mmap.PAGESIZE
RING_BYTES = 64 * 1024
"""Bytes of results that may wait in the ring; a power of two."""
ROW_BYTES = _RING_START + RING_BYTES

BOOTING, IDLE, RUNNING, SENDING, LEAVING = range(5)
PHASES = ("booting", "idle", "running", "sending", "leaving")


def create() -> int:
    """Return the descriptor of a new row, all zero."""
    fd = kernel.anonymous_file("poolwatch-ledger")
    os.ftruncate(fd, ROW_BYTES)
    return fd


class Row:
    """One worker's row, mapped.

    Attributes:
        fields: the row as unsigned 64-bit integers; the constants above are its indices.
        ring: the bytes of the ring.
    """

    __slots__ = ("_mapping", "fields", "ring")

    def __init__(self, memory: memoryview, mapping: kernel.Mapping | None = None) -> None:
        self._mapping = mapping
        self.fields = memory[: _FIELDS * 8].cast("Q")
        self.ring = memory[_RING_START:]

    @classmethod
    def map(cls, fd: int) -> Row:
        """Map the row behind a descriptor, which may be closed then.

        Raises:
            OSError: it cannot be mapped.
        """
        mapping = kernel.Mapping(fd, ROW_BYTES, mmap.MAP_SHARED)
        return cls(mapping.view, mapping)

    def close(self) -> None:
        """Unmap the row."""
        self.fields.release()
        self.ring.release()
        if self._mapping is not None:
            self._mapping.close()
