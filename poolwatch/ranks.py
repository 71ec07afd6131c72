"""Waiting jobs in the order of their priority: higher ones first, stable among equals.

The backlog is one deque in any case. As long as no job has a priority it is a plain line; from then
on it is kept sorted, and a job is put in by bisection. So whoever looks through the backlog needs
to know nothing of priorities.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque

from poolwatch.job import Job


def _rank(job: Job) -> int:
    return -job.options.priority


def insert_behind(backlog: deque[Job], job: Job) -> None:
    """Put a job behind all those of its priority."""
    if not backlog or _rank(backlog[-1]) <= _rank(job):
        backlog.append(job)
    else:
        backlog.insert(bisect_right(backlog, _rank(job), key=_rank), job)


def insert_before(backlog: deque[Job], job: Job) -> None:
    """Put a job that was taken back before those of its priority that were submitted later."""
    place, rank = bisect_left(backlog, _rank(job), key=_rank), _rank(job)
    while place < len(backlog) and _rank(backlog[place]) == rank and backlog[place].id < job.id:
        place += 1
    backlog.insert(place, job)


def outranks_any(job: Job, others: list[Job]) -> bool:
    """Return True when one of the others has a lower priority than the job."""
    return any(_rank(other) > _rank(job) for other in others)


def is_mixed(backlog: deque[Job]) -> bool:
    """Return True when jobs of several priorities are in line."""
    return _rank(backlog[0]) != _rank(backlog[-1])
