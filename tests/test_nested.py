"""Jobs that make pools, fork and start threads; and the random streams of workers."""

from __future__ import annotations

import os
from typing import Any

import child_work
import pytest
from helpers import DEADLINE, ProcessWatch, Stage, assert_gone, bounded, kill_and_wait

KINDS = [
    ("poolwatch", "zygote"),
    ("poolwatch", "spawn"),
    ("multiprocessing", "fork"),
    ("multiprocessing", "spawn"),
    ("executor", "fork"),
    ("executor", "spawn"),
]


@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_job_makes_a_pool_of_its_own(make_pool: Any, kind: str, method: str) -> None:
    """Pools of each kind work inside a job, several times in one worker."""
    pool = make_pool(1)
    for _ in range(2):
        job = pool.apply_async(child_work.in_nested_pool, (kind, method))
        assert job.get(2 * DEADLINE) == 285
    assert pool.apply(os.getpid)


@pytest.mark.every_start_method("zygote")
def test_pool_in_a_pool_with_every_start_method(make_pool: Any) -> None:
    """The outer pool's start method does not matter to the inner one."""
    job = make_pool(1).apply_async(child_work.in_nested_pool, ("poolwatch", "zygote"))
    assert job.get(2 * DEADLINE) == 285


@pytest.mark.parametrize("how", ["close", "terminate", "recycle", "kill"])
def test_nested_pool_that_is_left_open_goes_with_its_worker(make_pool: Any, how: str) -> None:
    """Whether the worker leaves, is killed or recycled, the inner pool's worker is gone."""
    pool = make_pool(1, maxtasksperchild=1 if how == "recycle" else None)
    inner = pool.apply_async(child_work.leave_nested_pool_open).get(DEADLINE)
    if how == "close":
        pool.close()
        bounded(pool.join)
    elif how == "terminate":
        bounded(pool.terminate)
    elif how == "kill":
        kill_and_wait(pool.workers[0].pid)
    assert_gone(inner)


def test_terminated_job_takes_its_nested_pool_along(make_pool: Any, stage: Stage) -> None:
    """Nothing of the inner pool outlives the job that was in its with block."""
    pool = make_pool(1)
    job = pool.apply_async(child_work.hold_nested_pool, (stage.bell,))
    with ProcessWatch([int(stage.heard())]) as watch:
        job.terminate()
        job.wait(DEADLINE)
        assert job.ready()
        watch.assert_gone()
    assert pool.apply_async(os.getpid).get(DEADLINE)


@pytest.mark.every_start_method
def test_job_that_forks_and_returns_gives_one_result(make_pool: Any) -> None:
    """The child that comes back into the worker leaves without a word, raising or not."""
    pool = make_pool(1)
    assert pool.apply_async(child_work.fork_and_return).get(DEADLINE) == "parent"
    assert pool.apply_async(child_work.fork_and_raise).get(DEADLINE) == "parent"
    assert pool.map_async(child_work.square, range(3)).get(DEADLINE) == [0, 1, 4]


def test_job_with_all_settings_may_fork_and_return(make_pool: Any) -> None:
    """Neither restoring nor measuring nor relaying makes the child speak."""
    pool = make_pool(1, contextvars=[child_work.tenant], usage="memory", relay_logs=True)
    for _ in range(3):
        job = pool.apply_async(child_work.fork_and_return, env={"POOLWATCH_A": "1"}, cwd="/")
        assert job.get(DEADLINE) == "parent"


@pytest.mark.parametrize("how", ["os._exit", "sys.exit"])
def test_job_that_forks_and_whose_child_exits(make_pool: Any, how: str) -> None:
    """The child's end, whichever way, is not the job's."""
    pool = make_pool(1)
    pid = pool.apply(os.getpid)
    assert pool.apply_async(child_work.fork_and_exit, (how,)).get(DEADLINE) == "parent"
    assert pool.apply(os.getpid) == pid


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("how", ["close", "terminate", "recycle"])
def test_thread_that_outlives_its_job_holds_nothing_up(
    make_pool: Any, daemon: bool, how: str
) -> None:
    """A thread that waits for a minute: the pool ends, and recycling goes on, well before.

    Where it is no daemon, close() waits for it, unless there is a bound.
    """
    bound = None if daemon else 0.3
    pool = make_pool(1, maxtasksperchild=1 if how == "recycle" else None, leave_timeout=bound)
    pid = pool.apply_async(child_work.leave_thread, (daemon,)).get(DEADLINE)
    if how == "recycle":
        assert pool.apply_async(os.getpid).get(DEADLINE) != pid
    else:
        assert pool.apply_async(os.getpid).get(DEADLINE) == pid
    if how != "terminate":
        pool.close()
        bounded(pool.join)
    else:
        bounded(pool.terminate)
    assert_gone(pid)


def test_thread_that_ends_soon_lets_its_worker_leave_in_peace(make_pool: Any, stage: Stage) -> None:
    """The worker waits for a thread of a job, as any Python process, and exits with 0."""
    ends: list[Any] = []
    pool = make_pool(1, on_process_down=lambda worker: ends.append(worker.exitcode))
    pool.apply(child_work.leave_finite_thread, (stage.gate,))
    pool.close()
    stage.let_go()
    bounded(pool.join)
    assert ends == [0]


def test_job_runs_a_program(make_pool: Any) -> None:
    """subprocess works in a job, also with everything turned on."""
    pool = make_pool(1, relay_logs=True, usage="memory", contextvars=[child_work.tenant])
    assert pool.apply_async(child_work.run_program).get(DEADLINE) == "out"


@pytest.mark.every_start_method
def test_random_streams_differ_in_workers_and_replacements(make_pool: Any) -> None:
    """random, NumPy's legacy generator, secrets and uuid, in eight workers one after another."""
    import random

    import numpy

    random.seed(1)
    numpy.random.seed(1)
    pool = make_pool(2, maxtasksperchild=1)
    drawn = [job.get(DEADLINE) for job in [pool.apply_async(child_work.draw) for _ in range(8)]]
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == 8
