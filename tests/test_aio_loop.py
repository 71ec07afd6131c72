"""``AsyncPool`` and the event loop it lives in: neither stops, starves or keeps the other."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import aio_work
import faults
import pytest
import work
from helpers import DEADLINE, Stage, eventually

from poolwatch import PoolBroken, Terminated
from poolwatch.aio import AsyncPool

pytestmark = pytest.mark.timeout(40)
T = TypeVar("T")


def run(main: Callable[[], Awaitable[T]], debug: bool = False) -> T:
    """Run a coroutine in a loop of its own, within the deadline."""

    async def bounded() -> T:
        return await asyncio.wait_for(main(), DEADLINE)

    return asyncio.run(bounded(), debug=debug)


async def heard(stage: Stage) -> str:
    """Wait for a bell without blocking the loop."""
    return await asyncio.to_thread(stage.heard)


async def idle_after(count: int) -> AsyncIterator[int]:
    """Yield some numbers, then wait for something that never happens."""
    for number in range(count):
        yield number
    await asyncio.Event().wait()


def is_drained(pool: AsyncPool) -> bool:
    """All that was submitted has ended; what has just come in is not counted among it yet."""
    dispatcher = pool.pool._core.dispatcher
    return not dispatcher.arrivals and not dispatcher.unfinished


# -- errors that mean something to the loop -----------------------------------------------------


@pytest.mark.parametrize("name", aio_work.ERRORS)
def test_jobs_error_does_not_act_on_the_loop(name: str) -> None:
    """exit() in a job ends no event loop, and its CancelledError cancels no task here."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            with pytest.raises(RuntimeError, match=name) as caught:
                await pool.apply(aio_work.raise_by_name, name)
            assert type(caught.value.__cause__) is aio_work.ERRORS[name]
            task = asyncio.create_task(pool.apply(aio_work.raise_by_name, name))
            (error,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(error, RuntimeError)
            assert not task.cancelled()
            assert await pool.apply(work.square, 3) == 9

    run(main)


@pytest.mark.parametrize("name", aio_work.ERRORS)
@pytest.mark.parametrize("many", [False, True])
def test_items_error_does_not_act_on_the_loop(name: str, many: bool) -> None:
    """Likewise in maps, also in those that are unpickled in a thread, and in iterators."""
    items = [None] * (3000 if many else 2) + [name, None]

    async def main() -> None:
        async with AsyncPool(1) as pool:
            with pytest.raises(RuntimeError, match=name):
                await pool.map(aio_work.raise_some, items)
            results = pool.imap(aio_work.raise_some, items[-3:])
            assert await results.__anext__() is None
            with pytest.raises(RuntimeError, match=name):
                await results.__anext__()
            assert [value async for value in results] == [None]

    run(main)


def test_result_that_does_not_unpickle_leaves_nobody_waiting() -> None:
    """Whatever unpickling raises: its own task gets it, the others get their results."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            bad = pool.submit(aio_work.refuse_to_load)
            good = [pool.submit(work.square, n) for n in range(20)]
            assert await asyncio.gather(*good) == [n * n for n in range(20)]
            with pytest.raises(aio_work.Unusual):
                await bad

    run(main)


def test_interruption_while_unpickling_leaves_nobody_waiting() -> None:
    """Ctrl-C comes out of the loop as ever; when that runs on, every future is settled."""
    loop = asyncio.new_event_loop()

    async def submit() -> tuple[AsyncPool, list[Any]]:
        pool = AsyncPool(1)
        calls = [pool.submit(aio_work.refuse_to_load, True)]
        calls += [pool.submit(work.square, n) for n in range(20)]  # type: ignore[list-item]
        return pool, calls

    pool, (bad, *good) = loop.run_until_complete(submit())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.wait_for(asyncio.gather(*good), DEADLINE))
    results = loop.run_until_complete(asyncio.wait_for(asyncio.gather(*good), DEADLINE))
    assert results == [n * n for n in range(20)]
    assert isinstance(bad.exception(), RuntimeError)
    loop.run_until_complete(pool.terminate())
    loop.close()


# -- the loop's time ----------------------------------------------------------------------------


def test_loop_is_woken_once_for_many_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends while the loop is busy costs it one wake-up, not one each."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        async with AsyncPool(2) as pool:
            await pool.apply(work.square, 3)
            woken = 0
            wake = loop.call_soon_threadsafe

            def count(*args: Any, **kwargs: Any) -> Any:
                nonlocal woken
                woken += 1
                return wake(*args, **kwargs)

            monkeypatch.setattr(loop, "call_soon_threadsafe", count)
            calls = [pool.submit(work.square, n) for n in range(1000)]
            eventually(lambda: is_drained(pool))  # in the loop's thread
            assert await asyncio.gather(*calls) == [n * n for n in range(1000)]
            monkeypatch.undo()
            return woken

    assert run(main) == 1


@pytest.mark.parametrize("chunksize", [1, 50])
@pytest.mark.parametrize("kind", ["imap", "imap_unordered"])
def test_flood_of_results_lets_others_have_their_turn(kind: str, chunksize: int) -> None:
    """A consumer who finds results ready time and again does not stop the loop."""

    async def main() -> tuple[int, int]:
        turns = taken = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with AsyncPool(2) as pool:
            results = getattr(pool, kind)(work.square, range(4000), chunksize, buffersize=4000)
            eventually(lambda: results._state.accounted == 4000)  # in the loop's thread
            other = asyncio.create_task(count_turns())
            until = time.monotonic() + 0.003
            async for _ in results:
                taken += 1
                while time.monotonic() < until:
                    pass  # some items are worked on for a while
                until = time.monotonic() + (0.003 if taken % 100 == 0 else 0)
            other.cancel()
        return turns, taken

    turns, taken = run(main)
    assert taken == 4000
    assert turns >= 10  # 40 times 3 ms are more than ten turns of 5 ms, with slack


def test_flood_of_awaited_outcomes_lets_others_have_their_turn() -> None:
    """Outcomes are unpickled in the loop's thread, but not all of them in one go."""

    async def main() -> int:
        async with AsyncPool(1) as pool:
            turns = 0
            calls = [pool.submit(aio_work.slow_to_load) for _ in range(200)]
            eventually(lambda: is_drained(pool))  # in the loop's thread: all are there
            everything = asyncio.gather(*calls)
            while not everything.done():
                turns += 1
                await asyncio.sleep(0)
            assert everything.result() == [1] * 200
            return turns

    assert run(main) >= 15  # 200 ms are 40 turns of 5 ms; in one go it would be some three


# -- the loop's end -----------------------------------------------------------------------------


@pytest.mark.parametrize("unfinished", [False, True])
def test_closed_loops_are_collected_while_their_pool_lives(
    make_pool: Any, stage: Stage, unfinished: bool
) -> None:
    """One pool serves many loops one after another, and keeps none; nor do jobs that end later."""
    pool = make_pool(1)
    face = AsyncPool.from_pool(pool)
    loops = []

    async def use() -> None:
        assert await face.apply(work.square, 3) == 9
        if unfinished:
            face.submit(work.ring_and_wait, stage.bell, stage.gate)
            face.submit(work.square, 3)

    for _ in range(5):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use())
        loops.append(weakref.ref(loop))
        loop.close()
        del loop
        if unfinished:
            stage.heard()
            stage.let_go()
    assert pool.apply(work.square, (4,)) == 16
    eventually(lambda: is_drained(face))

    def collected() -> bool:
        gc.collect()
        return not any(loop() for loop in loops)

    eventually(collected)


def test_join_that_is_given_up_does_not_hold_up_the_loops_end(stage: Stage) -> None:
    """asyncio.run() returns though the pool has not ended."""

    async def main() -> AsyncPool:
        pool = AsyncPool(1)
        pool.submit(work.ring_and_wait, stage.bell, stage.gate)
        await heard(stage)
        pool.close()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.join(), 0.05)
        return pool

    done: list[AsyncPool] = []
    thread = threading.Thread(target=lambda: done.append(run(main)), daemon=True)
    thread.start()
    thread.join(DEADLINE)
    returned = bool(done)
    stage.let_go()
    thread.join(DEADLINE)
    done[0].pool.join(DEADLINE)
    assert returned


def test_end_needs_no_thread_of_the_loops_executor(stage: Stage) -> None:
    """Programs that keep the loop's own threads busy can end their pools."""
    go_on = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncPool(1) as pool:
            waiting = [loop.run_in_executor(None, go_on.wait, DEADLINE) for _ in range(64)]
            assert await pool.map(work.square, range(3000)) == [n * n for n in range(3000)]
        await pool.terminate()
        assert not any(job.done() for job in waiting)
        go_on.set()
        await asyncio.gather(*waiting)

    try:
        run(main)
    finally:
        go_on.set()


# -- iterators and the pool's end ---------------------------------------------------------------


@pytest.mark.parametrize("way", ["terminate", "close"])
def test_consumer_of_an_idle_input_is_told_of_the_pools_end(way: str) -> None:
    """Once, after all results; nobody waits for an input that does not know of the end."""

    async def main() -> None:
        pool = AsyncPool(1)
        results = pool.imap(work.square, idle_after(2))
        assert [await results.__anext__() for _ in range(2)] == [0, 1]
        task = asyncio.create_task(results.__anext__())
        await asyncio.sleep(0)
        await (pool.terminate() if way == "terminate" else pool.aclose())
        with pytest.raises(Terminated if way == "terminate" else ValueError):
            await task
        with pytest.raises(StopAsyncIteration):
            await results.__anext__()

    run(main)


def test_consumer_of_an_idle_input_is_told_that_the_pool_is_broken(tmp_path: Any) -> None:
    """With the cause."""
    arguments = (str(tmp_path / "note"),)

    async def main() -> None:
        options = {"max_boot_failures": 2}
        async with AsyncPool(1, faults.initializer_raises, arguments, **options) as pool:
            with pytest.raises(PoolBroken) as caught:
                await pool.imap(work.square, idle_after(0)).__anext__()
            assert caught.value.__cause__ is not None

    run(main)


def test_open_iterator_does_not_keep_a_closed_pool_from_its_end() -> None:
    """What was read is worked on, and can be taken out afterwards."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            results = pool.imap(work.square, [], buffersize=2)
            more = pool.imap(work.square, iter(range(10**9)), buffersize=4)
            assert [value async for value in results] == []
            assert await more.__anext__() == 0
        taken = []
        with pytest.raises(ValueError, match="not running"):  # noqa: PT012
            async for value in more:
                taken.append(value)
        assert taken[:3] == [1, 4, 9]

    run(main)


# -- others --------------------------------------------------------------------------------------


def test_forked_child_is_told(stage: Stage) -> None:
    """Every way of use raises there, and the parent's pool goes on."""

    async def main() -> None:
        async with AsyncPool(1) as pool:
            await pool.apply(work.square, 3)
            results = pool.imap(work.square, idle_after(1))
            assert await results.__anext__() == 0
            pid = os.fork()
            if not pid:
                os._exit(in_child(pool, results))
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert await pool.apply(work.square, 3) == 9
            await results.aclose()

    def in_child(pool: AsyncPool, results: Any) -> int:
        calls: list[Callable[[], Any]] = [
            lambda: pool.apply(work.square, 3),
            lambda: pool.map(work.square, [3]),
            results.__anext__,
            pool.aclose,
            pool.terminate,
        ]

        async def use(call: Callable[[], Any]) -> None:
            await call()

        asyncio.events._set_running_loop(None)
        told = 0
        for call in calls:
            try:
                asyncio.new_event_loop().run_until_complete(asyncio.wait_for(use(call), 5))
            except RuntimeError as error:
                told += "parent process" in str(error)
        return len(calls) - told

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TaskGroup is new in 3.11")
def test_failing_member_of_a_task_group_stops_the_others_jobs(stage: Stage) -> None:
    """Structured concurrency: no job outlives the group."""

    async def main() -> None:
        async with AsyncPool(2, terminate_grace=0.05) as pool:
            with pytest.raises(BaseException) as caught:  # noqa: PT011, PT012
                async with asyncio.TaskGroup() as group:
                    group.create_task(pool.apply(faults.hang, stage.bell))
                    await heard(stage)
                    group.create_task(pool.apply(work.fail, "guilty"))
            assert [str(error) for error in caught.value.exceptions] == ["guilty"]
            await asyncio.to_thread(eventually, lambda: is_drained(pool))
            assert await pool.apply(work.square, 3) == 9

    run(main)
