"""Jobs that tamper with their own worker: the worker may pay for it, the pool does not."""

from __future__ import annotations

import contextlib
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, Stage, assert_full_strength, assert_gone, bounded, only_worker

from poolwatch import MaybeEncodingError, TimeLimitExceeded, WorkerLostError

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


def test_thread_that_a_job_leaves_behind_does_not_hold_up_the_end(make_pool: Any) -> None:
    """close() and join() come to an end although a job has left a thread that does not."""
    pool = make_pool(1)
    pid = only_worker(pool)
    assert pool.apply_async(faults.leave_a_thread).get(DEADLINE) == pid
    assert only_worker(pool) == pid
    pool.close()
    bounded(pool.join)
    assert_gone(pid)


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


def test_output_of_a_job_that_crashes_is_not_lost(capfd: Any, make_pool: Any) -> None:
    """What earlier jobs of a worker have printed is out before a later one kills it."""
    pool = make_pool(1)
    assert pool.apply_async(print, ("from the job",)).get(DEADLINE) is None
    with pytest.raises(WorkerLostError):
        pool.apply_async(faults.exit_at_once, (3,)).get(DEADLINE)
    assert "from the job" in capfd.readouterr().out
