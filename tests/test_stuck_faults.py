"""Jobs that never end, stopped workers, callbacks that raise or block, and ends of pools."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import faults
import pytest
import work
from helpers import (
    DEADLINE,
    ProcessWatch,
    Stage,
    assert_full_strength,
    assert_gone,
    bounded,
    only_worker,
    worker_pids,
)

from poolwatch import Terminated, TimeLimitExceeded, WorkerLostError

pytestmark = pytest.mark.timeout(40)
PROMPTLY = 5.0  # seconds for what should take well under one


def assert_timed_out(job: Any, limit: float) -> TimeLimitExceeded:
    with pytest.raises(TimeLimitExceeded) as caught:
        job.get(DEADLINE)
    assert caught.value.timeout == limit
    assert not isinstance(caught.value, WorkerLostError)
    return caught.value


# -- jobs that do not end ---------------------------------------------------------------------


@pytest.mark.every_start_method
@pytest.mark.parametrize(
    "func", [pytest.param(faults.hang_in_regex, marks=pytest.mark.zygote_only), faults.hang_in_sum]
)
def test_limit_ends_c_code_that_holds_the_interpreter_lock(
    make_pool: Any, stage: Stage, func: Callable[..., object]
) -> None:
    """One second for a loop in C that never returns to Python, and the stack says where it was."""
    pool = make_pool(2)
    job = pool.apply_async(func, (stage.bell,), timeout=1)
    pid = int(stage.heard())
    other = pool.apply_async(work.square, (3,))
    assert other.get(DEADLINE) == 9
    error = assert_timed_out(job, 1)
    assert func.__name__ in error.stack
    assert "faults.py" in error.stack
    assert_gone(pid)
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_limit_ends_the_jobs_own_processes(make_pool: Any, stage: Stage) -> None:
    """A job that has timed out leaves none of its processes behind, in whatever session."""
    pool = make_pool(2)
    job = pool.apply_async(faults.hang_with_two_children, (stage.bell,), timeout=0.5)
    children = stage.heard_pids(2)
    assert_timed_out(job, 0.5)
    assert_gone(*children)
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_limit_ends_a_stopped_worker(make_pool: Any, stage: Stage) -> None:
    """A worker that was stopped from outside still meets its job's time limit."""
    pool = make_pool(2)
    job = pool.apply_async(faults.hang, (stage.bell,), timeout=0.5)
    pid = int(stage.heard())
    os.kill(pid, signal.SIGSTOP)
    assert_timed_out(job, 0.5)
    assert_gone(pid)
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_stopped_idle_worker_keeps_no_job_from_the_others(make_pool: Any) -> None:
    """Jobs that were sent to a worker that does not take them go to one that does."""
    pool = make_pool(2)
    assert_full_strength(pool)
    stopped = worker_pids(pool)[0]
    os.kill(stopped, signal.SIGSTOP)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(20)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(20)]
    os.kill(stopped, signal.SIGCONT)
    assert_full_strength(pool)


# -- terminate() and close() ------------------------------------------------------------------


@pytest.mark.every_start_method
def test_terminate_ends_every_job_at_once(make_pool: Any, stage: Stage) -> None:
    """terminate() with busy, deaf workers and a queue: all handles say Terminated, and soon."""
    pool = make_pool(2)
    busy = [
        pool.apply_async(faults.hang_deaf, (stage.bell,)),
        pool.apply_async(faults.hang_in_sum, (stage.bell,)),
    ]
    pids = stage.heard_pids(2)
    queued = [pool.apply_async(work.square, (n,)) for n in range(100)]
    with ProcessWatch(pids) as watch:
        begun = time.monotonic()
        bounded(pool.terminate)
        assert time.monotonic() - begun < PROMPTLY
        for job in busy + queued:
            with pytest.raises(Terminated):
                job.get(PROMPTLY)
        watch.assert_gone(PROMPTLY)
    bounded(pool.join)
    assert all(job.terminated for job in busy)


@pytest.mark.every_start_method("spawn")
def test_terminate_ends_stopped_workers(make_pool: Any, stage: Stage) -> None:
    """terminate() does not wait for workers that were stopped from outside, busy or idle."""
    pool = make_pool(2)
    assert_full_strength(pool)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    pids = worker_pids(pool)
    with ProcessWatch(pids) as watch:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        bounded(pool.terminate)
        with pytest.raises(Terminated):
            job.get(PROMPTLY)
        watch.assert_gone(PROMPTLY)
    bounded(pool.join)


def test_terminate_ends_the_jobs_own_processes(make_pool: Any, stage: Stage) -> None:
    """terminate() leaves nothing of what a running job had started."""
    pool = make_pool(2)
    pool.apply_async(faults.hang_with_two_children, (stage.bell,))
    children = stage.heard_pids(2)
    bounded(pool.terminate)
    assert_gone(*children)


def test_terminate_wakes_a_waiting_get(make_pool: Any, stage: Stage) -> None:
    """A thread that waits in get() without a time-out is told when the pool is terminated."""
    pool = make_pool(1)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    told: list[type[BaseException]] = []

    def wait() -> None:
        try:
            job.get()
        except Terminated as error:
            told.append(type(error))

    thread = threading.Thread(target=wait)
    thread.start()
    bounded(pool.terminate)
    thread.join(DEADLINE)
    assert told == [Terminated]


def test_terminate_is_heard_by_error_callbacks_or_ignored_but_never_hangs(
    make_pool: Any, stage: Stage
) -> None:
    """A job with callbacks ends with Terminated too, even while an earlier callback blocks."""
    pool = make_pool(1)
    entered, leave = threading.Event(), threading.Event()

    def block(_: object) -> None:
        entered.set()
        leave.wait(DEADLINE)

    pool.apply_async(work.square, (3,), callback=block)
    assert entered.wait(DEADLINE)
    job = pool.apply_async(faults.hang, (stage.bell,), error_callback=lambda error: None)
    stage.heard()
    terminating = threading.Thread(target=pool.terminate)
    terminating.start()
    leave.set()
    terminating.join(DEADLINE)
    assert not terminating.is_alive()
    with pytest.raises(Terminated):
        job.get(DEADLINE)


@pytest.mark.every_start_method
def test_close_with_recycling_under_way_loses_nothing(make_pool: Any) -> None:
    """close() and join() run all that was submitted, while workers come and go after 3 jobs."""
    count = 30
    pool = make_pool(2, maxtasksperchild=3)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(count)]
    pool.close()
    bounded(pool.join)
    assert [job.get(0) for job in jobs] == [n * n for n in range(count)]
    assert {job.attempts for job in jobs} == {1}


@pytest.mark.every_start_method("spawn")
def test_close_with_deaths_under_way_loses_only_the_guilty(make_pool: Any, tmp_path: Any) -> None:
    """close() and join() run all that was submitted, while every tenth job kills its worker."""
    count = 40
    pool = make_pool(2)
    ledger = str(tmp_path / "begun")
    jobs = [
        pool.apply_async(faults.die_if, (n, n if n % 10 == 5 else -1, ledger)) for n in range(count)
    ]
    pool.close()
    bounded(pool.join)
    for number, job in enumerate(jobs):
        if number % 10 == 5:
            with pytest.raises(WorkerLostError, match="SIGKILL"):
                job.get(0)
        else:
            assert job.get(0) == number
        assert job.attempts == 1


# -- callbacks --------------------------------------------------------------------------------


def boom(*_: object) -> None:
    raise ZeroDivisionError("the callback's own fault")


def test_callback_that_raises_hurts_nobody(
    make_pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its job keeps its result, later callbacks are called, and the log shows the error."""
    pool = make_pool(2)
    told: list[int] = []
    first = pool.apply_async(work.square, (3,), callback=boom, accept_callback=boom)
    failed = pool.apply_async(work.fail, ("job",), error_callback=boom)
    second = pool.apply_async(work.square, (4,), callback=told.append)
    assert first.get(DEADLINE) == 9
    with pytest.raises(ValueError, match="job"):
        failed.get(DEADLINE)
    assert second.get(DEADLINE) == 16
    assert told == [16]
    assert "the callback's own fault" in caplog.text
    assert_full_strength(pool)


def test_callback_that_exits_hurts_nobody(make_pool: Any) -> None:
    """Not even SystemExit in a callback stops the calling of callbacks."""
    pool = make_pool(1)
    told: list[int] = []
    first = pool.apply_async(work.square, (3,), callback=lambda _: faults.sys_exit(1))
    second = pool.apply_async(work.square, (4,), callback=told.append)
    assert first.get(DEADLINE) == 9
    assert second.get(DEADLINE) == 16
    assert told == [16]


@pytest.fixture
def blocked(make_pool: Any) -> Iterator[Any]:
    """A pool of two whose callbacks are held up by one that blocks."""
    pool = make_pool(2)
    entered, leave = threading.Event(), threading.Event()

    def block(_: object) -> None:
        entered.set()
        leave.wait(DEADLINE * 2)

    pool.apply_async(work.square, (3,), callback=block)
    assert entered.wait(DEADLINE)
    try:
        yield pool, leave
    finally:
        leave.set()


def test_blocked_callback_does_not_hold_up_other_jobs(blocked: Any) -> None:
    """Jobs without callbacks are sent, run and are ready while a callback blocks."""
    pool, _ = blocked
    jobs = [pool.apply_async(work.square, (n,)) for n in range(20)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(20)]
    assert_full_strength(pool)


def test_blocked_callback_does_not_hold_up_deaths_and_limits(blocked: Any, stage: Stage) -> None:
    """Losses and time limits are served while a callback blocks, and workers are replaced."""
    pool, _ = blocked
    dead = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
    late = pool.apply_async(faults.hang, (stage.bell,), timeout=1)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        dead.get(DEADLINE)
    assert_timed_out(late, 1)
    assert_full_strength(pool)


def test_blocked_callback_only_delays_later_callbacks(blocked: Any) -> None:
    """A job with a callback is ready once its callback has been called, in order."""
    pool, leave = blocked
    told: list[int] = []
    jobs = [pool.apply_async(work.square, (n,), callback=told.append) for n in range(5)]
    assert pool.apply_async(work.square, (7,)).get(DEADLINE) == 49
    assert told == []
    assert not any(job.ready() for job in jobs)
    leave.set()
    assert sorted(job.get(DEADLINE) for job in jobs) == [0, 1, 4, 9, 16]
    assert sorted(told) == [0, 1, 4, 9, 16]


def test_callback_may_submit_jobs(make_pool: Any) -> None:
    """apply_async() inside a callback does not block, and its job runs."""
    pool = make_pool(1)
    submitted: list[Any] = []
    first = pool.apply_async(
        work.square,
        (3,),
        callback=lambda value: submitted.append(pool.apply_async(work.square, (value,))),
    )
    assert first.get(DEADLINE) == 9
    assert submitted[0].get(DEADLINE) == 81


def test_callback_may_end_the_pool(make_pool: Any, stage: Stage) -> None:
    """terminate() inside a callback neither hangs nor leaves anything."""
    pool = make_pool(2)
    ended = threading.Event()

    def end(_: object) -> None:
        pool.terminate()
        ended.set()

    running = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    pool.apply_async(work.square, (3,), callback=end)
    assert ended.wait(DEADLINE)
    with pytest.raises(Terminated):
        running.get(DEADLINE)


def test_worker_survives_a_job_that_ignores_signals(make_pool: Any) -> None:
    """Signal dispositions that a job has changed do not make the worker unstoppable."""
    pool = make_pool(1)
    pid = only_worker(pool)
    assert pool.apply_async(faults.ignore_sigterm).get(DEADLINE) == pid
    assert only_worker(pool) == pid
    bounded(pool.terminate)
    assert_gone(pid)
