"""Workers that cannot come up: initializers that fail, locks that are held, forks that fail."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import faults
import psutil
import pytest
import work
from helpers import (
    DEADLINE,
    Stage,
    assert_full_strength,
    bounded,
    chain,
    lines,
    run_script,
    script_command,
    worker_pids,
)

from poolwatch import BootError, PoolBroken, WorkerLostError
from poolwatch.events import PoolBroke, Trouble

pytestmark = pytest.mark.timeout(40)


# -- initializers -----------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_initializer_that_raises_is_what_jobs_get(make_pool: Any, tmp_path: Any) -> None:
    """The initializer's exception is the cause of the jobs' error, and attempts are bounded."""
    path = tmp_path / "boots"
    pool = make_pool(
        2, initializer=faults.initializer_raises, initargs=(str(path),), max_boot_failures=3
    )
    with pytest.raises((BootError, PoolBroken)) as caught:
        pool.apply_async(work.square, (3,)).get(DEADLINE)
    causes = chain(caught.value)
    assert any(isinstance(c, LookupError) and "no such configuration" in str(c) for c in causes)
    assert 3 <= len(lines(path)) <= 3 + 2  # two are under way when the third has failed
    with pytest.raises((BootError, PoolBroken)):
        pool.apply_async(work.square, (4,)).get(DEADLINE)


@pytest.mark.every_start_method
def test_initializer_that_kills_its_worker_is_bounded(make_pool: Any, tmp_path: Any) -> None:
    """Workers that die at birth break the pool after a bounded number, and the jobs say how."""
    path = tmp_path / "boots"
    pool = make_pool(
        2, initializer=faults.initializer_dies, initargs=(str(path),), max_boot_failures=3
    )
    jobs = [pool.apply_async(work.square, (n,)) for n in range(5)]
    for job in jobs:
        with pytest.raises((BootError, PoolBroken)) as caught:
            job.get(DEADLINE)
        assert any("SIGKILL" in str(cause) for cause in chain(caught.value))
    assert 3 <= len(lines(path)) <= 3 + 2


def test_ten_boot_failures_are_the_default_bound(make_pool: Any, tmp_path: Any) -> None:
    """Without an option, about ten workers in a row may fail before the pool is broken."""
    path = tmp_path / "boots"
    pool = make_pool(2, initializer=faults.initializer_raises, initargs=(str(path),))
    with pytest.raises((BootError, PoolBroken)):
        pool.apply_async(work.square, (3,)).get(DEADLINE)
    assert 10 <= len(lines(path)) <= 10 + 2


@pytest.mark.every_start_method
def test_initializer_that_raises_at_first_is_tried_again(make_pool: Any, tmp_path: Any) -> None:
    """Fewer boot failures than the bound are made good, without any job's noticing."""
    path = str(tmp_path / "boots")
    pool = make_pool(2, initializer=faults.initializer_raises_at_first, initargs=(path, 4))
    jobs = [pool.apply_async(work.square, (n,)) for n in range(10)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(10)]
    assert_full_strength(pool)


# -- locks that are held while a worker is replaced -------------------------------------------


@contextlib.contextmanager
def held_by_another_thread(lock: Any) -> Iterator[None]:
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            release.wait(DEADLINE * 2)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(DEADLINE)
    try:
        yield
    finally:
        release.set()
        holder.join()


class BlockingHandler(logging.Handler):
    """A log handler that gets stuck in its first record until it is told to leave."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.leave = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        self.leave.wait(DEADLINE * 2)


@pytest.mark.every_start_method("fork")
def test_replacement_while_another_thread_holds_the_logging_lock(make_pool: Any) -> None:
    """Neither the parent nor the new worker gets stuck on a lock that was held at the fork."""
    pool = make_pool(2)
    assert_full_strength(pool)
    with held_by_another_thread(logging._lock):
        for pid in worker_pids(pool):
            os.kill(pid, signal.SIGKILL)
        job = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            job.get(DEADLINE)
        assert pool.apply_async(work.log_something).get(DEADLINE) == "logged"
        assert_full_strength(pool)


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_plain_fork_waits_for_the_logging_lock_and_nothing_else_does(
    make_pool: Any, start_method: str
) -> None:
    """A fork of the parent needs the lock; losses, limits and the other worker's jobs do not."""
    pool = make_pool(2)
    assert_full_strength(pool)
    with held_by_another_thread(logging._lock):
        job = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            job.get(DEADLINE)
        jobs = [pool.apply_async(work.square, (n,)) for n in range(20)]
        assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(20)]
    assert_full_strength(pool)


@pytest.mark.every_start_method
def test_initializer_that_hangs_can_be_bounded(make_pool: Any, tmp_path: Any) -> None:
    """Workers that are at it for longer than initializer_timeout are killed: failures to boot."""
    path = tmp_path / "boots"
    pool = make_pool(
        1,
        initializer=faults.initializer_hangs,
        initargs=(str(path),),
        max_boot_failures=2,
        initializer_timeout=0.2,
    )
    with pytest.raises(BootError, match=r"its initializer took longer than 0\.2 s"):
        pool.apply_async(work.square, (3,)).get(DEADLINE)
    assert len(lines(path)) == 2


@pytest.mark.every_start_method
def test_initializer_may_take_longer_than_boot_timeout(make_pool: Any, stage: Stage) -> None:
    """By default it has all the time in the world, as in multiprocessing; somebody is told."""
    troubles: queue.SimpleQueue[Trouble] = queue.SimpleQueue()
    pool = make_pool(
        1,
        initializer=faults.initializer_waits,
        initargs=(stage.bell, stage.gate),
        boot_timeout=5,
    )
    pool.listen(troubles.put, Trouble)
    job = pool.apply_async(work.square, (3,))
    stage.heard()
    trouble = troubles.get(timeout=DEADLINE)
    assert re.search(r"at its initializer for 5 s", trouble.text)
    assert not job.ready()
    stage.let_go()
    assert job.get(DEADLINE) == 9
    assert pool.stats().boot_failures == 0


def test_initializer_that_hangs_later_is_a_failure_to_boot(make_pool: Any, tmp_path: Any) -> None:
    """The first worker came up; that its successors hang breaks the pool, and the jobs end."""
    path = tmp_path / "boots"
    pool = make_pool(
        1,
        initializer=faults.initializer_hangs_later,
        initargs=(str(path),),
        maxtasksperchild=1,
        max_boot_failures=3,
        initializer_timeout=0.2,
    )
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    with pytest.raises(BootError, match="3 workers in a row failed to boot"):
        pool.apply_async(work.square, (3,)).get(DEADLINE)
    assert len(lines(path)) == 1 + 3


def test_initializer_that_fails_and_does_not_end(make_pool: Any, tmp_path: Any) -> None:
    """A thread that it has left holds the process; it counts as a failure all the same."""
    path = tmp_path / "boots"
    pool = make_pool(
        1,
        initializer=faults.initializer_fails_and_leaves_a_thread,
        initargs=(str(path),),
        max_boot_failures=2,
    )
    with pytest.raises(BootError, match="no such configuration"):
        pool.apply_async(work.square, (3,)).get(DEADLINE)
    assert len(lines(path)) == 2


def test_workers_that_are_not_waited_for_are_no_failures(make_pool: Any, stage: Stage) -> None:
    """A pool that is done ends in peace, whatever its other workers are still at."""
    broken: list[PoolBroke] = []
    pool = make_pool(
        2,
        initializer=faults.initializer_waits,
        initargs=(stage.bell, stage.gate),
        max_boot_failures=1,
    )
    pool.listen(broken.append, PoolBroke)
    stage.heard_pids(2)
    stage.let_go()
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    pool.close()
    bounded(pool.join)
    assert broken == []
    assert pool.stats().boot_failures == 0


def test_stopped_zygote_is_replaced(make_pool: Any) -> None:
    """A zygote that was stopped from outside does not keep the pool from replacing workers."""
    pool = make_pool(2, boot_timeout=2)
    assert_full_strength(pool)
    pids = worker_pids(pool)
    os.kill(psutil.Process(pids[0]).ppid(), signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    assert_full_strength(pool)


def test_log_handler_that_blocks_does_not_hold_up_the_pool(make_pool: Any) -> None:
    """While a handler is stuck with the report of a loss, losses and results go on."""
    pool = make_pool(2)
    handler = BlockingHandler()
    logger = logging.getLogger("poolwatch")
    logger.addHandler(handler)
    try:
        for _ in range(3):
            job = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
            with pytest.raises(WorkerLostError, match="SIGKILL"):
                job.get(DEADLINE)
        assert handler.entered.wait(DEADLINE)
        assert_full_strength(pool)
    finally:
        handler.leave.set()
        logger.removeHandler(handler)


# -- forks that fail --------------------------------------------------------------------------


def unprivileged() -> tuple[str, ...]:
    """What to put before a command so that the kernel counts its processes; skips without it."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    caps = "-all,+dac_override,+dac_read_search"  # the interpreter may lie where only root looks
    prefix = (
        setpriv or "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        f"--inh-caps={caps}",
        f"--ambient-caps={caps}",
        f"--bounding-set={caps}",
    )
    probe = [*prefix, *script_command("fork_limit.py")[:1], "-c", ""]
    if setpriv is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("root has no limit of processes here, and setpriv cannot leave it")
    return prefix


@pytest.mark.every_start_method
def test_pool_recovers_when_processes_can_be_made_again(start_method: str) -> None:
    """RLIMIT_NPROC: the pool says that it cannot fork, works on with the rest, and recovers."""
    out = run_script("fork_limit.py", start_method, "NPROC", prefix=unprivileged())
    assert out.splitlines()[-1] == "recovered"


@pytest.mark.every_start_method
def test_pool_recovers_when_files_can_be_opened_again(start_method: str) -> None:
    """RLIMIT_NOFILE: the pool says that it has no descriptors, works on, and recovers."""
    out = run_script("fork_limit.py", start_method, "NOFILE")
    assert out.splitlines()[-1] == "recovered"
