"""Pool.restart: workers from the present program, no job lost, nothing outdated run."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, run_script, worker_pids

from poolwatch import WorkerLostError, launchers
from poolwatch.exceptions import PoolBroken

pytestmark = pytest.mark.timeout(40)


def renewed(pool: Any, before: list[int], count: int) -> None:
    """Wait until none of the workers before is left, and so many new ones are idle."""
    eventually(lambda: not set(worker_pids(pool)) & set(before))
    eventually(lambda: [worker.phase for worker in pool.workers] == ["idle"] * count)


def test_functions_that_are_defined_around_a_restart_are_never_outdated() -> None:
    """Neither while both kinds of workers are there nor afterwards; see the script."""
    assert run_script("redefined_between_restarts.py") == "done\n"


def test_there_is_always_a_worker(make_pool: Any) -> None:
    """Old workers stay until new ones are up: jobs are done while the new ones boot."""
    pool = make_pool(2)
    renewed(pool, [], 2)
    before = worker_pids(pool)
    launcher = pool._core._launchers._all[-1]
    pool.restart()
    zygote = pool._core._launchers._all[-1].helper_pids()[-1]
    assert pool._core._launchers._all[-1] is not launcher
    os.kill(zygote, signal.SIGSTOP)  # no new worker can be made
    try:
        for n in range(50):
            assert pool.apply_async(work.square, (n,)).get(DEADLINE) == n * n
    finally:
        os.kill(zygote, signal.SIGCONT)
    renewed(pool, before, 2)


def test_restarts_in_quick_succession(make_pool: Any, stage: Stage) -> None:
    """The last one counts; a job from before the first ends in its old worker."""
    pool = make_pool(2)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    busy = int(stage.heard())
    before = worker_pids(pool)
    for _ in range(4):
        pool.restart()
    more = [pool.apply_async(work.square, (n,)) for n in range(100)]
    assert [other.get(DEADLINE) for other in more] == [n * n for n in range(100)]
    assert not job.ready()
    stage.let_go()
    assert job.get(DEADLINE) == busy
    renewed(pool, before, 2)
    eventually(lambda: sum(not other.is_gone() for other in pool._core._launchers._all) == 1)


@pytest.mark.every_start_method("spawn", "forkserver")
def test_worker_that_is_killed_in_a_restart(make_pool: Any, stage: Stage) -> None:
    """An old one with a job: that job is lost, as ever; the number of workers is right."""
    pool = make_pool(3)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    busy = int(stage.heard())
    before = worker_pids(pool)
    pool.restart()
    os.kill(busy, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        job.get(DEADLINE)
    renewed(pool, before, 3)


def test_elastic_pool_restarts(make_pool: Any, stage: Stage) -> None:
    """As many new workers as there were; jobs that wait meanwhile are done; then back to none."""
    pool = make_pool(3, min_processes=0, idle_timeout=0.2)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(3)]
    old = stage.heard_pids(3)
    waiting = [pool.apply_async(work.square, (n,)) for n in range(20)]
    pool.restart()
    assert [job.get(DEADLINE) for job in waiting] == [n * n for n in range(20)]
    assert not any(job.ready() for job in jobs)
    stage.let_go(3)
    assert sorted(job.get(DEADLINE) for job in jobs) == sorted(old)
    eventually(lambda: pool.workers == [])
    pool.restart()
    assert pool.apply(work.square, (4,)) == 16


def test_restart_that_fails_changes_nothing(
    make_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process to be had: an error at the call, and the pool goes on with its workers."""
    pool = make_pool(2)
    renewed(pool, [], 2)
    before = worker_pids(pool)

    def refuse(*args: object) -> None:
        raise BlockingIOError("no process")

    monkeypatch.setattr(launchers, "make_launcher", refuse)
    with pytest.raises(BlockingIOError):
        pool.restart()
    assert pool.apply(work.square, (3,)) == 9
    assert worker_pids(pool) == before


def test_pool_that_ends_while_new_helpers_are_made(
    make_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end as well, and restart() says what a closed pool says."""
    pool = make_pool(1)
    make_launcher = launchers.make_launcher

    def slowly(*args: Any) -> Any:
        launcher = make_launcher(*args)
        pool.terminate()  # by another thread, as it were
        return launcher

    monkeypatch.setattr(launchers, "make_launcher", slowly)
    with pytest.raises(ValueError, match="not running"):
        pool.restart()


def test_new_workers_that_do_not_boot_break_the_pool(make_pool: Any) -> None:
    """As in the beginning; an initializer may have come to fail since."""
    flag: list[bool] = []

    def initialize() -> None:
        if flag:
            raise LookupError("not any more")

    pool = make_pool(1, initializer=initialize, max_boot_failures=3)
    assert pool.apply(work.square, (2,)) == 4
    assert pool.did_start_ok()
    flag.append(True)
    pool.restart()
    eventually(lambda: pool._core.is_closed)
    with pytest.raises(PoolBroken, match="failed to boot"):
        pool.apply(work.square, (2,))
    assert not pool.did_start_ok()
    pool.maintain_pool()


def test_many_threads_submit_and_restart(make_pool: Any) -> None:
    """Every job has its result."""
    pool = make_pool(2)
    stop = threading.Event()

    def restart() -> None:
        for _ in range(8):
            pool.restart()
            pool.apply(work.square, (1,))
        stop.set()

    results: list[bool] = []

    def submit() -> None:
        while not stop.is_set():
            results.append(pool.apply_async(work.square, (7,)).get(DEADLINE) == 49)

    threads = [threading.Thread(target=call) for call in (restart, submit, submit)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    assert results
    assert all(results)
    bounded(lambda: pool.apply(work.square, (1,)))
