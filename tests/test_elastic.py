"""Pools whose workers come and go with the work: what goes wrong at the edges."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import crew_work
import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, worker_pids

from poolwatch import JobState, RetryLost, WorkerLostError

pytestmark = pytest.mark.timeout(40)


def learn_tiny(pool: Any) -> None:
    """The pool has run many tiny jobs, one after the other, with as few workers as it could."""
    for _ in range(3):
        for job in [pool.apply_async(work.square, (n,)) for n in range(300)]:
            job.get(DEADLINE)


@pytest.mark.every_start_method
def test_long_jobs_have_a_worker_each(make_pool: Any, stage: Stage) -> None:
    """From none to as many as there are jobs, however they are started; and back to the minimum."""
    pool = make_pool(4, min_processes=1, idle_timeout=0.1)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(4)]
    assert len(set(stage.heard_pids(4))) == 4
    stage.let_go(4)
    assert len({job.get(DEADLINE) for job in jobs}) == 4
    eventually(lambda: len(pool.workers) == 1)
    assert pool.processes == 4


def test_long_jobs_after_tiny_ones(make_pool: Any, stage: Stage) -> None:
    """What was learned of tiny jobs does not keep long ones waiting."""
    pool = make_pool(6, min_processes=1, idle_timeout=60)
    learn_tiny(pool)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(6)]
    assert len(set(stage.heard_pids(6))) == 6
    stage.let_go(6)
    for job in jobs:
        job.get(DEADLINE)


def test_slots_follow_what_may_be_and_not_what_is(make_pool: Any) -> None:
    """With putlocks a pool without workers lets submissions in, or it would never have any."""
    pool = make_pool(2, min_processes=0, idle_timeout=0.1, putlocks=True)
    assert bounded(lambda: pool.apply(work.square, (3,))) == 9
    eventually(lambda: pool.workers == [])
    assert bounded(lambda: pool.apply(work.square, (4,))) == 16


def test_growth_lets_waiting_submissions_in(make_pool: Any, stage: Stage) -> None:
    """With putlocks there is a slot more at once, not when some job has ended."""
    pool = make_pool(1, min_processes=0, putlocks=True)
    args = (stage.bell, stage.gate)
    first = pool.apply_async(work.ring_and_wait, args)
    stage.heard()
    more: list[Any] = []
    thread = threading.Thread(target=lambda: more.append(pool.apply_async(work.square, (5,))))
    thread.start()
    eventually(lambda: pool._core._slots._line)
    pool.grow(1)
    thread.join(DEADLINE)
    assert more[0].get(DEADLINE) == 25
    assert not first.ready()
    stage.let_go()
    first.get(DEADLINE)


def test_job_that_waits_for_another_attempt_needs_no_worker_meanwhile(
    make_pool: Any, tmp_path: Path
) -> None:
    """During the back-off the last worker may leave, and none is made for nothing; then one is."""
    policy = RetryLost(2, backoff=2.0)
    pool = make_pool(2, min_processes=0, idle_timeout=0.05, lost_worker_policy=policy)
    job = pool.apply_async(crew_work.die_once, (str(tmp_path / "died"),))
    eventually(lambda: job.state is JobState.LOST_PENDING)
    eventually(lambda: pool.workers == [])
    made = pool._core.supervisor.crew._tokens
    assert job.get(DEADLINE) == "survived"
    assert pool._core.supervisor.crew._tokens == made + 1


def test_looks_keep_their_pace(make_pool: Any) -> None:
    """However many submissions find no worker idle, one look is due at a time."""
    pool = make_pool(64, min_processes=1, idle_timeout=60)
    learn_tiny(pool)
    crew, loop = pool._core.supervisor.crew, pool._core._loop
    looks: list[float] = []
    review = crew.review

    def counted() -> None:
        looks.append(loop.time())
        review()

    crew.review = counted
    jobs = [pool.apply_async(work.square, (n,)) for n in range(5000)]
    for job in jobs:
        job.get(DEADLINE)
    # Each is at least 4 ms after the one before, but for those when a worker has come or gone.
    close = sum(after - before < 0.003 for before, after in itertools.pairwise(looks))
    assert close <= 10 + len(pool.workers)
    assert len(pool.workers) < 32


def test_quiet_elastic_pool_has_no_timer(make_pool: Any) -> None:
    """With as few workers as may be, and nothing to do, nothing looks."""
    pool = make_pool(3, min_processes=1, idle_timeout=0.05)
    assert pool.apply(work.square, (3,)) == 9
    eventually(lambda: len(pool.workers) == 1)
    eventually(lambda: len(pool._core._loop._timers) == 0)


def test_leaving_is_no_loss_while_jobs_keep_coming(make_pool: Any) -> None:
    """Submissions from many threads meet workers that are just being let go: none is forgotten."""
    pool = make_pool(3, min_processes=0, idle_timeout=0.001)
    failures: list[BaseException] = []

    def submit() -> None:
        try:
            for n in range(60):
                assert pool.apply_async(work.square, (n,)).get(DEADLINE) == n * n
        except BaseException as error:  # noqa: BLE001  (asserted below)
            failures.append(error)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * DEADLINE)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.every_start_method("spawn", "forkserver")
def test_close_waits_for_jobs_that_have_no_worker_yet(make_pool: Any) -> None:
    """Workers are made on demand after close() too, until all that was submitted is done."""
    pool = make_pool(2, min_processes=0)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(50)]
    pool.close()
    bounded(pool.join)
    assert [job.get(0) for job in jobs] == [n * n for n in range(50)]


def test_close_of_a_pool_without_workers(make_pool: Any) -> None:
    """There is nobody to wait for."""
    pool = make_pool(2, min_processes=0)
    assert pool.did_start_ok()
    pool.close()
    bounded(pool.join)


def test_recycled_workers_come_back_only_if_needed(make_pool: Any) -> None:
    """maxtasksperchild: every job runs, nothing counts as a loss, in the end nobody is there."""
    pool = make_pool(2, min_processes=0, idle_timeout=0.05, maxtasksperchild=2)
    assert pool.map(work.square, range(30), chunksize=1) == [n * n for n in range(30)]
    eventually(lambda: pool.workers == [])


def test_death_with_nothing_to_do_is_not_replaced(make_pool: Any, stage: Stage) -> None:
    """Nor is the guilty job's worker, beyond the minimum."""
    pool = make_pool(3, min_processes=1, idle_timeout=60)
    args = (stage.bell, stage.gate)
    jobs = [pool.apply_async(work.ring_and_wait, args) for _ in range(3)]
    pids = stage.heard_pids(3)
    for pid in pids[:2]:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(worker_pids(pool)) == 1)
    stage.let_go(1)
    ends = [job.wait(DEADLINE) or job for job in jobs]
    assert sum(job.successful() for job in ends) == 1
    for job in ends:
        if not job.successful():
            with pytest.raises(WorkerLostError):
                job.get(0)
    made = pool._core.supervisor.crew._tokens
    assert pool.apply(work.square, (3,)) == 9
    assert pool._core.supervisor.crew._tokens == made


def test_initializer_that_fails_breaks_the_pool_when_work_comes(make_pool: Any) -> None:
    """Not before, and not never: the tries are counted as in any pool."""
    pool = make_pool(2, min_processes=0, initializer=work.fail, initargs=("no",))
    assert pool.workers == []
    job = pool.apply_async(work.square, (3,))
    with pytest.raises(Exception, match="failed to boot"):
        job.get(DEADLINE)
