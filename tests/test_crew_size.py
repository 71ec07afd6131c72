"""Grow and shrink where workers, zygotes or outsiders do not behave."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import work
from helpers import (
    DEADLINE,
    ProcessWatch,
    Stage,
    assert_full_strength,
    bounded,
    eventually,
    idle,
    killing,
    private_stage,
    worker_pids,
)

from poolwatch import WorkerLostError
from poolwatch.transport import ledger
from poolwatch.workers import WorkerState

pytestmark = pytest.mark.timeout(60)


def test_stopped_idle_worker_goes_all_the_same(make_pool: Any) -> None:
    """It does not hear that it is to leave, and holds nothing: it is ended after a while."""
    pool = make_pool(2)
    idle(pool, 2)
    pids = worker_pids(pool)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    pool.shrink()
    eventually(lambda: len(worker_pids(pool)) == 1)
    os.kill(worker_pids(pool)[0], signal.SIGCONT)
    assert pool.apply(work.square, (3,)) == 9


def test_zygote_that_hangs_is_replaced_for_a_worker_that_is_not_wanted_any_more(
    make_pool: Any, stage: Stage
) -> None:
    """Grow and shrink come in between: what was asked for and has no process is not forgotten."""
    pool = make_pool(1, boot_timeout=0.5)
    pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    zygote = pool._core._launchers.first.helper_pids()[-1]
    with ProcessWatch([zygote]) as watch:
        os.kill(zygote, signal.SIGSTOP)
        pool.grow()
        crew = pool._core.supervisor.crew
        eventually(lambda: len(crew.workers) == 2)
        pool.shrink()  # the one that has no job: it has no process either
        watch.assert_gone()
    idle(pool, 1)
    pool.close()
    bounded(pool.join)


def test_what_a_drained_worker_has_not_begun_is_done_by_others(make_pool: Any) -> None:
    """At once, and not when that worker has come to it."""
    pool = make_pool(2)
    for _ in range(3):
        for job in [pool.apply_async(work.square, (n,)) for n in range(300)]:
            job.get(DEADLINE)
    with private_stage() as one, private_stage() as other:
        stages: dict[int, Stage] = {}
        gated = []
        for stage in (one, other):
            gated.append(pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)))
            stages[int(stage.heard())] = stage
        more = [pool.apply_async(work.square, (n,)) for n in range(100)]
        crew = pool._core.supervisor.crew
        eventually(lambda: all(len(worker.jobs) > 1 for worker in crew.workers.values()))
        pool.shrink()
        eventually(lambda: "LEAVING" in str(list(crew.workers.values())))
        (stays,) = [w.pid for w in crew.workers.values() if w.state.name == "UP"]
        stages.pop(stays).let_go()
        assert [job.get(DEADLINE) for job in more] == [n * n for n in range(100)]
        (drains,) = stages.values()
        drains.let_go()
        assert {job.get(DEADLINE) for job in gated} == {stays, *stages}
    idle(pool, 1)


@pytest.mark.every_start_method
def test_shrink_of_workers_that_boot(make_pool: Any) -> None:
    """They come up and leave again; nothing counts as a failure to boot."""
    pool = make_pool(1, max_boot_failures=1)
    pool.grow(3)
    pool.shrink(3)
    idle(pool, 1)
    assert pool.apply(work.square, (3,)) == 9


def test_growth_takes_waiting_jobs_at_once(make_pool: Any, stage: Stage) -> None:
    """Also those that were sent ahead to the one worker there was."""
    pool = make_pool(1)
    for job in [pool.apply_async(work.square, (n,)) for n in range(300)]:
        job.get(DEADLINE)
    args = (stage.bell, stage.gate)
    jobs = [pool.apply_async(work.ring_and_wait, args) for _ in range(4)]
    stage.heard()
    pool.grow(3)
    stage.heard_pids(3)
    stage.let_go(4)
    assert len({job.get(DEADLINE) for job in jobs}) == 4


def test_recycling_pool_grows_and_shrinks(make_pool: Any) -> None:
    """maxtasksperchild and the changes of size do not get into each other's way."""
    pool = make_pool(2, maxtasksperchild=3)
    jobs = []
    for step in range(10):
        jobs += [pool.apply_async(work.square, (n,)) for n in range(20)]
        (pool.shrink if step % 2 else pool.grow)(1)
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(20)] * 10
    assert_full_strength(pool)


def test_close_with_a_worker_that_drains(make_pool: Any, stage: Stage) -> None:
    """join() waits for its job, too."""
    pool = make_pool(2)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(2)]
    stage.heard_pids(2)
    pool.shrink()
    pool.close()
    assert not pool._core.join(0.1)
    stage.let_go(2)
    bounded(pool.join)
    assert all(job.get(0) for job in jobs)


def test_workers_look_for_jobs_only_with_a_processor_each(make_pool: Any) -> None:
    """One that looks would take the processor from one that works."""
    pool = make_pool(1)
    idle(pool, 1)
    count = pool._core.options.processors

    def looks() -> list[bool]:
        with pool._core.dispatcher.lock:
            workers = list(pool._core.supervisor.crew.workers.values())
            return [worker.fields[ledger.LOOK_NS] > 0 for worker in workers]

    assert looks() == [True]
    pool.grow(count)
    eventually(lambda: looks() == [False] * (count + 1))
    pool.shrink(count)
    eventually(lambda: looks() == [True])


def test_did_start_ok_has_no_side_effects(make_pool: Any) -> None:
    """True while workers come up and afterwards, also when one has died."""
    pool = make_pool(1)
    assert pool.did_start_ok()
    idle(pool, 1)
    os.kill(worker_pids(pool)[0], signal.SIGKILL)
    assert pool.did_start_ok()
    pool.maintain_pool()
    assert pool.apply(work.square, (3,)) == 9
    assert pool.did_start_ok()
    pool.terminate()
    assert not pool.did_start_ok()
    pool.maintain_pool()


def is_renewed(pool: Any) -> bool:
    """All workers are there, and none from before the last restart."""
    crew = pool._core.supervisor.crew
    workers = list(crew.workers.values())
    return len(workers) == pool.processes and all(
        worker.generation == crew.generation and worker.state is WorkerState.UP
        for worker in workers
    )


@pytest.mark.every_start_method("spawn", "forkserver")
@pytest.mark.parametrize("options", [{}, {"min_processes": 0, "idle_timeout": 0.05}])
def test_storm(make_pool: Any, options: dict[str, Any], thorough: bool) -> None:
    """Kills while the size changes and workers are replaced: every job ends, the size is right."""
    pool = make_pool(2, **options)
    jobs = []
    with killing(pool):
        for step in range(12 if thorough else 6):
            jobs += [pool.apply_async(work.square, (n,)) for n in range(100)]
            jobs += [pool.apply_async(work.pid_after, (0.02,)) for _ in range(3)]
            (pool.shrink if step % 2 else pool.grow)(2)
            if step % 4 == 3:
                pool.restart()
            jobs[-1].wait(DEADLINE)
    lost = 0
    for job in jobs:
        try:
            assert isinstance(job.get(DEADLINE), int)
        except WorkerLostError:
            lost += 1
    assert lost < len(jobs) // 2
    assert pool.processes == 2
    if not options:
        eventually(lambda: is_renewed(pool))  # an old one may have got a job before it is let go
        assert_full_strength(pool)
        idle(pool, 2)
    else:
        eventually(lambda: pool.workers == [])
        assert pool.apply(work.square, (3,)) == 9
