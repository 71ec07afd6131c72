"""flush() and discard(): jobs and outcomes that nobody wants any more."""

from __future__ import annotations

from typing import Any

import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, kill_and_wait, one_batch, only_worker

from poolwatch import JobCancelled, JobState, RetryLost, Terminated, events

pytestmark = pytest.mark.timeout(30)


def hold(pool: Any, stage: Stage, **options: Any) -> Any:
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate), **options)
    stage.heard()
    return job


def test_flush_drops_what_has_not_begun(make_pool: Any, stage: Stage) -> None:
    """Waiting jobs end with JobCancelled and no callback; the running one goes on."""
    pool = make_pool(1)
    told: list[Any] = []
    running = hold(pool, stage, callback=told.append)
    waiting = [
        pool.apply_async(work.square, (n,), callback=told.append, error_callback=told.append)
        for n in range(3)
    ]
    assert pool.flush() == 3
    assert pool.flush() == 0
    for job in waiting:
        with pytest.raises(JobCancelled):
            job.get(DEADLINE)
        assert job.state is JobState.CANCELLED
    assert told == []
    stage.let_go()
    pid = running.get(DEADLINE)
    assert told == [pid]
    assert pool.apply(work.square, (3,)) == 9


def test_flush_recalls_what_was_sent_ahead(make_pool: Any, stage: Stage) -> None:
    """Jobs that a busy worker holds and has not begun are dropped too."""
    pool = make_pool(1)
    only_worker(pool)
    with one_batch(pool):
        first = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
        jobs = [pool.apply_async(work.square, (n,)) for n in range(100)]
    stage.heard()
    assert pool.flush() == 100
    assert all(job.state is JobState.CANCELLED for job in jobs)
    stage.let_go()
    first.get(DEADLINE)


def test_flush_drops_the_rest_of_maps(make_pool: Any, stage: Stage) -> None:
    """Items that have not begun are cancelled, without the map's callbacks; an imap reads on."""
    pool = make_pool(1)
    told: list[Any] = []
    hold(pool, stage)
    result = pool.map_async(
        work.square, range(6), 2, callback=told.append, error_callback=told.append
    )
    squares = pool.imap(work.square, range(6), buffersize=3)
    assert pool.flush() == 6
    assert [type(value) for _, value in result.outcomes(DEADLINE)] == [JobCancelled] * 6
    stage.let_go()
    outcomes = bounded(lambda: list(squares.outcomes()))
    assert [succeeded for succeeded, _ in outcomes] == [False] * 3 + [True] * 3
    assert pool.apply(work.square, (3,)) == 9
    assert told == []


def test_flush_leaves_a_job_that_has_begun_once(make_pool: Any, stage: Stage) -> None:
    """A lost job that waits for another attempt has begun, and is run again."""
    pool = make_pool(1, lost_worker_policy=RetryLost(2))
    job = hold(pool, stage)
    kill_and_wait(job.pid)
    eventually(lambda: job.worker_lost)
    assert pool.flush() == 0
    stage.let_go()
    assert job.get(DEADLINE) > 0


def test_discard_lets_go_of_the_outcome(make_pool: Any, stage: Stage) -> None:
    """The job goes on, nobody is called back, and what comes is dropped."""
    pool = make_pool(1)
    told: list[Any] = []
    job = hold(pool, stage, callback=told.append, error_callback=told.append)
    job.discard()
    stage.let_go()
    job.wait(DEADLINE)
    assert job.ready()
    assert job.state is JobState.SUCCEEDED
    with pytest.raises(JobCancelled, match="discarded"):
        job.get(0)
    assert pool.apply(work.square, (2,)) == 4
    assert told == []
    assert job._job._outcome is None


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_discard_after_the_end_frees_the_value(make_pool: Any, size: int) -> None:
    """A value that has come is dropped at once, a big one too."""
    pool = make_pool(1)
    job = pool.apply_async(bytes, (size,))
    job.wait(DEADLINE)
    job.discard()
    with pytest.raises(JobCancelled):
        job.get(0)
    before = pool.apply_async(bytes, (size,))
    before.discard()
    before.wait(DEADLINE)
    with pytest.raises(JobCancelled):
        before.get(0)


def test_callbacks_propagate_is_checked_and_changes_nothing(make_pool: Any) -> None:
    """What a callback raises is reported, whatever its class; the pool goes on."""
    pool = make_pool(1)
    seen: list[Any] = []
    pool.listen(seen.append)
    job = pool.apply_async(
        work.square, (2,), callback=lambda value: [][value], callbacks_propagate=(IndexError,)
    )
    assert job.get(DEADLINE) == 4
    assert pool.apply(work.square, (3,)) == 9
    eventually(lambda: [event for event in seen if isinstance(event, events.HookFailed)])
    with pytest.raises(TypeError, match="callbacks_propagate"):
        pool.apply_async(work.square, (2,), callbacks_propagate=("IndexError",))


def test_accept_callback_may_terminate_its_job(make_pool: Any, stage: Stage) -> None:
    """From inside, by process id; it comes before error_callback."""
    pool = make_pool(1)
    order: list[str] = []

    def accepted(pid: int, when: float) -> None:
        order.append("accepted")
        assert pool.terminate_job(pid)

    job = pool.apply_async(
        work.ring_and_wait,
        (stage.bell, stage.gate),
        accept_callback=accepted,
        error_callback=lambda error: order.append(type(error).__name__),
    )
    with pytest.raises(Terminated):
        job.get(DEADLINE)
    assert order == ["accepted", "Terminated"]


def test_timeout_callback_comes_before_error_callback(make_pool: Any, stage: Stage) -> None:
    """With the limit that has passed."""
    order: list[Any] = []
    job = make_pool(1).apply_async(
        work.wait_at,
        (stage.gate,),
        timeout=0.1,
        timeout_callback=lambda soft, timeout: order.append((soft, timeout)),
        error_callback=lambda error: order.append(type(error).__name__),
    )
    job.wait(DEADLINE)
    assert order == [(False, 0.1), "TimeLimitExceeded"]
