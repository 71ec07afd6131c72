"""What any process pool does: calls, maps, callbacks, initializers, recycling."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from typing import Any

import pytest
import work
from helpers import (
    DEADLINE,
    Stage,
    assert_full_strength,
    bounded,
    eventually,
    lines,
    worker_pids,
)

from poolwatch import ApplyResult, AsyncResult, RemoteTraceback

pytestmark = pytest.mark.timeout(30)
MEGABYTE = 1 << 20


# -- apply ------------------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_apply_returns_the_result(make_pool: Any) -> None:
    """apply() with positional and keyword arguments runs in a worker and returns its result."""
    pool = make_pool(2)
    assert bounded(lambda: pool.apply(work.add, (3,), {"right": 4})) == 7
    assert bounded(lambda: pool.apply(os.getpid)) in worker_pids(pool)
    assert os.getpid() not in worker_pids(pool)


@pytest.mark.every_start_method("spawn", "forkserver")
def test_exception_of_the_job_keeps_class_and_traceback(make_pool: Any) -> None:
    """get() raises the job's own exception, caused by the traceback of the worker."""
    pool = make_pool(2)
    with pytest.raises(ValueError, match="own") as caught:
        bounded(lambda: pool.apply(work.fail, ("own",)))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "work.py" in str(caught.value.__cause__)
    assert "in fail" in str(caught.value.__cause__)


def test_many_jobs_come_back_right(make_pool: Any) -> None:
    """Two thousand jobs each give their own result to their own handle."""
    pool = make_pool(2)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(2000)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(2000)]
    eventually(lambda: {worker.phase for worker in pool.workers} == {"idle"})


@pytest.mark.every_start_method("spawn", "forkserver")
def test_handle_tells_how_its_job_stands(make_pool: Any, stage: Stage) -> None:
    """ready(), accepted(), pid and attempts before, while and after the job runs."""
    pool = make_pool(1)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    assert isinstance(job, ApplyResult)
    assert AsyncResult is ApplyResult
    pid = int(stage.heard())
    assert not job.ready()
    eventually(job.accepted)
    assert job.pid == pid
    assert job.worker_pids() == [pid]
    (worker,) = pool.workers
    assert worker.phase == "running"
    assert "ring_and_wait" in worker.job
    assert worker.pid == pid
    stage.let_go()
    job.wait(DEADLINE)
    assert job.ready()
    assert job.successful()
    assert job.attempts == 1
    assert not job.terminated
    assert job.worker_lost is None


def test_job_behind_a_long_one_does_not_wait_for_it(make_pool: Any, stage: Stage) -> None:
    """With one worker busy for long, all short jobs run on the other."""
    pool = make_pool(2)
    for job in [pool.apply_async(work.square, (n,)) for n in range(200)]:
        job.get(DEADLINE)  # short jobs: the pool now sends several ahead
    jobs = []
    for _ in range(50):
        jobs.append(pool.apply_async(work.square, (3,)))
    long = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    jobs += [pool.apply_async(work.square, (3,)) for _ in range(50)]
    stage.heard()
    assert [job.get(DEADLINE) for job in jobs] == [9] * 100
    assert not long.ready()
    stage.let_go()
    assert long.get(DEADLINE) > 0


# -- callbacks --------------------------------------------------------------------------------


@pytest.mark.every_start_method("spawn", "forkserver")
def test_callbacks_are_called_before_the_job_is_ready(make_pool: Any) -> None:
    """callback, error_callback and accept_callback have been called when get() returns."""
    pool = make_pool(2)
    told: list[Any] = []
    accepted: list[tuple[int, float]] = []
    begun = time.monotonic()
    good = pool.apply_async(
        work.square,
        (3,),
        callback=told.append,
        error_callback=print,
        accept_callback=lambda pid, at: accepted.append((pid, at)),
    )
    assert good.get(DEADLINE) == 9
    assert told == [9]
    ((pid, at),) = accepted
    assert pid in worker_pids(pool)
    assert begun <= at <= time.monotonic()
    bad = pool.apply_async(work.fail, ("own",), callback=print, error_callback=told.append)
    with pytest.raises(ValueError, match="own") as caught:
        bad.get(DEADLINE)
    assert told == [9, caught.value]


def test_accept_callback_comes_while_the_job_runs(make_pool: Any, stage: Stage) -> None:
    """accept_callback is called when the job has begun, not when it has ended."""
    pool = make_pool(1)
    accepted = threading.Event()
    job = pool.apply_async(
        work.wait_at, (stage.gate,), accept_callback=lambda pid, at: accepted.set()
    )
    assert accepted.wait(DEADLINE)
    assert not job.ready()
    stage.let_go()
    assert job.get(DEADLINE) is None


def test_callbacks_come_in_the_order_of_the_results(make_pool: Any) -> None:
    """With one worker, callbacks are called in the order of the jobs."""
    pool = make_pool(1)
    told: list[int] = []
    jobs = [pool.apply_async(work.add, (n,), callback=told.append) for n in range(300)]
    assert [job.get(DEADLINE) for job in jobs] == list(range(300))
    assert told == list(range(300))


# -- map --------------------------------------------------------------------------------------


@pytest.mark.every_start_method("spawn", "forkserver")
def test_map_keeps_the_order(make_pool: Any) -> None:
    """map() returns the results in input order, whatever the chunksize."""
    pool = make_pool(2)
    expected = [n * n for n in range(100)]
    for chunksize in (None, 1, 7, 1000):
        found = bounded(lambda size=chunksize: pool.map(work.square, range(100), size))
        assert found == expected


def test_map_of_an_iterator_and_of_nothing(make_pool: Any) -> None:
    """Any iterable will do; an empty one gives an empty list at once."""
    pool = make_pool(2)
    assert bounded(lambda: pool.map(work.square, iter([1, 2, 3]))) == [1, 4, 9]
    assert bounded(lambda: pool.map(work.square, [])) == []
    job = pool.map_async(work.square, [])
    job.wait(DEADLINE)
    assert job.ready()
    assert job.get(0) == []


def test_map_async_calls_back_with_the_list(make_pool: Any) -> None:
    """callback gets the whole list, error_callback the first error."""
    pool = make_pool(2)
    told: list[Any] = []
    job = pool.map_async(work.square, range(10), 3, callback=told.append, error_callback=print)
    assert job.get(DEADLINE) == [n * n for n in range(10)]
    assert told == [job.get(0)]
    job = pool.map_async(work.size_of, [[], 3], 1, callback=print, error_callback=told.append)
    with pytest.raises(TypeError, match="int"):
        job.get(DEADLINE)
    assert isinstance(told[1], TypeError)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_raises_the_first_error_in_input_order(
    make_pool: Any, stage: Stage, chunksize: int
) -> None:
    """An error of a later item that comes earlier does not hide the one before it."""
    pool = make_pool(2)
    late = ("late", stage.bell, stage.gate)
    items = [("fine",), late, ("fine",), ("fine",), ("early", stage.bell), ("fine",)]
    job = pool.map_async(work.play, items, chunksize)
    assert {stage.heard(), stage.heard()} == {"late waits", "early fails"}
    assert not job.ready()
    stage.let_go()
    with pytest.raises(ValueError, match="late"):
        job.get(DEADLINE)


# -- initializer and recycling ----------------------------------------------------------------


@pytest.mark.every_start_method
def test_initializer_runs_once_in_every_worker(make_pool: Any, tmp_path: Any) -> None:
    """Each worker runs the initializer before its first job, with the arguments given."""
    path = str(tmp_path / "begun")
    pool = make_pool(2, initializer=work.note_pid, initargs=(path,))
    assert_full_strength(pool)
    assert pool.map_async(work.square, range(50)).get(DEADLINE) == [n * n for n in range(50)]
    assert sorted(map(int, lines(path))) == worker_pids(pool)


def test_initializer_gets_queues_and_locks_by_inheritance(make_pool: Any) -> None:
    """What only inheritance can give, queues and locks, reaches the workers in initargs."""
    context = multiprocessing.get_context("fork")
    queue, lock = context.SimpleQueue(), context.Lock()
    pool = make_pool(
        2, initializer=work.keep, initargs=(queue, lock, RefusesEverything(), lambda: 7)
    )
    with lock:
        job = pool.apply_async(work.put_under_lock, ("hello",))
        job.wait(0.3)
        assert not job.ready()
    assert job.get(DEADLINE) == 7
    assert queue.get() == "hello"
    queue.close()


class RefusesEverything:
    """Can be inherited, and nothing else."""

    def __reduce__(self) -> Any:
        raise TypeError("initargs were pickled")


@pytest.mark.every_start_method("spawn", "forkserver")
def test_recycled_workers_lose_nothing(make_pool: Any) -> None:
    """maxtasksperchild: no worker does more jobs than that, and no job notices."""
    count = 20
    pool = make_pool(2, maxtasksperchild=4)
    jobs = [pool.apply_async(os.getpid) for _ in range(count)]
    done = [job.get(DEADLINE) for job in jobs]
    assert max(done.count(pid) for pid in done) <= 4
    assert {job.attempts for job in jobs} == {1}
    assert {job.worker_lost for job in jobs} == {None}
    assert_full_strength(pool)


def test_recycling_during_a_map_is_no_loss(make_pool: Any) -> None:
    """A map goes on while its workers are replaced after every job."""
    pool = make_pool(2, maxtasksperchild=1)
    assert pool.map_async(work.square, range(60), 2).get(DEADLINE) == [n * n for n in range(60)]
    assert_full_strength(pool)
