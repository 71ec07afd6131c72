"""as_completed() and wait(): several results at a time, of any pools."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from typing import Any

import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, kill_and_wait

import poolwatch
from poolwatch import as_completed, wait

pytestmark = pytest.mark.timeout(30)


def held(pool: Any, stage: Stage) -> Any:
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    return job


def test_results_come_as_they_end(make_pool: Any, stage: Stage) -> None:
    """The held job comes last, from two pools, maps among them; nobody starts a thread for it."""
    one, other = make_pool(2), make_pool(1)
    last = held(one, stage)
    quick = [one.apply_async(work.square, (2,)), other.map_async(work.square, range(3))]
    threads = threading.active_count()
    results = as_completed([last, *quick, last])
    assert {id(next(results)), id(next(results))} == {id(job) for job in quick}
    assert threading.active_count() == threads
    stage.let_go()
    assert bounded(lambda: list(results)) == [last]


def test_a_result_given_twice_comes_once(make_pool: Any) -> None:
    """Also through two handles; losses and failures come like values."""
    pool = make_pool(1)
    jobs = [pool.apply_async(work.fail, ("x",)), pool.apply_async(os.kill, (0, 0))]
    doubled = [*jobs, *jobs]
    assert sorted(map(id, bounded(lambda: list(as_completed(doubled))))) == sorted(map(id, jobs))
    assert list(as_completed([])) == []


def test_death_is_an_end(make_pool: Any, stage: Stage) -> None:
    """A job whose worker dies is yielded when that is known."""
    pool = make_pool(1)
    job = held(pool, stage)
    results = as_completed([job])
    kill_and_wait(job.pid)
    assert bounded(lambda: next(results)) is job
    with pytest.raises(poolwatch.WorkerLostError):
        job.get(0)


def test_time_out_says_how_many(make_pool: Any, stage: Stage) -> None:
    """TimeoutError after what has ended; the jobs go on, and their bells are taken down."""
    pool = make_pool(1)
    ended = pool.apply_async(work.square, (2,))
    ended.wait(DEADLINE)
    job = held(pool, stage)
    results = as_completed([ended, job], timeout=0.05)
    assert next(results) is ended
    with pytest.raises(poolwatch.TimeoutError, match=r"1 \(of 2\)"):
        next(results)
    assert not job._job._waiters
    stage.let_go()
    assert job.get(DEADLINE) > 0


def test_dropped_iterator_leaves_no_bells(make_pool: Any, stage: Stage) -> None:
    """An iterator that is closed half-way is forgotten by the results."""
    pool = make_pool(1)
    ended = pool.map_async(work.square, range(3))
    ended.wait(DEADLINE)
    job = held(pool, stage)
    results = as_completed([ended, job])
    assert next(results) is ended
    assert job._job._waiters
    results.close()  # type: ignore[attr-defined]
    assert not job._job._waiters
    stage.let_go()
    job.get(DEADLINE)


def test_callbacks_come_before_the_end(make_pool: Any) -> None:
    """A job counts as ended when its callback has run."""
    pool = make_pool(1)
    seen: list[int] = []
    job = pool.apply_async(work.square, (3,), callback=seen.append)
    assert bounded(lambda: list(as_completed([job]))) == [job]
    assert seen == [9]


def test_wrong_results_are_refused_at_the_call() -> None:
    """What is no result raises TypeError, before anything is waited for."""
    with pytest.raises(TypeError, match="results"):
        as_completed([concurrent.futures.Future()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="timeout"):
        as_completed([], timeout="soon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="return_when"):
        wait([], return_when="SOMETIMES")


def test_wait_for_the_first_the_first_error_and_all(make_pool: Any, stage: Stage) -> None:
    """The three conditions of concurrent.futures.wait, and its time-out."""
    pool = make_pool(2)
    job = held(pool, stage)
    good, bad = pool.apply_async(work.square, (1,)), pool.apply_async(work.fail, ("x",))
    done, rest = bounded(lambda: wait([job, good], return_when=concurrent.futures.FIRST_COMPLETED))
    assert (done, rest) == ({good}, {job})
    done, rest = bounded(lambda: wait([job, bad], return_when=concurrent.futures.FIRST_EXCEPTION))
    assert (done, rest) == ({bad}, {job})
    done, rest = bounded(lambda: wait([job, good], timeout=0.05))
    assert (done, rest) == ({good}, {job})
    stage.let_go()
    assert bounded(lambda: wait([job, good, bad])) == ({job, good, bad}, set())


def test_end_of_the_pool_ends_the_wait(make_pool: Any, stage: Stage) -> None:
    """terminate() lets everybody go, whatever they wait for."""
    pool = make_pool(1)
    results = [held(pool, stage), pool.map_async(work.square, range(9))]
    threading.Thread(
        target=lambda: (eventually(lambda: bool(results[0]._job._waiters)), pool.terminate())
    ).start()
    assert len(bounded(lambda: list(as_completed(results)))) == 2


def test_many_results(make_pool: Any) -> None:
    """Five thousand short jobs, each yielded once."""
    pool = make_pool(2)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(5000)]
    seen = bounded(lambda: list(as_completed(jobs)))
    assert len(seen) == len(set(seen)) == 5000
