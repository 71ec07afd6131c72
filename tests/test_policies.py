"""Policies decide what becomes of a job whose worker died: when it fails, when it runs again."""

from __future__ import annotations

import pickle
import signal
import time
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, Stage, assert_full_strength, chain, eventually, kill_and_wait, lines

from poolwatch import (
    ByCause,
    Fail,
    FailFast,
    GracePeriod,
    LostWorkerPolicy,
    PoisonJobError,
    PoolBroken,
    Quarantine,
    RestartFreqExceeded,
    Retry,
    RetryLost,
    WorkerLostError,
    events,
)

pytestmark = pytest.mark.timeout(40)


def assert_lost(job: Any) -> WorkerLostError:
    with pytest.raises(WorkerLostError) as caught:
        job.get(DEADLINE)
    return caught.value


def seconds_until_lost(pool: Any, stage: Stage, **options: Any) -> float:
    """How long after the death of its worker a job is given up."""
    job = pool.apply_async(faults.hang, (stage.bell,), **options)
    pid = int(stage.heard())
    begun = time.monotonic()
    kill_and_wait(pid)
    assert_lost(job)
    return time.monotonic() - begun


# -- FailFast and GracePeriod -----------------------------------------------------------------


def test_loss_is_delivered_at_once_by_default(make_pool: Any, stage: Stage) -> None:
    """Without a policy nobody waits: billiard's ten seconds do not pass, nor anything near."""
    assert seconds_until_lost(make_pool(2), stage) < 3


def test_grace_period_delays_the_loss(make_pool: Any, stage: Stage) -> None:
    """GracePeriod(1) gives the job up one second after the death; the pool works meanwhile."""
    pool = make_pool(2, lost_worker_policy=GracePeriod(1.0))
    job = pool.apply_async(faults.hang, (stage.bell,))
    pid = int(stage.heard())
    begun = time.monotonic()
    kill_and_wait(pid)
    assert_full_strength(pool)
    assert not job.ready() or time.monotonic() - begun > 1
    assert_lost(job)
    assert 0.9 < time.monotonic() - begun < DEADLINE


@pytest.mark.parametrize("where", ["pool", "job"])
def test_lost_worker_timeout_is_short_for_a_grace_period(
    make_pool: Any, stage: Stage, where: str
) -> None:
    """lost_worker_timeout=1, for the pool or for one job, delays the loss by as many seconds."""
    options = {"lost_worker_timeout": 1.0}
    pool = make_pool(2, **(options if where == "pool" else {}))
    assert 0.9 < seconds_until_lost(pool, stage, **(options if where == "job" else {})) < DEADLINE


def test_lost_worker_timeout_of_zero_means_zero(make_pool: Any, stage: Stage) -> None:
    """0 for one job goes before the pool's hour, and the loss is delivered at once."""
    pool = make_pool(2, lost_worker_timeout=3600)
    assert seconds_until_lost(pool, stage, lost_worker_timeout=0) < DEADLINE


def test_grace_period_ends_with_the_pool(make_pool: Any, stage: Stage) -> None:
    """A job that waits for its verdict does not hold up terminate(), and is resolved by it."""
    pool = make_pool(1, lost_worker_policy=GracePeriod(3600))
    job = pool.apply_async(faults.hang, (stage.bell,))
    kill_and_wait(int(stage.heard()))
    assert_full_strength(pool)
    pool.terminate()
    job.wait(DEADLINE)
    assert job.ready()
    assert not job.successful()


# -- RetryLost and Quarantine -----------------------------------------------------------------


@pytest.mark.every_start_method("spawn", "forkserver")
def test_retry_runs_the_job_again(make_pool: Any, tmp_path: Any) -> None:
    """A job that dies twice succeeds at its third attempt, and its handle counts them."""
    path = str(tmp_path / "begun")
    pool = make_pool(2, lost_worker_policy=RetryLost(max_attempts=3, backoff=0.01))
    job = pool.apply_async(faults.die_until, (path, 2))
    assert job.get(DEADLINE) == 3
    assert job.attempts == 3
    assert len(set(lines(path))) == 3  # three workers


def test_retry_gives_up(make_pool: Any, tmp_path: Any) -> None:
    """After max_attempts the loss is delivered, with the number of the last attempt."""
    path = str(tmp_path / "begun")
    pool = make_pool(2, lost_worker_policy=RetryLost(max_attempts=3, backoff=0.01))
    job = pool.apply_async(faults.note_and_kill_self, (path,))
    error = assert_lost(job)
    assert error.postmortem.attempt == job.attempts == 3
    assert len(lines(path)) == 3
    assert_full_strength(pool)


def test_retry_does_not_rerun_jobs_that_fail_by_themselves(make_pool: Any) -> None:
    """The job's own exception is no loss: it is not tried again."""
    pool = make_pool(1, lost_worker_policy=RetryLost(max_attempts=3, backoff=0.01))
    job = pool.apply_async(work.fail, ("own",))
    with pytest.raises(ValueError, match="own"):
        job.get(DEADLINE)
    assert job.attempts == 1


def test_policy_of_the_job_goes_before_the_pools(make_pool: Any, tmp_path: Any) -> None:
    """lost_worker_policy= of apply_async() holds for that job alone."""
    path = str(tmp_path / "begun")
    pool = make_pool(2, lost_worker_policy=RetryLost(max_attempts=2, backoff=0.01))
    once = pool.apply_async(faults.note_and_kill_self, (path,), lost_worker_policy=FailFast())
    assert assert_lost(once).postmortem.attempt == 1
    assert len(lines(path)) == 1
    twice = pool.apply_async(faults.note_and_kill_self, (path,))
    assert assert_lost(twice).postmortem.attempt == 2


def test_quarantine_refuses_a_call_that_kills(make_pool: Any, tmp_path: Any) -> None:
    """A call that has killed two workers is not run a third time; other calls are."""
    path, other = str(tmp_path / "begun"), str(tmp_path / "other")
    pool = make_pool(2, lost_worker_policy=Quarantine(after=2))
    for _ in range(2):
        assert_lost(pool.apply_async(faults.note_and_kill_self, (path,)))
    with pytest.raises(PoisonJobError) as caught:
        pool.apply_async(faults.note_and_kill_self, (path,)).get(DEADLINE)
    assert "note_and_kill_self" in str(caught.value)
    assert len(lines(path)) == 2
    assert not isinstance(
        assert_lost(pool.apply_async(faults.note_and_kill_self, (other,))), PoisonJobError
    )
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    assert_full_strength(pool)


# -- ByCause and policies of the user's own ---------------------------------------------------


@pytest.mark.parametrize("make", [RetryLost, Quarantine])
def test_counts_are_whole_numbers(make: Any) -> None:
    """The error names the argument."""
    with pytest.raises(TypeError, match=r"^(max_attempts|after) must be a whole number, not True$"):
        make(True)
    with pytest.raises(ValueError, match=r"^(max_attempts|after) must be at least 1: 0$"):
        make(0)


@pytest.mark.parametrize("policies", [RetryLost(), None, [signal.SIGKILL]])
def test_by_cause_wants_a_mapping(policies: Any) -> None:
    """A bare policy is refused by the name of the argument."""
    with pytest.raises(TypeError, match=r"^policies must map causes to policies, not "):
        ByCause(policies)


def test_by_cause_chooses_by_signal_and_exit_code(make_pool: Any, tmp_path: Any) -> None:
    """Jobs killed by SIGKILL are tried again, those that exit with 3 or crash are not."""
    path = str(tmp_path / "begun")
    again = RetryLost(max_attempts=2, backoff=0.01)
    pool = make_pool(2, lost_worker_policy=ByCause({signal.SIGKILL: again, 3: FailFast()}))
    assert pool.apply_async(faults.die_until, (path, 1)).get(DEADLINE) == 2
    for func, argument in ((faults.exit_at_once, 3), (faults.kill_self, signal.SIGSEGV)):
        assert assert_lost(pool.apply_async(func, (argument,))).postmortem.attempt == 1


class RetryOnce(LostWorkerPolicy):
    """A policy such as a user would write."""

    def on_lost(self, job: Any, postmortem: Any) -> Fail | Retry:
        return Retry(after=0) if postmortem.attempt < 2 else Fail(after=0)


class Broken(LostWorkerPolicy):
    def on_lost(self, job: Any, postmortem: Any) -> Fail | Retry:
        raise ZeroDivisionError("the policy's own fault")


class Confused(LostWorkerPolicy):
    def on_lost(self, job: Any, postmortem: Any) -> Any:
        return "retry, please"


def test_policy_of_the_users_own(make_pool: Any, tmp_path: Any) -> None:
    """Five lines decide: the job is tried once more, then it is lost."""
    path = str(tmp_path / "begun")
    pool = make_pool(2, lost_worker_policy=RetryOnce())
    assert pool.apply_async(faults.die_until, (path, 1)).get(DEADLINE) == 2
    assert assert_lost(pool.apply_async(faults.exit_at_once, (3,))).postmortem.attempt == 2


@pytest.mark.parametrize("policy", [Broken(), Confused()], ids=["raises", "answers nonsense"])
def test_policy_that_fails_is_not_the_end(make_pool: Any, policy: LostWorkerPolicy) -> None:
    """A policy that raises, or answers nonsense, is replaced by FailFast, and an event says so."""
    pool = make_pool(2, lost_worker_policy=policy)
    told: list[events.Event] = []
    pool.listen(told.append)
    for _ in range(2):
        job = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
        assert "SIGKILL" in str(assert_lost(job))
    assert_full_strength(pool)
    eventually(lambda: [type(event) for event in told].count(events.HookFailed) == 2)


@pytest.mark.parametrize(
    "policy",
    [
        FailFast(),
        GracePeriod(2.0),
        RetryLost(max_attempts=3, backoff=0.5),
        Quarantine(after=2),
        ByCause({signal.SIGKILL: RetryLost(max_attempts=2, backoff=0.5), 3: FailFast()}),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_policies_can_be_pickled(policy: LostWorkerPolicy) -> None:
    """Shipped policies travel between processes."""
    assert type(pickle.loads(pickle.dumps(policy))) is type(policy)


# -- how often workers may die ----------------------------------------------------------------


def test_deaths_at_work_never_break_the_pool(make_pool: Any) -> None:
    """Without max_restarts, thirty deaths in a row cost thirty jobs and nothing else."""
    pool = make_pool(2)
    for _ in range(30):
        assert_lost(pool.apply_async(faults.kill_self, (signal.SIGKILL,)))
    assert_full_strength(pool)


@pytest.mark.every_start_method("spawn", "forkserver")
def test_more_restarts_than_allowed_break_the_pool(make_pool: Any) -> None:
    """Past max_restarts the jobs get RestartFreqExceeded, and so do later ones."""
    pool = make_pool(2, max_restarts=3, max_restart_freq=600)
    lost, broken = 0, None
    while broken is None:
        assert lost <= 8
        try:
            assert_lost(pool.apply_async(faults.kill_self, (signal.SIGKILL,)))
            lost += 1
        except PoolBroken as error:
            broken = error
    assert lost >= 3
    assert any(isinstance(cause, RestartFreqExceeded) for cause in chain(broken))
    with pytest.raises(PoolBroken):
        pool.apply_async(work.square, (3,)).get(DEADLINE)
    pool.terminate()


def test_as_many_restarts_as_allowed_do_not_break_the_pool(make_pool: Any) -> None:
    """Up to max_restarts within max_restart_freq seconds are made good."""
    pool = make_pool(2, max_restarts=3, max_restart_freq=600)
    for _ in range(3):
        assert_lost(pool.apply_async(faults.kill_self, (signal.SIGKILL,)))
    assert_full_strength(pool)
