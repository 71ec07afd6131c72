"""Counting, always on: what has become of jobs and workers, and how long jobs ran and waited.

The hot path adds to plain lists; everything else is put together when somebody asks. Run times are
counted for every job. For a waiting time the clock must be read at the submission; where jobs are
tiny, that is done for one in eight.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

_BUCKETS = 44  # powers of two of nanoseconds: the last is beyond two hours
_FIRST = 10  # the first bucket that is shown: about a microsecond


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often which durations were seen.

    Attributes:
        bounds: upper bounds in seconds, ascending; each is twice the one before.
        counts: how many were up to that bound and above the one before; one more than there are
            bounds, for those above all.
        count: how many in all.
        sum: of all of them, in seconds (by the middle of each bucket, where a sum is not kept).
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    count: int
    sum: float

    def quantile(self, part: float) -> float | None:
        """Return the bound below which this part (0 to 1) of all lies; None when there are none.

        Raises:
            ValueError: not between 0 and 1.
        """
        if not 0 <= part <= 1:
            raise ValueError(f"part must be between 0 and 1: {part}")
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            if count and seen >= part * self.count:
                return bound
        return None


def _histogram(counts: list[int], total_ns: int | None = None) -> Histogram:
    shown = [sum(counts[: _FIRST + 1]), *counts[_FIRST + 1 :]]
    if total_ns is None:
        total_ns = sum(int(0.75 * 2**power) * count for power, count in enumerate(counts))
    bounds = tuple(2**power / 1e9 for power in range(_FIRST, _BUCKETS - 1))
    return Histogram(bounds, tuple(shown), sum(shown), total_ns / 1e9)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool has done so far, and what it is at.

    A chunk of a map counts as one job. The counters only grow.

    Attributes:
        submitted: jobs that were submitted.
        succeeded: ... that returned a value.
        failed: ... that raised, or whose call or result did not pickle.
        lost: ... whose worker died.
        timed_out: ... that ran into their hard limit.
        outgrew: ... that ran into their memory limit.
        terminated: ... that were ended on purpose.
        cancelled: ... that were cancelled or flushed.
        retried: times that a job was given back for another attempt.
        losses: deaths under a job by cause: ``SIGABRT``, ``exitcode 3``, ``out of memory``.
        workers_started: processes that were made.
        workers_died: ... that died unexpectedly.
        workers_recycled: ... that left in peace.
        boot_failures: ... that did not come up.
        unfinished: jobs that have not ended now.
        waiting: ... of which have not begun.
        workers: processes that take jobs now.
        idle: ... of which have nothing to do.
        run_time: how long jobs ran.
        wait_time: how long jobs waited, from their submission until their result was there, without
            the time that they ran; of jobs below 50 microseconds, one in eight is counted.
        events_dropped: events that slow listeners and log handlers have missed.
    """

    submitted: int
    succeeded: int
    failed: int
    lost: int
    timed_out: int
    outgrew: int
    terminated: int
    cancelled: int
    retried: int
    losses: dict[str, int]
    workers_started: int
    workers_died: int
    workers_recycled: int
    boot_failures: int
    unfinished: int
    waiting: int
    workers: int
    idle: int
    run_time: Histogram
    wait_time: Histogram
    events_dropped: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Tally:
    """The numbers behind :class:`PoolStats`. The dispatcher's lock guards them.

    Attributes:
        runs: how many jobs ran so long, by the bit length of nanoseconds.
        run_ns: how long all jobs ran together.
        waits: how many jobs waited so long, likewise.
        counts: everything that does not happen with every job, by name.
        losses: deaths under a job, by cause.
    """

    runs: list[int] = field(default_factory=lambda: [0] * 65)
    run_ns: int = 0
    waits: list[int] = field(default_factory=lambda: [0] * 65)
    succeeded: int = 0
    failed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    losses: Counter[str] = field(default_factory=Counter)

    def run_time(self) -> Histogram:
        """Return how long jobs ran."""
        return _histogram(_cut(self.runs), self.run_ns)

    def wait_time(self) -> Histogram:
        """Return how long jobs waited."""
        return _histogram(_cut(self.waits))


def _cut(counts: list[int]) -> list[int]:
    return [*counts[: _BUCKETS - 1], sum(counts[_BUCKETS - 1 :])]
