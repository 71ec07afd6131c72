"""priority=: who goes first, and who never has to wait behind what was sent ahead."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
import work
from helpers import DEADLINE, Stage, eventually, lines, one_batch, only_worker
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation import World

from poolwatch.job import NO_OPTIONS, Job, JobOptions
from poolwatch.ranks import insert_before

pytestmark = pytest.mark.timeout(60)


def test_higher_priorities_go_first_equal_ones_in_order(
    make_pool: Any, stage: Stage, tmp_path: Path
) -> None:
    """Waiting jobs run by priority, negative ones last, and in order of submission otherwise."""
    pool = make_pool(1)
    path = str(tmp_path / "order")
    first = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    priorities = [0, 5, -1, 0, 5, 9, -1, 0]
    jobs = [
        pool.apply_async(work.noted, (path, number), priority=priority)
        for number, priority in enumerate(priorities)
    ]
    stage.let_go()
    for job in (first, *jobs):
        job.get(DEADLINE)
    expected = sorted(range(len(priorities)), key=lambda n: -priorities[n])
    assert [int(line) for line in lines(path)] == expected


def test_urgent_job_does_not_wait_behind_what_was_sent_ahead(
    make_pool: Any, stage: Stage, tmp_path: Path
) -> None:
    """The only worker holds many jobs, the first of them long: the urgent one is the next."""
    pool = make_pool(1)
    path = str(tmp_path / "order")
    only_worker(pool)
    with one_batch(pool):
        first = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
        jobs = [pool.apply_async(work.noted, (path, number)) for number in range(50)]
    stage.heard()
    urgent = pool.apply_async(work.noted, (path, "urgent"), priority=1)
    held = pool._core.supervisor.crew.workers
    eventually(lambda: all(len(worker.jobs) <= 1 for worker in held.values()))
    stage.let_go()
    for job in (first, urgent, *jobs):
        job.get(DEADLINE)
    assert lines(path) == ["urgent", *map(str, range(50))]


@pytest.mark.parametrize("priority", ["high", 1.5, True])
def test_wrong_priority_is_refused(make_pool: Any, priority: object) -> None:
    """A priority is a whole number."""
    with pytest.raises(TypeError, match="priority"):
        make_pool(1).apply_async(work.square, (1,), priority=priority)


def submit(world: World, priority: int) -> Job:
    if priority:
        world.supervisor.dispatcher.ranked = True
    return world.submit(JobOptions(priority=priority) if priority else NO_OPTIONS)


@settings(max_examples=200, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(-2, 2), max_size=6), min_size=1, max_size=8),
    steps=st.lists(st.integers(0, 12), min_size=8, max_size=8),
)
def test_no_job_begins_before_one_that_outranks_it_in_line(
    batches: list[list[int]], steps: list[int]
) -> None:
    """Random arrivals between the steps of one worker, jobs sent one at a time: order is kept."""
    world = World(1)
    world.make_worker()
    (worker,) = world.workers.values()
    worker.step()
    world.read(worker)
    dispatcher = world.supervisor.dispatcher
    dispatcher.average = 1e9
    for batch, count in zip(batches, steps, strict=False):
        for priority in batch:
            submit(world, priority)
        for _ in range(count):
            worker.step()
            world.read(worker)
            dispatcher.average = 1e9
            waiting = [(-job.options.priority, job.id) for job in dispatcher.backlog]
            assert waiting == sorted(waiting)
            record = world.record(worker)
            assert record is not None
            assert len(record.jobs) <= 1
    world.run_out()
    assert all(job.ready for job in world.jobs)


@settings(max_examples=200, deadline=None)
@given(priorities=st.lists(st.integers(-2, 2), min_size=1, max_size=30), ahead=st.integers(0, 30))
def test_recalled_jobs_keep_their_place(priorities: list[int], ahead: int) -> None:
    """What was sent ahead and is taken back stands where it stood."""
    world = World(1)
    world.make_worker()
    (worker,) = world.workers.values()
    worker.step()
    world.read(worker)
    dispatcher, record = world.supervisor.dispatcher, world.record(worker)
    assert record is not None
    world.submit()  # it is sent at once
    for priority in priorities:
        submit(world, priority)
    worker.step()
    worker.step()
    with dispatcher.lock:
        dispatcher.take_arrivals()
        before = [job.id for job in dispatcher.backlog]
        count = min(ahead, len(before))
        if count:
            dispatcher._send(record, dispatcher._from_the_front(count))
        dispatcher.put_back(dispatcher.recall(record))
        assert [job.id for job in dispatcher.backlog] == before
    world.run_out()
    assert all(job.ready for job in world.jobs)


def test_jobs_taken_back_one_after_another_are_in_order() -> None:
    """What two workers had is put back in two goes, and stands in order of submission."""
    backlog: deque[Job] = deque()
    for number in (1, 3, 2):
        insert_before(backlog, Job(number, "job", b"", None, NO_OPTIONS, None))
    assert [job.id for job in backlog] == [1, 2, 3]
