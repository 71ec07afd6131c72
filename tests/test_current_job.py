"""What a job can ask about itself: current_job() and worker_id()."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import child_work
import pytest
from helpers import DEADLINE, Stage, eventually, outcome, script_environment

from poolwatch import RetryLost, current_job, worker_id


def test_outside_of_a_worker_there_is_none() -> None:
    """The parent runs no job and has no place."""
    assert current_job() is None
    assert worker_id() is None


@pytest.mark.every_start_method
def test_job_knows_itself(make_pool: Any) -> None:
    """Id, function, attempt, pool, worker, place and pid are those that the parent knows."""
    pool = make_pool(1, name="known")
    for args in ((), (b"x" * 1_000_000,)):  # the second travels in a memory file
        job = pool.apply_async(child_work.who_am_i, args)
        found = job.get(DEADLINE)
        assert (found.id, found.function, found.attempt) == (job.job_id, "who_am_i", 1)
        assert (found.pool, found.worker_id) == ("known", 0)
        assert (found.worker, found.pid) == (pool.workers[0].name, job.pid)


def test_any_callable_has_a_name(make_pool: Any) -> None:
    """An object that is called is known by its class."""
    pool = make_pool(1)
    assert pool.apply(child_work.Callable()).function == "Callable"


def test_items_of_a_chunk_see_the_chunks_job(make_pool: Any) -> None:
    """Items that travel together are one job."""
    pool = make_pool(1)
    found = pool.map(child_work.who_am_i, range(4), 4)
    assert {job.function for job in found} == {"who_am_i"}
    assert len({job.id for job in found}) == 1


def test_job_with_settings_knows_itself(make_pool: Any) -> None:
    """Settings are no obstacle."""
    pool = make_pool(1, contextvars=[child_work.tenant], usage="memory")
    job = pool.apply_async(child_work.who_am_i, env={"POOLWATCH_A": "1"})
    assert job.get(DEADLINE).id == job.job_id


def test_threads_of_a_job_see_it(make_pool: Any) -> None:
    """The whole process works for the job."""
    assert make_pool(1).apply(child_work.who_is_in_a_thread).function == "who_is_in_a_thread"


def test_thread_that_outlives_its_job_sees_none_between_jobs(make_pool: Any, stage: Stage) -> None:
    """No job runs then, although the worker is the same."""
    pool = make_pool(1)
    pool.apply(child_work.WatchingThread.start, (stage.gate, stage.bell))
    eventually(lambda: pool.workers[0].phase == "idle")
    stage.let_go()
    assert stage.heard() == "seen"
    assert pool.apply(child_work.WatchingThread.what_it_saw) == [None]


def test_process_that_a_job_forks_is_no_worker(make_pool: Any) -> None:
    """Neither job nor place."""
    assert make_pool(1).apply(child_work.who_is_in_a_fork) == "(None, None)"


@pytest.mark.parametrize("context", ["zygote", "fork"])
def test_in_nested_pools_the_innermost_counts(make_pool: Any, context: str) -> None:
    """Also where the inner worker was forked from the stack of the outer job."""
    job = make_pool(1, name="outer").apply_async(child_work.who_is_in_a_nested_pool, (context,))
    inner, outer, of_initializer = job.get(DEADLINE)
    assert (inner.pool, inner.function) == ("inner", "who_am_i")
    assert (outer.pool, outer.function) == ("outer", "who_is_in_a_nested_pool")
    assert of_initializer == [None, 0]


@pytest.mark.every_start_method
def test_initializer_has_a_place_and_no_job(make_pool: Any) -> None:
    """worker_id() works before the first job."""
    pool = make_pool(1, child_work.note_what_the_initializer_sees)
    assert pool.apply(child_work.what_the_initializer_saw) == [None, 0]


def test_attempts_are_counted(make_pool: Any, tmp_path: Path) -> None:
    """A job that is started again after a loss knows it."""
    pool = make_pool(1, contextvars=[child_work.tenant])
    job = pool.apply_async(
        child_work.crash_the_first_time,
        (str(tmp_path / "flag"),),
        env={"POOLWATCH_A": "1"},
        lost_worker_policy=RetryLost(2),
    )
    found = job.get(DEADLINE)[2]
    assert (found.attempt, found.id) == (2, job.job_id)


def test_places_are_small_numbers_that_replacements_take_over(make_pool: Any, stage: Stage) -> None:
    """Three workers have places 0 to 2, and again after one died and jobs recycled others."""
    pool = make_pool(3)
    for round_ in range(3):
        jobs = [
            pool.apply_async(child_work.ring_place_and_wait, (stage.bell, stage.gate))
            for _ in range(3)
        ]
        assert sorted(stage.heard() for _ in jobs) == ["0", "1", "2"], f"round {round_}"
        stage.let_go(3)
        assert sorted(job.get(DEADLINE) for job in jobs) == [0, 1, 2]
        outcome(pool.apply_async(child_work.die))


def test_recycled_workers_keep_to_the_places(make_pool: Any) -> None:
    """Every job has a worker of its own, and none has a place beyond the last."""
    pool = make_pool(2, maxtasksperchild=1)
    jobs = [pool.apply_async(child_work.who_am_i) for _ in range(12)]
    found = [job.get(DEADLINE) for job in jobs]
    assert {job.worker_id for job in found} <= {0, 1}
    assert len({job.pid for job in found}) == 12


def test_state_of_the_child_needs_nothing_of_the_parents_side() -> None:
    """The module imports what runs in workers only."""
    code = (
        "import sys, types; package = types.ModuleType('poolwatch'); "
        f"package.__path__ = [{str(Path(child_work.poolwatch.__file__).parent)!r}]; "
        "sys.modules['poolwatch'] = package; import poolwatch.worker.current; "
        "print(sorted(name for name in sys.modules if name.startswith('poolwatch.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=script_environment(), capture_output=True, text=True
    )
    assert "poolwatch.worker.current" in done.stdout, done.stderr
    assert "poolwatch.supervisor" not in done.stdout
