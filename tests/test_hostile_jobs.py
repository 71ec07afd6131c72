"""Jobs that tamper with their own worker: the worker may pay for it, the pool does not."""

from __future__ import annotations

import contextlib
import queue
from asyncio import CancelledError
from multiprocessing import TimeoutError
from pathlib import Path
from typing import Any

import faults
import pytest
import work
from helpers import (
    DEADLINE,
    Stage,
    assert_full_strength,
    assert_gone,
    bounded,
    lines,
    only_worker,
)

from poolwatch import MaybeEncodingError, TimeLimitExceeded, WorkerLostError, crew
from poolwatch.events import Trouble

pytestmark = pytest.mark.timeout(40)


@pytest.mark.parametrize("func", [faults.close_every_descriptor, faults.scribble_on_descriptors])
def test_job_that_ruins_its_workers_descriptors(make_pool: Any, func: Any) -> None:
    """A job without descriptors, or one that writes rubbish into them, harms its worker only.

    Its own result may have reached the pool before the worker fell over the damage.
    """
    pool = make_pool(2)
    guilty = pool.apply_async(func)
    with contextlib.suppress(WorkerLostError):
        assert guilty.get(DEADLINE) is None
    jobs = [pool.apply_async(work.square, (n,)) for n in range(20)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(20)]
    assert_full_strength(pool)


def test_job_that_kills_the_zygote(make_pool: Any) -> None:
    """A job that kills the process which made its worker is lost, and the pool goes on."""
    pool = make_pool(2)
    with pytest.raises(WorkerLostError, match="zygote"):
        pool.apply_async(faults.kill_parent).get(DEADLINE)
    assert_full_strength(pool)


def test_job_that_blocks_all_signals_meets_its_limit(make_pool: Any, stage: Stage) -> None:
    """Neither a signal mask nor handlers of its own save a job from the hard limit."""
    pool = make_pool(1)
    job = pool.apply_async(faults.hang_with_signals_blocked, (stage.bell,), timeout=0.5)
    pid = int(stage.heard())
    with pytest.raises(TimeLimitExceeded):
        job.get(DEADLINE)
    assert_gone(pid)
    assert_full_strength(pool)


# -- threads that jobs leave behind -----------------------------------------------------------


def test_join_waits_for_the_threads_of_jobs(make_pool: Any, stage: Stage, tmp_path: Path) -> None:
    """As in multiprocessing: what a job has left to a thread is done."""
    path = tmp_path / "note"
    pool = make_pool(1)
    pool.apply_async(faults.leave_a_thread_with_work, (stage.gate, str(path))).get(DEADLINE)
    pool.close()
    with pytest.raises(TimeoutError):
        pool.join(0.1)
    stage.let_go()
    bounded(pool.join)
    assert lines(path) == ["finished"]


def test_thread_that_holds_the_end_up_is_told_of(
    make_pool: Any, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event names the worker that does not leave, and what to do about it."""
    monkeypatch.setattr(crew, "_LONG_LEAVE", 0.1)
    troubles: queue.SimpleQueue[Trouble] = queue.SimpleQueue()
    pool = make_pool(1)
    pool.listen(troubles.put, Trouble)
    job = pool.apply_async(faults.leave_a_thread_with_work, (stage.gate, str(tmp_path / "note")))
    pid = job.get(DEADLINE)
    pool.close()
    text = troubles.get(timeout=DEADLINE).text
    assert f"(pid {pid}) has been leaving for 0.1 s" in text
    assert "leave_timeout" in text
    stage.let_go()
    bounded(pool.join)


def test_thread_that_never_ends_can_be_bounded(make_pool: Any) -> None:
    """With leave_timeout close() and join() come to an end all the same."""
    pool = make_pool(1, leave_timeout=0.2)
    pid = pool.apply_async(faults.leave_a_thread).get(DEADLINE)
    assert only_worker(pool) == pid
    pool.close()
    bounded(pool.join)
    assert_gone(pid)


def test_workers_that_are_recycled_do_not_pile_up(
    make_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pool goes on there is a bound by default; it is no death at work."""
    monkeypatch.setattr(crew, "_LEAVE_SECONDS", 0.2)
    pool = make_pool(1, maxtasksperchild=1, max_restarts=0)
    for _ in range(3):
        assert_gone(pool.apply_async(faults.leave_a_thread).get(DEADLINE))
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9


def test_recycled_worker_is_not_killed_any_more_once_the_pool_is_done(
    make_pool: Any, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads have as much time as those of the others then."""
    monkeypatch.setattr(crew, "_LEAVE_SECONDS", 2.0)
    monkeypatch.setattr(crew, "_LONG_LEAVE", 2.5)
    troubles: queue.SimpleQueue[Trouble] = queue.SimpleQueue()
    path = tmp_path / "note"
    pool = make_pool(1, maxtasksperchild=1)
    pool.listen(troubles.put, Trouble)
    pool.apply_async(faults.leave_a_thread_with_work, (stage.gate, str(path))).get(DEADLINE)
    pool.close()
    assert "has been leaving" in troubles.get(timeout=DEADLINE).text
    stage.let_go()
    bounded(pool.join)
    assert lines(path) == ["finished"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, StopIteration, BaseException])
def test_unusual_exceptions_reach_the_caller(make_pool: Any, error: type[BaseException]) -> None:
    """Exceptions that mean something to the interpreter are the job's own like any other."""
    pool = make_pool(1)
    pid = only_worker(pool)
    with pytest.raises(error, match="own"):
        pool.apply_async(faults.raise_it, (error, "own")).get(DEADLINE)
    assert only_worker(pool) == pid


def test_result_too_deep_to_pickle(make_pool: Any) -> None:
    """A result that exceeds the recursion limit while it is pickled fails its job alone."""
    pool = make_pool(1)
    pid = only_worker(pool)
    with pytest.raises(MaybeEncodingError, match=r"(?i)recursion"):
        pool.apply_async(faults.deeply_nested).get(DEADLINE)
    assert only_worker(pool) == pid


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, CancelledError, faults.OwnError])
def test_result_that_leaves_while_it_is_pickled(make_pool: Any, error: Any) -> None:
    """Whatever is raised in there costs the one result, alone or in a chunk, and no worker."""
    pool = make_pool(1)
    pid = only_worker(pool)
    with pytest.raises(error, match="from within __reduce__"):
        pool.apply_async(faults.LeavesWhilePickled, (error,)).get(DEADLINE)
    outcomes = pool.map_async(faults.leave_at_three, [(n, error) for n in range(8)], 8).outcomes()
    assert [value for succeeded, value in outcomes if succeeded] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(outcomes[3][1], error)
    assert only_worker(pool) == pid


def test_error_that_leaves_while_it_is_pickled(make_pool: Any) -> None:
    """It is told as text."""
    pool = make_pool(1)
    pid = only_worker(pool)
    with pytest.raises(MaybeEncodingError, match="LeavesWhilePickledError"):
        pool.apply_async(faults.raise_leaves_while_pickled).get(DEADLINE)
    assert only_worker(pool) == pid


def test_output_of_a_job_that_crashes_is_not_lost(capfd: Any, make_pool: Any) -> None:
    """What earlier jobs of a worker have printed is out before a later one kills it."""
    pool = make_pool(1)
    assert pool.apply_async(print, ("from the job",)).get(DEADLINE) is None
    with pytest.raises(WorkerLostError):
        pool.apply_async(faults.exit_at_once, (3,)).get(DEADLINE)
    assert "from the job" in capfd.readouterr().out
