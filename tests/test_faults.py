"""Workers and parents that die: the guilty job says why, the others and the pool do not notice."""

from __future__ import annotations

import os
import signal
from typing import Any

import faults
import psutil
import pytest
import work
from helpers import (
    DEADLINE,
    ProcessWatch,
    Stage,
    assert_full_strength,
    assert_gone,
    eventually,
    kill_and_wait,
    only_worker,
    running_script,
    worker_pids,
)

from poolwatch import WorkerLostError

pytestmark = pytest.mark.timeout(40)


def deaths(*zygote_only: str) -> list[Any]:
    """All the deaths as parameters, some of them for the zygote only."""
    return [
        pytest.param(name, marks=[pytest.mark.zygote_only] if name in zygote_only else [])
        for name in faults.DEATHS
    ]


def assert_lost(job: Any, exitcode: int, status: str) -> WorkerLostError:
    """The job ends with a loss that says how the worker ended, and what it did."""
    with pytest.raises(WorkerLostError) as caught:
        job.get(DEADLINE)
    error = caught.value
    assert str(error).startswith(f"Worker exited prematurely: {status}")
    assert error.exitcode == exitcode
    assert error.signal == (-exitcode if exitcode < 0 else None)
    assert error.postmortem.exitcode == exitcode
    assert error.postmortem.status_text == status
    assert error.postmortem.pid == error.pid
    assert error.postmortem.attempt == job.attempts == 1
    assert not job.terminated
    assert not job.successful()
    assert job.worker_lost[1] == exitcode
    return error


@pytest.mark.every_start_method
@pytest.mark.parametrize("death", deaths("SIGSEGV", "exit 3"))
def test_only_the_job_that_kills_its_worker_fails(make_pool: Any, death: str) -> None:
    """A death fails the guilty job, with its cause; jobs before and after it are not touched."""
    func, argument, exitcode, status = faults.DEATHS[death]
    pool = make_pool(2)
    before = [pool.apply_async(work.square, (n,)) for n in range(20)]
    guilty = pool.apply_async(func, (argument,))
    after = [pool.apply_async(work.square, (n,)) for n in range(20, 40)]
    error = assert_lost(guilty, exitcode, status)
    assert error.postmortem.phase == "running"
    assert func.__name__ in error.postmortem.job
    assert [job.get(DEADLINE) for job in before + after] == [n * n for n in range(40)]
    assert {job.attempts for job in before + after} == {1}
    assert_full_strength(pool)
    assert error.pid not in worker_pids(pool)


@pytest.mark.parametrize("death", ["SIGABRT", "SIGSEGV"])
def test_crash_brings_its_python_traceback(make_pool: Any, death: str) -> None:
    """The loss by a crash shows the line of Python that the worker was at."""
    func, argument, exitcode, status = faults.DEATHS[death]
    error = assert_lost(make_pool(1).apply_async(func, (argument,)), exitcode, status)
    assert "faults.py" in error.postmortem.traceback
    assert "kill_self" in error.postmortem.traceback


def test_sudden_death_brings_no_traceback_of_another_job(make_pool: Any) -> None:
    """What an earlier crash has written does not show up in a later SIGKILL."""
    pool = make_pool(1)
    crash = pool.apply_async(faults.kill_self, (signal.SIGSEGV,))
    assert_lost(crash, -11, "signal 11 (SIGSEGV)")
    sudden = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
    error = assert_lost(sudden, -9, "signal 9 (SIGKILL)")
    assert not error.postmortem.traceback


def test_loss_is_logged(make_pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A lost job leaves a line in the log of poolwatch that names signal and function."""
    pool = make_pool(1)
    assert_lost(pool.apply_async(faults.kill_self, (signal.SIGKILL,)), -9, "signal 9 (SIGKILL)")

    def logged() -> bool:
        texts = [r.getMessage() for r in caplog.records if r.name.startswith("poolwatch")]
        return any("SIGKILL" in text and "kill_self" in text for text in texts)

    eventually(logged)


@pytest.mark.every_start_method
@pytest.mark.parametrize("code", [pytest.param(0, marks=pytest.mark.zygote_only), 3])
def test_sys_exit_is_the_jobs_own_exception(make_pool: Any, code: int) -> None:
    """sys.exit() in a job reaches the caller as SystemExit, and the worker lives on."""
    pool = make_pool(1)
    pid = only_worker(pool)
    with pytest.raises(SystemExit) as caught:
        pool.apply_async(faults.sys_exit, (code,)).get(DEADLINE)
    assert caught.value.code == code
    assert only_worker(pool) == pid
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_idle_worker_killed_from_outside_is_replaced(make_pool: Any) -> None:
    """Idle workers, first one and then all of them, can be killed without any job's noticing."""
    pool = make_pool(2)
    assert_full_strength(pool)
    first, second = worker_pids(pool)
    kill_and_wait(first)
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    assert_full_strength(pool)
    assert first not in worker_pids(pool)
    with ProcessWatch(worker_pids(pool)) as watch:
        for pid in worker_pids(pool):
            os.kill(pid, signal.SIGKILL)
        jobs = [pool.apply_async(work.square, (n,)) for n in range(20)]
        watch.assert_gone()
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(20)]
    assert {job.attempts for job in jobs} == {1}
    assert_full_strength(pool)
    assert second not in worker_pids(pool)


# -- what the dead leave behind ---------------------------------------------------------------


@pytest.mark.every_start_method
def test_grandchildren_of_a_dead_worker_are_gone(make_pool: Any, stage: Stage) -> None:
    """Processes that the job had forked, started or detached end with its worker."""
    pool = make_pool(2)
    job = pool.apply_async(faults.fork_then_die, (stage.bell,))
    grandchildren = stage.heard_pids(3)
    assert_lost(job, -9, "signal 9 (SIGKILL)")
    assert_gone(*grandchildren)
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_detached_grandchildren_are_gone_after_a_kill_from_outside(
    make_pool: Any, stage: Stage
) -> None:
    """The same when nobody could look at the worker's family before it died."""
    pool = make_pool(2)
    job = pool.apply_async(faults.hang_with_two_children, (stage.bell,))
    children = stage.heard_pids(2)
    eventually(lambda: job.pid)
    kill_and_wait(job.pid)
    assert_lost(job, -9, "signal 9 (SIGKILL)")
    assert_gone(*children)
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_forked_grandchild_that_returns_does_no_harm(make_pool: Any) -> None:
    """A job's fork that comes back out of the job leaves quietly: one result, one worker."""
    pool = make_pool(2)
    jobs = [pool.apply_async(faults.fork_and_return) for _ in range(4)]
    after = [pool.apply_async(work.square, (n,)) for n in range(20)]
    for job in jobs:
        told, worker = job.get(DEADLINE)
        assert told == worker
    assert [job.get(DEADLINE) for job in after] == [n * n for n in range(20)]
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_nothing_survives_a_killed_parent(stage: Stage, start_method: str) -> None:
    """SIGKILL to the parent ends busy and idle workers, jobs' children and all helpers."""
    with running_script("parent.py", start_method, stage.bell, stage.gate) as parent:
        heard = {stage.heard() for _ in range(3)}
        children = map(int, heard - {"idle"})  # of the busy worker, one in a session of its own
        family = psutil.Process(parent.pid).children(recursive=True)
        pids = {process.pid for process in family}
        assert {*children} < pids
        assert len(pids) >= 4  # two workers and the two children of the busy one
        with ProcessWatch(pids) as watch:
            parent.kill()
            parent.wait(DEADLINE)
            watch.assert_gone()
