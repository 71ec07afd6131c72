"""Workers pinned to processors."""

from __future__ import annotations

import errno
import os
from typing import Any

import crew_work
import pytest
import work
from helpers import DEADLINE, Stage, eventually, worker_pids

from poolwatch.events import Trouble
from poolwatch.launch import zygote

PROCESSORS = sorted(os.sched_getaffinity(0))[:2]

pytestmark = [
    pytest.mark.timeout(40),
    pytest.mark.skipif(len(PROCESSORS) < 2, reason="needs two processors"),
]


def pinned(pool: Any) -> list[list[int]]:
    return sorted(sorted(os.sched_getaffinity(pid)) for pid in worker_pids(pool))


@pytest.mark.every_start_method
def test_pinned_before_anything_of_the_users(make_pool: Any) -> None:
    """Threads that an import in a fresh interpreter starts are pinned as well, and children too."""
    pool = make_pool(1, cpu_affinity=PROCESSORS[1:])
    assert pool.apply(crew_work.processors_of_a_child) == PROCESSORS[1:]
    if pool._core.options.start_method == "spawn":
        pool = make_pool(1, cpu_affinity=PROCESSORS[1:], initializer=crew_work.does_nothing)
        assert pool.apply(crew_work.processors_at_import) == PROCESSORS[1:]


def test_recycled_workers_keep_their_places(make_pool: Any, stage: Stage) -> None:
    """A replacement comes while its predecessor is still leaving, and gets its processor."""
    pool = make_pool(4, cpu_affinity=PROCESSORS, maxtasksperchild=1)
    for job in [pool.apply_async(work.square, (n,)) for n in range(60)]:
        job.get(DEADLINE)
    eventually(lambda: [worker.phase for worker in pool.workers] == ["idle"] * 4)
    assert pinned(pool) == [[processor] for processor in PROCESSORS for _ in range(2)]


def test_sizes_and_restarts_spread_workers_evenly(make_pool: Any) -> None:
    """No processor has two workers more than another after grow, shrink and restart."""
    pool = make_pool(2, cpu_affinity=PROCESSORS)
    for change, count in ((pool.grow, 4), (pool.restart, 4), (pool.shrink, 2), (pool.restart, 2)):
        before = worker_pids(pool)
        change() if change == pool.restart else change(2)
        eventually(lambda count=count: [w.phase for w in pool.workers] == ["idle"] * count)
        if change == pool.restart:
            eventually(lambda before=before: not set(worker_pids(pool)) & set(before))
            eventually(lambda count=count: [w.phase for w in pool.workers] == ["idle"] * count)
        if change != pool.shrink:
            each = count // 2
            assert pinned(pool) == [[processor] for processor in PROCESSORS for _ in range(each)]


def test_processor_that_is_named_twice_gets_twice_as_many(make_pool: Any) -> None:
    """Its numbers are places, as they stand there."""
    first, second = PROCESSORS
    pool = make_pool(3, cpu_affinity=[first, first, second])
    eventually(lambda: [worker.phase for worker in pool.workers] == ["idle"] * 3)
    assert pinned(pool) == [[first], [first], [second]]


def test_processor_that_is_gone_is_told(make_pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs wherever it may, and a listener hears why."""

    def refuse(pid: int, processors: object) -> None:
        raise OSError(errno.EINVAL, "no such processor")

    monkeypatch.setattr(zygote.os, "sched_setaffinity", refuse)  # inherited by the zygote
    pool = make_pool(1, cpu_affinity=PROCESSORS[:1])
    monkeypatch.undo()
    heard: list[object] = []
    pool.listen(heard.append)
    pool.grow(1)
    eventually(lambda: any(isinstance(e, Trouble) and "pinned" in e.text for e in heard))
    assert pool.apply(work.square, (3,)) == 9


def test_pools_without_affinity_are_not_pinned(make_pool: Any) -> None:
    """The default, and what False means."""
    for pool in (make_pool(1), make_pool(1, cpu_affinity=False)):
        assert pool.apply(crew_work.processors)[1] == sorted(os.sched_getaffinity(0))
