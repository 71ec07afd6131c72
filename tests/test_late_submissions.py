"""Submissions that come while their pool ends: each is refused, or its job ends. Nobody hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import work
from helpers import DEADLINE, bounded, eventually, only_worker

from poolwatch import Pool, PoolBroken, ProcessPoolExecutor, Terminated
from poolwatch.aio import AsyncPool
from poolwatch.events import PoolBroke
from poolwatch.exceptions import PoolFull
from poolwatch.job import NO_OPTIONS, Job

pytestmark = pytest.mark.timeout(60)


class Meanwhile:
    """An argument; something happens while it is pickled."""

    def __init__(self, happen: Callable[[], object]) -> None:
        self._happen = happen

    def __reduce__(self) -> Any:
        self._happen()
        return int, (3,)


@contextlib.contextmanager
def stopped_worker(pool: Pool) -> Iterator[None]:
    """The pool's only worker stands still, so that it does not leave when it is told to."""
    pid = only_worker(pool)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def until_dismissed(pool: Pool) -> None:
    """Closes the pool, and returns when its workers have been told to leave."""
    pool.close()
    eventually(lambda: not pool._core.dispatcher.accepting)


def until_terminated(pool: Pool) -> None:
    pool._core.terminate()
    eventually(lambda: not pool._core.dispatcher.accepting)


def until_broken(pool: Pool) -> None:
    (worker,) = pool.workers
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: not pool._core.dispatcher.accepting)


def apply(pool: Pool, late: Meanwhile) -> object:
    return pool.apply_async(work.square, (late,))


def ranked(pool: Pool, late: Meanwhile) -> object:
    return pool.apply_async(work.square, (late,), priority=1)


def mapped(pool: Pool, late: Meanwhile) -> object:
    return pool.map_async(work.square, [late], 1)


def in_chunks(pool: Pool, late: Meanwhile) -> object:
    return pool.map_async(work.square, [late, 2], 2)


def submit(pool: Pool, late: Meanwhile) -> object:
    return ProcessPoolExecutor.from_pool(pool).submit(work.square, late)


def awaited(pool: Pool, late: Meanwhile) -> object:
    async def main() -> object:
        return await AsyncPool.from_pool(pool).apply(work.square, late)

    return asyncio.run(main())


def awaited_map(pool: Pool, late: Meanwhile) -> object:
    async def main() -> object:
        return await AsyncPool.from_pool(pool).map(work.square, [late], 1)

    return asyncio.run(main())


WAYS = [apply, ranked, mapped, in_chunks, submit, awaited, awaited_map]
ENDS = [until_dismissed, until_terminated, until_broken]


@pytest.mark.parametrize("options", [{}, {"max_pending": 2}], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("call", WAYS)
def test_submission_that_comes_too_late_is_refused(
    make_pool: Any, call: Any, end: Any, options: dict[str, Any]
) -> None:
    """The pool was open when it began, and ends while the argument is pickled."""
    pool = make_pool(1, max_restarts=0, **options)
    late = Meanwhile(lambda: end(pool))
    refusals = RuntimeError if call is submit else ValueError
    with stopped_worker(pool), pytest.raises(PoolBroken if end is until_broken else refusals):
        bounded(lambda: call(pool, late))
    bounded(pool.join)
    assert pool._core.dispatcher.unfinished == 0


def test_submission_that_is_interrupted_when_it_comes_too_late(make_pool: Any) -> None:
    """A signal handler raises before it is taken back: the job ends, and so does the pool."""
    pool = make_pool(1)
    core = pool._core
    call = core.snapshot.encode(work.square, (3,), {})
    with stopped_worker(pool):
        until_dismissed(pool)
        job = Job(1_000, "square", call[0], call[1], NO_OPTIONS, None)
        core.dispatcher.submit(job)
    bounded(pool.join)
    assert job.ready
    assert job.state.final


def test_job_that_nobody_takes_back_does_not_wait_for_the_workers(make_pool: Any) -> None:
    """A worker that does not leave keeps nobody waiting for a job that no worker will run."""
    pool = make_pool(1)
    core = pool._core
    call = core.snapshot.encode(work.square, (3,), {})
    with stopped_worker(pool):
        until_dismissed(pool)
        job = Job(1_000, "square", call[0], call[1], NO_OPTIONS, None)
        core.dispatcher.submit(job)
        handle = core.handle_of(job)
        with pytest.raises(Terminated, match="the pool has ended"):
            handle.get(DEADLINE)
    bounded(pool.join)


def test_worker_that_dies_when_it_has_been_told_to_leave(make_pool: Any) -> None:
    """A pool that is done is not broken by it, whatever max_restarts says."""
    broken: list[PoolBroke] = []
    pool = make_pool(1, max_restarts=0)
    pool.listen(broken.append, PoolBroke)
    with stopped_worker(pool):
        until_dismissed(pool)
        os.kill(pool.workers[0].pid, signal.SIGKILL)
        bounded(pool.join)
    assert broken == []


@pytest.mark.parametrize("unordered", [False, True])
def test_imap_that_has_begun_runs_to_its_end(make_pool: Any, unordered: bool) -> None:
    """Its input holds the pool open, also when its first item has not been pickled yet."""
    pool = make_pool(1)
    imap = pool.imap_unordered if unordered else pool.imap
    results = imap(work.square, [Meanwhile(pool.close), 4])
    assert sorted(results) == [9, 16]
    bounded(pool.join)


def test_imap_in_a_loop_ends_with_the_pool(make_pool: Any) -> None:
    """In an event loop the input does not hold the pool open: what comes too late is refused."""
    pool = make_pool(1)

    async def main() -> list[int]:
        late = Meanwhile(lambda: until_dismissed(pool))
        return [value async for value in AsyncPool.from_pool(pool).imap(work.square, [late])]

    with stopped_worker(pool), pytest.raises(ValueError, match="not running"):
        bounded(lambda: asyncio.run(main()))
    bounded(pool.join)


class Slow:
    """An argument that takes up to some milliseconds to pickle."""

    def __reduce__(self) -> Any:
        time.sleep(random.random() * 0.003)
        return int, (3,)


def _submit_until_refused(call: Callable[[], Any], got: list[Any]) -> None:
    while True:
        try:
            got.append(call())
        except PoolFull:
            continue
        except (ValueError, RuntimeError, PoolBroken):
            return


@pytest.mark.parametrize("how", ["close", "terminate"])
@pytest.mark.parametrize("kind", ["pool", "executor", "bounded", "map"])
def test_many_threads_submit_while_their_pool_ends(kind: str, how: str, thorough: bool) -> None:
    """Every job that was accepted ends; join() returns."""
    for _ in range(15 if thorough else 6):
        pool = Pool(2, max_pending=4 if kind == "bounded" else None)
        executor = ProcessPoolExecutor.from_pool(pool)
        calls: dict[str, Callable[[], Any]] = {
            "executor": lambda executor=executor: executor.submit(work.square, Slow()),
            "map": lambda pool=pool: pool.map_async(work.square, [Slow(), 2, 3], 1),
        }
        call = calls.get(kind, lambda pool=pool: pool.apply_async(work.square, (Slow(),)))
        got: list[Any] = []
        threads = [
            threading.Thread(target=_submit_until_refused, args=(call, got)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda got=got: len(got) > 5)
        bounded(pool.close if how == "close" else pool.terminate)
        bounded(pool.join)
        for thread in threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in threads)
        for handle in got:
            is_done = handle.done if kind == "executor" else handle.ready
            eventually(is_done)
            if how == "close":
                assert (handle.result() if kind == "executor" else handle.get()) in (9, [9, 4, 9])
