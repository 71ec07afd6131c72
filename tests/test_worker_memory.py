"""max_memory_per_child: a worker that has grown leaves after its job, and nothing is lost."""

from __future__ import annotations

from typing import Any

import jobs_work
import pytest
import work
from helpers import DEADLINE, eventually, worker_pids

from poolwatch import events

pytestmark = pytest.mark.timeout(50)


def base(make_pool: Any, **options: Any) -> int:
    """KiB that a worker has from the beginning."""
    return int(make_pool(1, **options).apply(jobs_work.resident_kib))


@pytest.mark.every_start_method
def test_worker_that_has_grown_is_replaced(make_pool: Any) -> None:
    """The job that made it grow succeeds; the next one runs in another process."""
    pool = make_pool(1, max_memory_per_child=base(make_pool) + 40_000)
    first = pool.apply(jobs_work.allocate_and_keep, (1,))
    assert pool.apply(jobs_work.allocate_and_keep, (80,)) == first
    assert pool.apply(jobs_work.allocate_and_keep, (1,)) != first


def test_memory_given_back_does_not_count(make_pool: Any) -> None:
    """The current resident set counts, not the peak."""
    pool = make_pool(1, max_memory_per_child=base(make_pool) + 40_000)
    first = pool.apply(jobs_work.allocate_and_let_go, (80,))
    assert [pool.apply(jobs_work.allocate_and_let_go, (80,)) for _ in range(3)] == [first] * 3


def test_inherited_memory_counts(make_pool: Any) -> None:
    """A bound below what a worker has from its parent replaces it after each job; none is lost."""
    pool = make_pool(1, max_memory_per_child=1)
    pids = [pool.apply_async(jobs_work.allocate_and_keep, (0,)) for _ in range(5)]
    assert len({job.get(DEADLINE) for job in pids}) == 5


def test_recycling_under_load_is_never_a_loss(make_pool: Any) -> None:
    """Workers leave with many jobs sent ahead, also while maps run: all come back, no loss."""
    pool = make_pool(2, max_memory_per_child=base(make_pool) + 30_000)
    seen: list[Any] = []
    pool.listen(seen.append)
    jobs = [pool.apply_async(jobs_work.keep_some_of, (n,)) for n in range(300)]
    mapped = pool.map_async(jobs_work.keep_some_of, range(200), 3)
    squares = [pool.apply_async(work.square, (n,)) for n in range(1000)]
    assert [job.get(DEADLINE) for job in jobs] == list(range(300))
    assert mapped.get(DEADLINE) == list(range(200))
    assert [job.get(DEADLINE) for job in squares] == [n * n for n in range(1000)]
    eventually(lambda: len(worker_pids(pool)) == 2)
    assert not [event for event in seen if isinstance(event, events.JobLost)]
    downs = [event for event in seen if isinstance(event, events.WorkerDown)]
    assert len(downs) >= 5
    assert all(event.expected for event in downs)
