"""What the measures share: a warm pool, folders, percentiles."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import jobs
from benchmarks.peers import OpenPool, Peer

Figures = dict[str, float]

# Pools end with the process that measured them: what becomes of an abandoned one is not measured.
_kept: list[Any] = []


def keep(thing: Any) -> None:
    """Keep something until the process ends."""
    _kept.append(thing)


def open_pool(peer: Peer, workers: int) -> OpenPool:
    """Make a pool that stays until the process ends."""
    pool = peer.open(workers)
    keep(pool)
    return pool


def warm_pool(peer: Peer, workers: int = 2) -> OpenPool:
    """Make a pool whose workers have all been at work at the same time."""
    pool = open_pool(peer, workers)
    meet(pool, workers)
    pool.values([pool.submit(jobs.noop, ()) for _ in range(50 * workers)])
    return pool


def meet(pool: OpenPool, workers: int) -> list[int]:
    """Run a job in each worker at the same time; return the workers' process ids."""
    folder = tempfile.mkdtemp(dir=tempfile.gettempdir())
    return pool.values([pool.submit(jobs.meet, (folder, workers)) for _ in range(workers)])


def repeat(times: int, seconds: float) -> Iterator[int]:
    """Count so many times, but stop when the time is up; once in any case."""
    end = time.perf_counter() + seconds
    for number in range(times):
        if number and time.perf_counter() > end:
            return
        yield number


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which lies such a part of the others (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))]
