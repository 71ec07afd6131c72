"""Arguments, results and exceptions that cannot be sent, cannot be read, or kill on their way."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

import faults
import pytest
import work
from helpers import (
    DEADLINE,
    Stage,
    assert_full_strength,
    bounded,
    eventually,
    kill_and_wait,
    only_worker,
    outcome,
)

from poolwatch import JobDecodingError, MaybeEncodingError, PoolwatchError, WorkerLostError

pytestmark = pytest.mark.timeout(40)
MEGABYTE = 1 << 20


# -- big ones, and kills while they travel ----------------------------------------------------


@pytest.mark.every_start_method
@pytest.mark.parametrize(
    "moment", ["pickling", pytest.param("sending", marks=pytest.mark.zygote_only)]
)
def test_worker_killed_while_its_big_result_is_read(
    make_pool: Any, stage: Stage, moment: str
) -> None:
    """Killed while 200 MB leave the worker: the whole result or a loss, never half a result."""
    size = 200 * MEGABYTE
    pool = make_pool(2)
    job = pool.apply_async(faults.return_big, (stage.bell, size))
    pid = int(stage.heard())
    if moment == "sending":
        eventually(lambda: job.ready() or "sending" in [w.phase for w in pool.workers])
    kill_and_wait(pid)
    end = outcome(job)
    assert getattr(end, "signal", None) == signal.SIGKILL or end == bytes(size)
    assert_full_strength(pool)


@pytest.mark.every_start_method("spawn")
@pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.zygote_only), 50 * MEGABYTE])
def test_result_that_kills_the_worker_while_it_is_pickled(make_pool: Any, size: int) -> None:
    """A death inside the pickling of a result is a loss of that job, and of no other."""
    pool = make_pool(2)
    guilty = pool.apply_async(faults.return_dies_while_pickled, (size,))
    after = [pool.apply_async(work.square, (n,)) for n in range(10)]
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        guilty.get(DEADLINE)
    assert [job.get(DEADLINE) for job in after] == [n * n for n in range(10)]
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_worker_killed_before_it_read_its_big_arguments(make_pool: Any, stage: Stage) -> None:
    """150 MB for a stopped worker block nobody, and move to the next worker when it is killed."""
    payload = bytes(150 * MEGABYTE)
    pool = make_pool(1)
    pid = only_worker(pool)
    os.kill(pid, signal.SIGSTOP)
    job = bounded(lambda: pool.apply_async(work.size_of, (payload,)))
    kill_and_wait(pid)
    assert job.get(DEADLINE) == len(payload)
    assert job.attempts == 1
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_worker_killed_while_it_receives_big_arguments(make_pool: Any) -> None:
    """A kill at the moment of sending 150 MB: the job moves, or is lost if it had begun."""
    payload = bytes(150 * MEGABYTE)
    pool = make_pool(2)
    assert_full_strength(pool)
    victims = [worker.pid for worker in pool.workers]
    job = pool.apply_async(work.size_of, (payload,))
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    end = outcome(job)
    assert getattr(end, "signal", None) == signal.SIGKILL or end == len(payload)
    assert job.attempts == 1
    assert_full_strength(pool)


@pytest.mark.every_start_method("spawn")
def test_worker_killed_while_it_unpickles_arguments(make_pool: Any, stage: Stage) -> None:
    """A job has begun when its arguments are being loaded: a death in there is its loss."""
    pool = make_pool(2)
    job = pool.apply_async(work.size_of, (faults.HangsWhileLoading(stage.bell),))
    kill_and_wait(int(stage.heard()))
    with pytest.raises(WorkerLostError, match="SIGKILL") as caught:
        job.get(DEADLINE)
    assert caught.value.postmortem.attempt == 1
    assert_full_strength(pool)


def test_arguments_that_kill_their_worker_are_guilty(make_pool: Any) -> None:
    """Arguments that kill while they load cost their own job one attempt, and no other's."""
    pool = make_pool(1)
    guilty = pool.apply_async(work.size_of, (faults.DiesWhileLoading(),))
    after = [pool.apply_async(work.square, (n,)) for n in range(10)]
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        guilty.get(DEADLINE)
    assert guilty.attempts == 1
    assert [job.get(DEADLINE) for job in after] == [n * n for n in range(10)]
    assert {job.attempts for job in after} == {1}


# -- what cannot be pickled or unpickled ------------------------------------------------------


def assert_worker_goes_on(pool: Any, call: Callable[[], object]) -> None:
    """The same worker does the jobs before and after the call."""
    pid = only_worker(pool)
    call()
    assert only_worker(pool) == pid
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_exception_that_does_not_unpickle(make_pool: Any) -> None:
    """The caller gets an error that names the exception, and nothing else comes to harm."""
    pool = make_pool(1)

    def call() -> None:
        job = pool.apply_async(faults.raise_pickles_only)
        with pytest.raises(PoolwatchError, match="PicklesOnlyError"):
            job.get(DEADLINE)

    assert_worker_goes_on(pool, call)


@pytest.mark.every_start_method
def test_result_that_does_not_pickle(make_pool: Any) -> None:
    """A result that cannot be pickled is a MaybeEncodingError that says what and why."""
    pool = make_pool(1)

    def call() -> None:
        job = pool.apply_async(faults.return_refuses_to_pickle)
        with pytest.raises(MaybeEncodingError, match="refuses to be pickled") as caught:
            job.get(DEADLINE)
        assert "RefusesToPickle" in str(caught.value)

    assert_worker_goes_on(pool, call)


def test_exception_that_does_not_pickle(make_pool: Any) -> None:
    """An exception that cannot be pickled is a MaybeEncodingError that names it."""
    pool = make_pool(1)

    def call() -> None:
        job = pool.apply_async(faults.raise_refuses_to_pickle)
        with pytest.raises(MaybeEncodingError, match="RefusesToPickleError"):
            job.get(DEADLINE)

    assert_worker_goes_on(pool, call)


def test_result_that_does_not_unpickle(make_pool: Any) -> None:
    """A result that cannot be unpickled in the parent fails its own get(), every time."""
    pool = make_pool(1)

    def call() -> None:
        job = pool.apply_async(faults.return_refuses_to_load)
        for _ in range(2):
            with pytest.raises(PoolwatchError, match="refuses to load"):
                job.get(DEADLINE)

    assert_worker_goes_on(pool, call)


def test_result_that_does_not_unpickle_reaches_the_error_callback(make_pool: Any) -> None:
    """With callbacks, the same error goes to the error callback."""
    told: list[BaseException] = []
    job = make_pool(1).apply_async(
        faults.return_refuses_to_load, callback=print, error_callback=told.append
    )
    with pytest.raises(PoolwatchError, match="refuses to load"):
        job.get(DEADLINE)
    assert "refuses to load" in str(told[0])


@pytest.mark.every_start_method
def test_arguments_that_do_not_unpickle(make_pool: Any) -> None:
    """Arguments that cannot be unpickled are a JobDecodingError with the reason."""
    pool = make_pool(1)

    def call() -> None:
        job = pool.apply_async(work.size_of, (faults.RefusesToLoad(),))
        with pytest.raises(JobDecodingError, match="refuses to load"):
            job.get(DEADLINE)

    assert_worker_goes_on(pool, call)


def test_arguments_that_do_not_pickle(make_pool: Any) -> None:
    """Arguments that cannot be pickled fail their handle, as in multiprocessing."""
    pool = make_pool(1)

    def call() -> None:
        job = pool.apply_async(work.size_of, (faults.RefusesToPickle(),))
        expected = (TypeError, pickle.PicklingError, PoolwatchError)
        with pytest.raises(expected, match="refuses to be pickled"):
            job.get(DEADLINE)

    assert_worker_goes_on(pool, call)


def test_one_bad_item_of_a_map_says_so(make_pool: Any) -> None:
    """map() raises the encoding error of an item, and the pool goes on."""
    pool = make_pool(2)
    job = pool.map_async(faults.refuse_item, range(6), chunksize=1)
    with pytest.raises(MaybeEncodingError, match="refuses to be pickled"):
        job.get(DEADLINE)
    assert_full_strength(pool)
