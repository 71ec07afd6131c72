"""Pools that grow, shrink, follow the work, and start again, without losing a job."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import faults
import pytest
import work
from helpers import (
    DEADLINE,
    Stage,
    assert_full_strength,
    assert_gone,
    bounded,
    eventually,
    idle,
    running_script,
    worker_pids,
)

from poolwatch import WorkerLostError
from poolwatch.config import usable_cpus

pytestmark = pytest.mark.timeout(40)


# -- grow and shrink --------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_grow_and_shrink(make_pool: Any) -> None:
    """The number of workers becomes what was asked for, in both directions."""
    pool = make_pool(1)
    pool.grow(2)
    assert pool.processes == 3
    idle(pool, 3)
    assert_full_strength(pool)
    pool.shrink(2)
    assert pool.processes == 1
    idle(pool, 1)
    assert pool.apply(work.square, (3,)) == 9


def test_shrink_drains_busy_workers(make_pool: Any, stage: Stage) -> None:
    """Jobs that run end; what those workers had not begun is run by the ones that stay."""
    pool = make_pool(3)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(3)]
    pids = stage.heard_pids(3)
    more = [pool.apply_async(work.square, (n,)) for n in range(200)]
    pool.shrink(2)
    stage.let_go(3)
    assert sorted(job.get(DEADLINE) for job in jobs) == sorted(pids)
    assert [job.get(DEADLINE) for job in more] == [n * n for n in range(200)]
    idle(pool, 1)


def test_idle_workers_go_first(make_pool: Any, stage: Stage) -> None:
    """The one that has a job stays."""
    pool = make_pool(3)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    busy = int(stage.heard())
    pool.shrink(2)
    eventually(lambda: worker_pids(pool) == [busy])
    stage.let_go()
    job.get(DEADLINE)


def test_job_that_outlives_the_patience_with_leavers_is_not_killed(
    make_pool: Any, stage: Stage
) -> None:
    """A worker that drains has no deadline; its death is a loss as any other."""
    pool = make_pool(2)
    jobs = [pool.apply_async(faults.hang, (stage.bell,)) for _ in range(2)]
    stage.heard(), stage.heard()
    pool.shrink(1)
    eventually(lambda: "LEAVING" in str(list(pool._core.supervisor.crew.workers.values())))
    assert not any(job.ready() for job in jobs)
    for job in jobs:
        os.kill(job.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            job.get(DEADLINE)
    idle(pool, 1)


@pytest.mark.parametrize("method", ["grow", "shrink"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_wrong_number_is_named(make_pool: Any, method: str, value: Any, error: Any) -> None:
    """At the call, and nothing changes."""
    pool = make_pool(2)
    with pytest.raises(error, match="n must be"):
        getattr(pool, method)(value)
    assert pool.processes == 2


def test_more_than_there_are_cannot_go(make_pool: Any) -> None:
    """At least one worker stays."""
    pool = make_pool(2)
    with pytest.raises(ValueError, match=r"number of workers \(2\)"):
        pool.shrink(2)
    assert pool.processes == 2
    pool.close()
    for method in (pool.grow, pool.shrink, pool.restart):
        with pytest.raises(ValueError, match="not running"):
            method()
    pool.maintain_pool()
    assert not pool.did_start_ok()


def test_storm_while_the_size_changes(make_pool: Any) -> None:
    """A killer from outside, grow and shrink at once: every job ends, the size is right."""
    pool = make_pool(2)
    stop = threading.Event()
    chance = random.Random(1)

    def kill() -> None:
        while not stop.wait(0.02):
            pids = worker_pids(pool)
            if pids:
                try:
                    os.kill(chance.choice(pids), signal.SIGKILL)
                except ProcessLookupError:
                    pass

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        jobs = []
        for step in range(12):
            jobs += [pool.apply_async(work.square, (n,)) for n in range(200)]
            (pool.shrink if step % 2 else pool.grow)(2)
            jobs[-1].wait(DEADLINE)
    finally:
        stop.set()
        killer.join()
    for n, job in enumerate(jobs):
        try:
            assert job.get(DEADLINE) == (n % 200) ** 2
        except WorkerLostError:
            pass
    assert_full_strength(pool)


# -- elastic ----------------------------------------------------------------------------------


@pytest.mark.every_start_method("fork")
def test_workers_come_on_demand_and_go_when_idle(make_pool: Any, stage: Stage) -> None:
    """From none to as many as there are long jobs, and back to none."""
    pool = make_pool(4, min_processes=0, idle_timeout=0.1)
    assert pool.workers == []
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(3)]
    assert len(set(stage.heard_pids(3))) == 3
    assert len(pool.workers) <= 4
    stage.let_go(3)
    for job in jobs:
        job.get(DEADLINE)
    eventually(lambda: pool.workers == [])
    assert pool.apply(work.square, (3,)) == 9


def test_tiny_jobs_do_not_wait_behind_long_ones(make_pool: Any, stage: Stage) -> None:
    """When all workers are at long jobs another is made, however short the jobs before were."""
    pool = make_pool(64, min_processes=2, idle_timeout=60)
    for _ in range(5):
        pool.map(work.square, range(200), chunksize=1)
    count = len(pool.workers)
    assert count < 60
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(count)]
    stage.heard_pids(count)
    assert [pool.apply_async(work.square, (n,)).get(DEADLINE) for n in range(3)] == [0, 1, 4]
    stage.let_go(count)
    for job in jobs:
        job.get(DEADLINE)


def test_minimum_stays(make_pool: Any, stage: Stage) -> None:
    """Idle workers leave down to min_processes, and no further."""
    pool = make_pool(3, min_processes=2, idle_timeout=0.05)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(3)]
    stage.heard_pids(3)
    stage.let_go(3)
    for job in jobs:
        job.get(DEADLINE)
    idle(pool, 2)
    eventually(lambda: pool._core.dispatcher.watching_idle is False)


def test_burst_of_tiny_jobs_makes_no_storm_of_workers(make_pool: Any) -> None:
    """They are done sooner than dozens of workers would be up."""
    pool = make_pool(64, min_processes=1, idle_timeout=60)
    pool.map(work.square, range(200), chunksize=1)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(3000)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(3000)]
    assert len(pool.workers) < 32


def test_death_in_an_elastic_pool_is_replaced_when_needed(make_pool: Any) -> None:
    """An idle worker that is killed is not missed above the minimum; the next job has one."""
    pool = make_pool(2, min_processes=0, idle_timeout=60)
    pool.apply(work.square, (2,))
    (pid,) = worker_pids(pool)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pool.workers == [])
    assert pool.apply(work.square, (3,)) == 9
    with pytest.raises(WorkerLostError):
        pool.apply(faults.kill_self, (signal.SIGKILL,))
    assert pool.apply(work.square, (4,)) == 16


def test_many_threads_submit_to_no_workers(make_pool: Any) -> None:
    """Nobody is forgotten while the first worker is made."""
    pool = make_pool(2, min_processes=0, idle_timeout=0.02)
    results: list[int] = []

    def submit() -> None:
        results.extend(pool.apply_async(work.square, (n,)).get(DEADLINE) for n in range(20))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(results) == sorted([n * n for n in range(20)] * 8)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"min_processes": 3}, "min_processes"),
        ({"min_processes": -1}, "min_processes"),
        ({"idle_timeout": 0}, "idle_timeout"),
    ],
)
def test_wrong_elasticity_is_named(make_pool: Any, options: Any, named: str) -> None:
    """At the call."""
    with pytest.raises(ValueError, match=named):
        make_pool(2, **options)


# -- restart ----------------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_restart_replaces_every_worker(make_pool: Any, stage: Stage) -> None:
    """Idle ones too; a job that runs ends in its old worker; nothing waits meanwhile."""
    pool = make_pool(2)
    assert_full_strength(pool)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    busy = int(stage.heard())
    before = set(worker_pids(pool))
    helpers = set(pool._core._launchers.first.helper_pids())
    assert helpers
    pool.restart()
    assert bounded(lambda: pool.apply(work.square, (3,))) == 9
    eventually(lambda: set(worker_pids(pool)) & before == {busy})
    stage.let_go()
    assert job.get(DEADLINE) == busy
    eventually(lambda: not set(worker_pids(pool)) & before)
    idle(pool, 2)
    eventually(lambda: len(pool._core.supervisor.sizing._old_launchers) == 0)
    for helper in helpers:
        assert_gone(helper)
    assert pool.apply(work.square, (4,)) == 16


def test_restarted_workers_see_the_program_as_it_is_now(tmp_path: Path) -> None:
    """What was set after the pool was made is there after a restart."""
    with running_script("restarted.py") as script:
        assert script.wait(DEADLINE) == 0


def test_restart_loses_no_job(make_pool: Any) -> None:
    """Jobs flow all the time."""
    pool = make_pool(2)
    jobs = []
    for _ in range(5):
        jobs += [pool.apply_async(work.square, (n,)) for n in range(300)]
        pool.restart()
        jobs[-1].wait(DEADLINE)
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(300)] * 5
    idle(pool, 2)


def test_pool_that_ends_in_the_middle_of_a_restart(make_pool: Any) -> None:
    """Both generations go."""
    for end in ("terminate", "close"):
        pool = make_pool(2)
        pool.restart()
        getattr(pool, end)()
        bounded(pool.join)


# -- affinity ---------------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_workers_are_pinned_in_turn(make_pool: Any) -> None:
    """Each to a processor of its own, and a replacement to that of the one it replaces."""
    processors = sorted(os.sched_getaffinity(0))[:2]
    pool = make_pool(2, cpu_affinity=processors, initializer=work.keep_affinity)
    eventually(lambda: len(worker_pids(pool)) == 2)
    assert_full_strength(pool)
    pinned = [os.sched_getaffinity(pid) for pid in worker_pids(pool)]
    assert sorted(map(sorted, pinned)) == [[processor] for processor in processors]
    assert pool.apply(work.kept_affinity) in processors
    (victim, *_) = worker_pids(pool)
    place = os.sched_getaffinity(victim)
    os.kill(victim, signal.SIGKILL)
    assert_full_strength(pool)
    eventually(lambda: place in [os.sched_getaffinity(pid) for pid in worker_pids(pool)])


@pytest.mark.parametrize(
    ("value", "error"),
    [([], ValueError), ([100_000], ValueError), ("0", TypeError), (0, TypeError)],
)
def test_wrong_affinity_is_named(make_pool: Any, value: Any, error: Any) -> None:
    """At the call."""
    with pytest.raises(error, match="cpu_affinity"):
        make_pool(1, cpu_affinity=value)


def test_default_size_is_what_may_be_used(make_pool: Any) -> None:
    """The processors of this process's affinity, no more than its cgroup's quota."""
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
    assert make_pool(None).processes == usable_cpus()
