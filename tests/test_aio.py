"""``AsyncPool``: jobs that are awaited, cancelled and lost in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import faults
import pytest
import work
from helpers import DEADLINE, ProcessWatch, Stage, assert_gone, eventually, worker_pids

from poolwatch import (
    JobState,
    PoolBroken,
    PoolFull,
    RemoteTraceback,
    RetryLost,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from poolwatch.aio import AsyncPool

pytestmark = pytest.mark.timeout(40)
T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]], debug: bool = False) -> T:
    """Run a coroutine in a loop of its own, within the deadline."""

    async def bounded() -> T:
        return await asyncio.wait_for(main(), DEADLINE)

    return asyncio.run(bounded(), debug=debug)


async def heard(stage: Stage, count: int = 1) -> list[str]:
    """Wait for bells without blocking the loop."""
    return [await asyncio.to_thread(stage.heard) for _ in range(count)]


async def numbers(count: int | None = None) -> AsyncIterator[int]:
    """Yield numbers; for ever without a count."""
    for number in itertools.count() if count is None else range(count):
        yield number
        await asyncio.sleep(0)


# -- single jobs ------------------------------------------------------------------------------


def test_soft_limit_passes_once_per_job() -> None:
    """What a job does after it has caught the soft limit is its own affair."""

    async def main() -> int:
        async with AsyncPool(1) as pool:
            return await pool.options(soft_timeout=0.2).apply(faults.count_soft_passes, 1.0)

    assert run(main) == 1


def test_apply_returns_the_value() -> None:
    """Arguments by position and by name; functions may have parameters of any name."""

    async def main() -> Any:
        async with AsyncPool(2) as pool:
            return await pool.apply(work.add, 3, right=4), await pool.apply(dict, func=1, timeout=2)

    assert run(main) == (7, {"func": 1, "timeout": 2})


def test_exception_is_the_jobs_own() -> None:
    """With the worker's traceback as its cause."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            with pytest.raises(ValueError, match="own") as caught:
                await pool.apply(work.fail, "own")
            assert isinstance(caught.value.__cause__, RemoteTraceback)
            with pytest.raises(RuntimeError, match="StopIteration"):
                await pool.apply(faults.raise_it, StopIteration, "end")
            with pytest.raises(TypeError):
                await pool.apply(work.square, threading.Lock())  # type: ignore[arg-type]
            assert await pool.apply(work.square, 3) == 9

    run(main)


def test_thousands_await_at_once() -> None:
    """Each gets its own result, and no thread is made for them."""

    async def main() -> None:
        async with AsyncPool(2) as pool:
            threads = threading.active_count()
            jobs = [asyncio.create_task(pool.apply(work.square, n)) for n in range(5000)]
            await asyncio.sleep(0)
            assert threading.active_count() == threads
            assert await asyncio.gather(*jobs) == [n * n for n in range(5000)]

    run(main)


def test_future_knows_its_job(stage: Stage) -> None:
    """Number, state and usage."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            future = pool.submit(work.ring_and_wait, stage.bell, stage.gate)
            await heard(stage)
            assert future.job_state is JobState.RUNNING
            assert future.job_id == 1
            assert future.handle.pid in worker_pids(pool.pool)
            stage.let_go()
            await future
            assert future.usage.wall > 0
            assert future.job_state is JobState.SUCCEEDED

    run(main)


def test_options_hold_for_their_jobs_only(stage: Stage) -> None:
    """A limit for one, none for the others."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            with pytest.raises(TimeLimitExceeded):
                await pool.options(timeout=0.2).apply(faults.hang, stage.bell)
            with pytest.raises(ValueError, match="timeout"):
                pool.options(timeout=-1)
            with pytest.raises(TypeError, match="no_such"):
                pool.options(no_such=1)  # type: ignore[call-arg]

    run(main)


# -- cancelling -------------------------------------------------------------------------------


def test_cancelled_task_stops_its_job_and_what_it_started(stage: Stage) -> None:
    """The worker and the job's child processes go; the pool goes on."""

    async def main() -> None:
        async with AsyncPool(1, terminate_grace=0.05) as pool:
            task = asyncio.create_task(pool.apply(faults.hang_with_two_children, stage.bell))
            children = [int(pid) for pid in await heard(stage, 2)]
            with ProcessWatch([*children, *worker_pids(pool.pool)]) as watch:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await asyncio.to_thread(watch.assert_gone)
            assert await pool.apply(work.square, 3) == 9

    run(main)


def test_wait_for_ends_the_job(stage: Stage) -> None:
    """A time-out of asyncio is a cancellation."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            future = pool.submit(faults.hang, stage.bell)
            await heard(stage)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(future, 0.05)
            assert await pool.apply(work.square, 3) == 9
            assert future.handle.state is JobState.CANCELLED

    run(main)


def test_cancelled_job_that_has_not_begun_costs_nothing(stage: Stage) -> None:
    """The worker lives on, and the job never runs."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            running = pool.submit(work.ring_and_wait, stage.bell, stage.gate)
            (pid,) = [int(pid) for pid in await heard(stage)]
            waiting = pool.submit(work.ring, stage.bell)
            assert waiting.cancel()
            assert not waiting.cancel()
            stage.let_go()
            await running
            assert await pool.apply(os.getpid) == pid

    run(main)


# -- losses -----------------------------------------------------------------------------------


def test_death_fails_one_await() -> None:
    """All others have their results."""

    async def main() -> None:
        async with AsyncPool(2) as pool:
            calls = [pool.submit(work.square, n) for n in range(40)]
            guilty = pool.submit(faults.kill_self, signal.SIGKILL)
            calls += [pool.submit(work.square, n) for n in range(40)]
            with pytest.raises(WorkerLostError):
                await guilty
            assert await asyncio.gather(*calls) == [n * n for n in range(40)] * 2

    run(main)


def test_policy_of_the_call(tmp_path: Any) -> None:
    """A job that is retried succeeds at last."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            calls = pool.options(lost_worker_policy=RetryLost(3))
            assert await calls.apply(faults.die_until, str(tmp_path / "note"), 2) == 3

    run(main)


def test_broken_pool_is_told_to_all_who_wait(tmp_path: Any) -> None:
    """Jobs, maps and iterators end with it."""

    async def main() -> None:
        async with AsyncPool(
            1, faults.initializer_raises, (str(tmp_path / "note"),), max_boot_failures=2
        ) as pool:
            apply = asyncio.create_task(pool.apply(work.square, 3))
            many = asyncio.create_task(pool.map(work.square, range(10)))
            results = await asyncio.gather(apply, many, return_exceptions=True)
            assert [type(error).__mro__.count(PoolBroken) for error in results] == [1, 1]
            with pytest.raises(PoolBroken):
                await pool.apply(work.square, 3)

    run(main)


# -- many items -------------------------------------------------------------------------------


def test_map_and_starmap() -> None:
    """In input order, with the first error raised."""

    async def main() -> None:
        async with AsyncPool(2) as pool:
            assert await pool.map(work.square, range(3000)) == [n * n for n in range(3000)]
            assert await pool.map(work.square, (n for n in range(5)), 2) == [0, 1, 4, 9, 16]
            assert await pool.map(work.square, []) == []
            assert await pool.starmap(work.add, [(1, 2), (3, 4)]) == [3, 7]
            with pytest.raises(ValueError, match="first"):
                await pool.map(work.fail, ["first", "second"], 1)
            with pytest.raises(ValueError, match="chunksize"):
                await pool.map(work.square, [1], 0)

    run(main)


def test_cancelled_map_ends_its_items(stage: Stage) -> None:
    """What runs is stopped, what waits never runs."""

    async def main() -> None:
        async with AsyncPool(1, terminate_grace=0.05) as pool:
            task = asyncio.create_task(pool.map(faults.hang, [stage.bell] * 50, 1))
            await heard(stage)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await pool.apply(work.square, 3) == 9
            await asyncio.to_thread(eventually, lambda: not pool._core.dispatcher.unfinished)

    run(main)


@pytest.mark.parametrize("chunksize", [1, 5])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_imap(chunksize: int, asynchronous: bool) -> None:
    """Ordered and unordered, from either kind of input."""

    async def main() -> None:
        async with AsyncPool(2) as pool:

            def items() -> Any:
                return numbers(300) if asynchronous else iter(range(300))

            ordered = [value async for value in pool.imap(work.square, items(), chunksize)]
            assert ordered == [n * n for n in range(300)]
            other = pool.imap_unordered(work.square, items(), chunksize, buffersize=20)
            assert sorted([value async for value in other]) == ordered
            with pytest.raises(StopAsyncIteration):
                await other.__anext__()
            assert [value async for value in pool.imap(work.square, [])] == []

    run(main)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_imap_reads_no_more_than_its_window(asynchronous: bool) -> None:
    """Endless input, and back-pressure on who makes it."""
    taken = 0

    def endless() -> Any:
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield number

    async def endlessly() -> Any:
        for number in endless():
            yield number

    async def main() -> None:
        async with AsyncPool(2) as pool:
            source = endlessly() if asynchronous else endless()
            results = pool.imap(work.square, source, buffersize=10)
            for number in range(100):
                assert await results.__anext__() == number**2
                assert taken <= number + 1 + 10 + 1
            await results.aclose()
            with pytest.raises(StopAsyncIteration):
                await results.__anext__()

    run(main)


def test_lost_item_raises_at_its_position(tmp_path: Any) -> None:
    """The iterator goes on afterwards; outcomes() shows both side by side."""
    path = str(tmp_path / "note")
    items = [(n, 2, path) for n in range(5)]

    async def main() -> None:
        async with AsyncPool(1) as pool:
            results = pool.imap(faults.die_if_of, items)
            assert [await results.__anext__() for _ in range(2)] == [0, 1]
            with pytest.raises(WorkerLostError):
                await results.__anext__()
            assert [value async for value in results] == [3, 4]
            outcomes = [pair async for pair in pool.imap(faults.die_if_of, items).outcomes()]
            assert [ok for ok, _ in outcomes] == [True, True, False, True, True]
            assert isinstance(outcomes[2][1], WorkerLostError)

    run(main)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_input_that_raises_does_so_after_its_results(asynchronous: bool) -> None:
    """What came before it is worked on."""

    def failing() -> Any:
        yield from range(3)
        raise LookupError("no more")

    async def failing_too() -> Any:
        for number in failing():
            yield number

    async def main() -> None:
        async with AsyncPool(1) as pool:
            results = pool.imap(work.square, failing_too() if asynchronous else failing())
            assert [await results.__anext__() for _ in range(3)] == [0, 1, 4]
            with pytest.raises(LookupError):
                await results.__anext__()
            with pytest.raises(StopAsyncIteration):
                await results.__anext__()

    run(main)


def test_iterator_that_is_left_ends_what_it_began(stage: Stage) -> None:
    """With aclose(), and when it is collected."""

    async def main() -> None:
        async with AsyncPool(1, terminate_grace=0.05) as pool:
            for way in ("close", "collect"):
                results = pool.imap(faults.hang, [stage.bell] * 10, buffersize=3)
                await heard(stage)
                if way == "close":
                    await results.aclose()
                del results
                gc.collect()
                assert await pool.apply(work.square, 3) == 9
            await asyncio.to_thread(eventually, lambda: not pool._core.dispatcher.unfinished)

    run(main)


def test_cancelled_consumer_loses_nothing(stage: Stage) -> None:
    """The item that it waited for comes to whoever asks next."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            results = pool.imap(work.echo_after, [(stage.bell, stage.gate, n) for n in range(2)])
            task = asyncio.create_task(results.__anext__())
            await heard(stage)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stage.let_go(2)
            assert [value async for value in results] == [0, 1]

    run(main)


# -- the end ----------------------------------------------------------------------------------


def test_end_of_the_block_waits_for_what_was_submitted(stage: Stage) -> None:
    """The loop goes on meanwhile."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            future = pool.submit(work.ring_and_wait, stage.bell, stage.gate)
            await heard(stage)
            asyncio.get_running_loop().call_later(0.05, stage.let_go)
        await future
        with pytest.raises(ValueError, match="not running"):
            await pool.apply(work.square, 3)

    run(main)


def test_error_in_the_block_ends_everything(stage: Stage) -> None:
    """Jobs end with Terminated, workers are gone."""

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with AsyncPool(1) as pool:
                future = pool.submit(faults.hang, stage.bell)
                await heard(stage)
                pids = worker_pids(pool.pool)
                raise ZeroDivisionError
        with pytest.raises(Terminated):
            await future
        assert_gone(*pids)

    run(main)


def test_loop_that_ends_leaves_nothing(stage: Stage) -> None:
    """Tasks are cancelled by asyncio.run(), and their jobs with them; debug mode is silent."""
    kept: list[AsyncPool] = []

    async def main() -> None:
        pool = AsyncPool(1, terminate_grace=0.05)
        kept.append(pool)
        asyncio.create_task(pool.apply(faults.hang, stage.bell))  # noqa: RUF006
        await heard(stage)

    run(main, debug=True)
    pool = kept[0].pool
    eventually(lambda: not pool._core.dispatcher.unfinished)
    assert pool.apply(work.square, (3,)) == 9
    pool.terminate()


def test_loop_that_is_closed_while_jobs_run(make_pool: Any, stage: Stage) -> None:
    """Nobody awaits them any more: they end, and the pool goes on."""
    pool = make_pool(1)
    loop = asyncio.new_event_loop()

    async def submit() -> Any:
        return AsyncPool.from_pool(pool).submit(work.ring_and_wait, stage.bell, stage.gate)

    future = loop.run_until_complete(submit())
    stage.heard()
    loop.close()
    stage.let_go()
    assert pool.apply(work.square, (3,)) == 9
    assert not future.done()


def test_one_pool_in_two_loops(make_pool: Any) -> None:
    """Each thread's loop gets its own results."""
    pool = make_pool(2)
    results: list[list[int]] = []

    async def main() -> None:
        face = AsyncPool.from_pool(pool)
        results.append(await asyncio.gather(*(face.apply(work.square, n) for n in range(500))))

    threads = [threading.Thread(target=run, args=(main,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == [[n * n for n in range(500)]] * 2


def test_pool_that_is_dropped_warns_and_goes() -> None:
    """As ``Pool`` does."""

    async def main() -> list[int]:
        pool = AsyncPool(1)
        await pool.apply(work.square, 3)
        return worker_pids(pool.pool)

    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):  # noqa: PT031
        pids = run(main)
        gc.collect()
    assert_gone(*pids)


def test_terminate_and_aclose() -> None:
    """Both wait without blocking the loop; join() of an open pool is an error."""

    async def main() -> None:
        pool = AsyncPool(1)
        with pytest.raises(ValueError, match="still running"):
            await pool.join()
        await pool.aclose()
        other = AsyncPool(1)
        await other.terminate()
        await other.terminate()
        with contextlib.suppress(ValueError):
            await other.apply(work.square, 3)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main)


def test_bound_is_never_waited_for_and_priorities_hold(stage: Stage) -> None:
    """PoolFull instead of a loop that stands still; urgent jobs go first."""

    async def main() -> None:
        async with AsyncPool(1, max_pending=4) as pool:
            running = pool.submit(work.ring_and_wait, stage.bell, stage.gate)
            await heard(stage)
            late = pool.submit(work.ring, stage.bell, "late")
            soon = pool.options(priority=1).submit(work.ring, stage.bell, "soon")
            first = pool.options(priority=2).submit(work.ring, stage.bell, "first")
            with pytest.raises(PoolFull):
                pool.submit(work.square, 3)
            stage.let_go()
            await asyncio.gather(running, late, soon, first)
            assert await heard(stage, 3) == ["first", "soon", "late"]

    run(main)
