"""What watching costs: ``python -m benchmarks.watching``.

No-op jobs through two pools of the same program, in turn in one run: one as it is by default, and
one with everything on that tells of trouble (memory limit, ``stall_after``, ``capture_stderr``, a
listener to all that goes wrong). Below 1.05 is wanted. For comparison, one with a listener to what
comes with every job. Ratios within rounds, and their median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from poolwatch import Pool, events

_WORKERS = 2
_JOBS = 40_000
_TROUBLE = (
    events.JobLost,
    events.JobRetried,
    events.JobTimedOut,
    events.JobOutgrew,
    events.Stalled,
    events.WorkerDown,
    events.BootFailed,
    events.Trouble,
    events.PoolBroke,
)


def nothing() -> None:
    """The job."""


def watched() -> Pool:
    """Return a pool with everything on."""
    pool = Pool(_WORKERS, memory_limit=8 * 2**30, stall_after=10.0, capture_stderr=True)
    pool.listen(lambda event: None, *_TROUBLE)
    return pool


def plain() -> Pool:
    """Return a pool as it is by default."""
    return Pool(_WORKERS)


def listening() -> Pool:
    """Return a pool with a listener to what comes with every job: for comparison."""
    pool = Pool(_WORKERS)
    pool.listen(lambda event: None)
    return pool


def rate(make: Callable[[], Pool], jobs: int) -> float:
    """Return how many jobs a second a new pool does."""
    with make() as pool:
        for result in [pool.apply_async(nothing) for _ in range(2000)]:
            result.get()
        began = time.perf_counter()
        for result in [pool.apply_async(nothing) for _ in range(jobs)]:
            result.get()
        return jobs / (time.perf_counter() - began)


def compare(
    name: str, one: Callable[[], Pool], other: Callable[[], Pool], rounds: int, jobs: int
) -> float:
    """Print and return by how much ``one`` is slower than ``other``, the median of the rounds."""
    ratios = []
    for number in range(rounds):
        pair = [one, other] if number % 2 else [other, one]
        rates: dict[Any, float] = {make: rate(make, jobs) for make in pair}
        ratios.append(rates[other] / rates[one])
    median = statistics.median(ratios)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"{name}: time {median:.3f} (median of {rounds} rounds; {spread})", flush=True)
    return median


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11, metavar="N")
    parser.add_argument("--jobs", type=int, default=_JOBS, metavar="N", help="in each run")
    options = parser.parse_args()
    compare("everything on, against the default", watched, plain, options.rounds, options.jobs)
    compare("a listener to every job", listening, plain, options.rounds, options.jobs)


if __name__ == "__main__":
    main()
