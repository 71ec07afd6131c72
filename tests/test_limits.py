"""Time limits: the soft one is raised inside its own job, the hard one ends job and worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import faults
import pytest
import work
from helpers import (
    DEADLINE,
    Stage,
    assert_full_strength,
    assert_gone,
    eventually,
    one_batch,
    only_worker,
)

from poolwatch import SoftTimeLimitExceeded, TimeLimitExceeded, WorkerLostError, strikes

pytestmark = pytest.mark.timeout(40)


def assert_timed_out(job: Any, limit: float) -> TimeLimitExceeded:
    with pytest.raises(TimeLimitExceeded) as caught:
        job.get(DEADLINE)
    assert caught.value.timeout == limit
    return caught.value


# -- the hard limit ---------------------------------------------------------------------------


@pytest.mark.every_start_method("spawn", "forkserver")
@pytest.mark.parametrize("where", [pytest.param("pool", marks=pytest.mark.zygote_only), "job"])
def test_hard_limit_ends_the_job_and_its_worker(make_pool: Any, stage: Stage, where: str) -> None:
    """A limit given to the pool or to the job ends the job, says where it was, kills its worker."""
    limit = {"timeout": 0.5}
    pool = make_pool(2, **(limit if where == "pool" else {}))
    job = pool.apply_async(faults.hang, (stage.bell,), **(limit if where == "job" else {}))
    pid = int(stage.heard())
    error = assert_timed_out(job, 0.5)
    assert "faults.py" in error.stack
    assert "hang" in error.stack
    assert not isinstance(error, WorkerLostError)
    assert_gone(pid)
    assert_full_strength(pool)


def test_limit_of_the_job_goes_before_the_pools(make_pool: Any, stage: Stage) -> None:
    """A job with a longer limit than the pool's may run longer, one with a shorter may not."""
    pool = make_pool(2, timeout=0.5)
    longer = pool.apply_async(work.pid_after, (1.0,), timeout=60)
    shorter = pool.apply_async(faults.hang, (stage.bell,), timeout=0.3)
    assert_timed_out(shorter, 0.3)
    assert longer.get(DEADLINE) > 0


def test_hard_limit_is_not_before_its_time(make_pool: Any) -> None:
    """A job that takes a fraction of its limit is not touched."""
    pool = make_pool(2, timeout=5)
    jobs = [pool.apply_async(work.pid_after, (0.05,)) for _ in range(20)]
    assert len({job.get(DEADLINE) for job in jobs}) == 2
    assert {job.attempts for job in jobs} == {1}


def test_time_in_the_queue_does_not_count(make_pool: Any) -> None:
    """The clock of a job starts when it begins, not when it is submitted or sent."""
    pool = make_pool(1)
    pid = only_worker(pool)
    jobs = [pool.apply_async(work.pid_after, (0.4,), timeout=1.5) for _ in range(6)]
    assert {job.get(DEADLINE) for job in jobs} == {pid}


def test_time_behind_another_job_does_not_count(make_pool: Any) -> None:
    """A job that was sent to its worker ahead, behind a long one, has its whole limit."""
    pool = make_pool(1)
    with one_batch(pool):
        long = pool.apply_async(work.pid_after, (1.2,), timeout=30)
        limited = pool.apply_async(work.pid_after, (1.2,), timeout=2.2)
    assert long.get(DEADLINE) == limited.get(DEADLINE)
    assert limited.attempts == 1


def test_one_job_over_its_limit_leaves_the_others_alone(
    make_pool: Any, stage: Stage, tmp_path: Any
) -> None:
    """Jobs before, beside and behind the late one give their results, each after one attempt."""
    pool = make_pool(2)
    before = [pool.apply_async(work.square, (n,)) for n in range(50)]
    late = pool.apply_async(faults.hang, (stage.bell,), timeout=1)
    after = [pool.apply_async(work.square, (n,)) for n in range(50)]
    assert_timed_out(late, 1)
    assert [job.get(DEADLINE) for job in before + after] == [n * n for n in range(50)] * 2
    assert {job.attempts for job in before + after} == {1}


def test_every_late_job_is_ended(make_pool: Any, stage: Stage) -> None:
    """Several rounds of jobs that all hang: each ends at its limit, on replaced workers."""
    pool = make_pool(2, timeout=0.3)
    jobs = [pool.apply_async(faults.hang, (stage.bell,)) for _ in range(6)]
    for job in jobs:
        assert_timed_out(job, 0.3)
    assert len(set(stage.heard_pids(6))) == 6
    assert_full_strength(make_pool(2))


def test_limit_of_get_is_not_the_jobs(make_pool: Any, stage: Stage) -> None:
    """get(timeout) running out is TimeoutError, and the job goes on."""
    pool = make_pool(1)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    pid = int(stage.heard())
    with pytest.raises(multiprocessing.TimeoutError):
        job.get(0.05)
    assert not job.ready()
    stage.let_go()
    assert job.get(DEADLINE) == pid


# -- the soft limit ---------------------------------------------------------------------------


@pytest.mark.every_start_method
@pytest.mark.parametrize("where", [pytest.param("pool", marks=pytest.mark.zygote_only), "job"])
def test_soft_limit_can_be_caught_in_the_job(make_pool: Any, stage: Stage, where: str) -> None:
    """SoftTimeLimitExceeded is raised inside the job, which may clean up and return."""
    limit = {"soft_timeout": 0.3}
    pool = make_pool(1, **(limit if where == "pool" else {}))
    pid = only_worker(pool)
    job = pool.apply_async(faults.catch_soft, (stage.bell,), **(limit if where == "job" else {}))
    assert job.get(DEADLINE) == "cleaned up"
    assert only_worker(pool) == pid


@pytest.mark.every_start_method("spawn", "forkserver")
def test_a_job_is_interrupted_as_by_its_soft_limit(make_pool: Any, stage: Stage) -> None:
    """terminate(SIGUSR1) raises SoftTimeLimitExceeded inside the job (as billiard's signal)."""
    pool = make_pool(1, terminate_grace=30)
    job = pool.apply_async(faults.catch_soft, (stage.bell,))
    pid = int(stage.heard())
    assert pool.terminate_job(pid, signal.SIGUSR1)
    assert job.get(DEADLINE) == "cleaned up"
    assert pool.apply(os.getpid) == pid


def test_soft_limit_that_is_not_caught_is_the_jobs_exception(make_pool: Any, stage: Stage) -> None:
    """get() raises SoftTimeLimitExceeded, and the worker goes on."""
    pool = make_pool(1)
    pid = only_worker(pool)
    job = pool.apply_async(faults.hang, (stage.bell,), soft_timeout=0.3)
    with pytest.raises(SoftTimeLimitExceeded):
        job.get(DEADLINE)
    assert only_worker(pool) == pid


def test_worker_without_a_processor_still_says_where_it_was(
    make_pool: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine it may be a while until it runs at all."""
    monkeypatch.setattr(strikes, "_DUMP_SECONDS", 0.0)
    monkeypatch.setattr(strikes, "_WAIT_SECONDS", DEADLINE / 2)  # the busiest machine does it
    pool = make_pool(1)
    for _ in range(5):
        job = pool.apply_async(faults.hang_in_sum, (stage.bell,), timeout=0.05)
        stage.heard()
        with pytest.raises(TimeLimitExceeded) as caught:
            job.get(DEADLINE)
        assert "hang_in_sum" in str(caught.value.stack)


def test_job_that_ends_when_its_worker_is_being_killed_takes_no_neighbour_along(
    make_pool: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is sent nothing more; the job's own result, in time or not, counts."""
    monkeypatch.setattr(strikes, "_DUMP_SECONDS", 0.3)
    pool = make_pool(1)
    late = pool.apply_async(faults.wait_with_signals_blocked, (stage.bell, stage.gate), timeout=0.1)
    behind = pool.apply_async(os.getpid)
    pid = int(stage.heard())
    eventually(lambda: pool._core.supervisor.crew.everybody()[0].struck is not None)
    stage.let_go()
    assert late.get(DEADLINE) == "late"
    assert behind.get(DEADLINE) != pid


@pytest.mark.every_start_method("spawn", "forkserver")
@pytest.mark.parametrize(
    "func", [faults.swallow_soft, pytest.param(faults.hang_in_sum, marks=pytest.mark.zygote_only)]
)
def test_swallowed_soft_limit_is_followed_by_the_hard_one(
    make_pool: Any, stage: Stage, func: Any
) -> None:
    """A job that swallows its soft limit, or cannot see it in C code, meets the hard one."""
    pool = make_pool(2)
    job = pool.apply_async(func, (stage.bell,), soft_timeout=0.3, timeout=0.6)
    pid = int(stage.heard())
    error = assert_timed_out(job, 0.6)
    assert func.__name__ in error.stack
    assert_gone(pid)
    assert_full_strength(pool)


def test_soft_limit_never_hits_the_next_job(make_pool: Any) -> None:
    """Jobs without a limit that follow jobs about as long as their limit are never disturbed."""
    pool = make_pool(2)
    limited, free = [], []
    for round_ in range(150):
        seconds = 0.003 + 0.0002 * (round_ % 40)
        limited.append(pool.apply_async(work.pid_after, (seconds,), soft_timeout=0.005))
        free.append(pool.apply_async(work.busy_for, (0.002,)))
    interrupted = 0
    for job in limited:
        try:
            job.get(DEADLINE)
        except SoftTimeLimitExceeded:
            interrupted += 1
    assert interrupted, "no limit has ever fired, so that nothing was put to the test"
    assert [job.get(DEADLINE) for job in free] == ["undisturbed"] * len(free)
    assert_full_strength(pool)


def test_soft_limits_fire_at_all_in_short_jobs(make_pool: Any) -> None:
    """Each of many jobs that are far longer than their limit is interrupted."""
    pool = make_pool(2)
    jobs = [pool.apply_async(work.pid_after, (5.0,), soft_timeout=0.02) for _ in range(50)]
    for job in jobs:
        with pytest.raises(SoftTimeLimitExceeded):
            job.get(DEADLINE)
    assert_full_strength(pool)


def test_soft_limit_does_not_touch_the_results_way(make_pool: Any, stage: Stage) -> None:
    """A soft limit that passes while the result is being sent does not spoil it."""
    pool = make_pool(1)
    pid = only_worker(pool)
    jobs = [
        pool.apply_async(work.big_after, (1 << 22, 0.002 * (n % 10)), soft_timeout=0.01)
        for n in range(40)
    ]
    whole = 0
    for job in jobs:
        try:
            assert job.get(DEADLINE) == bytes(1 << 22)
            whole += 1
        except SoftTimeLimitExceeded:
            pass
    assert whole
    assert only_worker(pool) == pid


# -- who is told ------------------------------------------------------------------------------


def test_timeout_callback_is_told_of_both_limits(make_pool: Any, stage: Stage) -> None:
    """timeout_callback(soft=, timeout=) is called for the soft and for the hard limit."""
    pool = make_pool(1)
    told: list[tuple[bool, float]] = []
    both = threading.Event()

    def note(soft: bool, timeout: float) -> None:
        told.append((soft, timeout))
        if len(told) == 2:
            both.set()

    job = pool.apply_async(
        faults.swallow_soft, (stage.bell,), soft_timeout=0.3, timeout=1, timeout_callback=note
    )
    assert_timed_out(job, 1)
    assert both.wait(DEADLINE)
    assert told == [(True, 0.3), (False, 1)]


def test_error_callback_is_told_of_the_hard_limit(make_pool: Any, stage: Stage) -> None:
    """A job that has timed out is an error like any other for its error_callback."""
    told: list[BaseException] = []
    job = make_pool(1).apply_async(
        faults.hang, (stage.bell,), timeout=0.3, error_callback=told.append
    )
    assert_timed_out(job, 0.3)
    assert [type(error) for error in told] == [TimeLimitExceeded]


def test_on_timeout_set_is_told_the_limits(make_pool: Any) -> None:
    """on_timeout_set(result, soft, hard) and on_timeout_cancel(result) see a limited job."""
    told: list[tuple[Any, ...]] = []
    cancelled = threading.Event()
    pool = make_pool(
        1,
        on_timeout_set=lambda result, soft, hard: told.append((result.job_id, soft, hard)),
        on_timeout_cancel=lambda result: (told.append((result.job_id,)), cancelled.set()),
    )
    job = pool.apply_async(work.square, (3,), soft_timeout=20, timeout=30)
    assert job.get(DEADLINE) == 9
    assert cancelled.wait(DEADLINE)
    assert told == [(job.job_id, 20, 30), (job.job_id,)]


def test_limits_are_kept_by_the_clock(make_pool: Any, stage: Stage) -> None:
    """A limit of one second ends the job neither at once nor after many seconds."""
    pool = make_pool(2)
    begun = time.monotonic()
    job = pool.apply_async(faults.hang, (stage.bell,), timeout=1)
    stage.heard()
    assert_timed_out(job, 1)
    assert 1 <= time.monotonic() - begun < 5
