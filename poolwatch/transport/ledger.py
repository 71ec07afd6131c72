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
"""

from __future__ import annotations

import mmap
import os

from poolwatch.transport import kernel

STARTED = 0  # serial of the job begun last
STARTED_AT = 1  # when, monotonic nanoseconds; written before STARTED
PHASE = 2  # what the worker is doing, see PHASES
VOID = 3  # by the supervisor: jobs up to this serial that have not begun must not begin
TERM_ORDER = 4  # by the supervisor: SIGTERM is meant for the job with this serial
SOFT_ORDER = 5  # by the supervisor: the soft limit of the job with this serial has passed
RECEIVING = 6  # serial of the job whose frame has come in part
FINISHED = 7  # serial of the job whose result has been written last
JOBS_DONE = 8  # how many results have been written
ITEM = 9  # chunks of a map: index of the item begun last; NO_ITEM before the first
SOFT_ITEM = 10  # by the supervisor: value of ITEM when the soft limit passed
NO_ITEM = 2**64 - 1

ROW_BYTES = 16 * 8

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
    """

    __slots__ = ("_map", "fields")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, ROW_BYTES)
        self.fields = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap the row."""
        self.fields.release()
        self._map.close()
