"""The faces of the pool, each as one way to run many calls at once and to see how each ended.

``face.outcomes(target, calls)`` has every call performed and returns what the face tells of them:
how the call at each index ended, as ``(True, value)`` or ``(False, exception)``. A call that should
succeed returns its own index, for results that come in no order. What a face does not say the index
of is at -1, -2 and so on; faces that tell of nothing but the first error leave the others out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, NamedTuple

import faults
from helpers import DEADLINE

from poolwatch import Pool, ProcessPoolExecutor
from poolwatch.aio import AsyncPool

Call = tuple[Any, ...]  # the function and its arguments
Outcome = tuple[bool, Any]
Outcomes = dict[int, Outcome]
CHUNK = 4  # items that travel together, where any do


class Face(NamedTuple):
    """One way to have calls performed.

    Attributes:
        make: makes its target; takes number of workers, start method and the pool's options.
        share: makes its target out of a pool that others use as well.
        run: has calls performed; takes the target, the calls, how many of them travel together.
        chunksize: the last of these.
        goes_on: what comes behind an error runs all the same.
    """

    make: Callable[..., Any]
    share: Callable[[Pool], Any]
    run: Callable[[Any, list[Call], int], Outcomes]
    chunksize: int = 1
    goes_on: bool = True

    def outcomes(self, target: Any, calls: list[Call]) -> Outcomes:
        """How the calls ended that the face tells of."""
        return self.run(target, calls, self.chunksize)


def pool_behind(target: Any) -> Any:
    """The ``Pool`` behind what a face has made."""
    if isinstance(target, Pool):
        return target
    return target.pool if isinstance(target, AsyncPool) else target._pool


# -- what comes in some order -----------------------------------------------------------------


def first_error(call: Callable[[], Iterable[Any]]) -> Outcomes:
    """The outcomes where all values come together, or else one error, of a call not known."""
    try:
        return {index: (True, value) for index, value in enumerate(call())}
    except BaseException as error:  # noqa: BLE001  (a SystemExit is a job's error as well)
        return {-1: (False, error)}


def by_own_index(ended: Iterable[Outcome]) -> Outcomes:
    """The outcomes where values say to which call they belong; others are at -1, -2 and so on."""
    outcomes: Outcomes = {}
    unknown = 0
    for outcome in ended:
        known = outcome[0] and isinstance(outcome[1], int)
        unknown -= not known
        index = outcome[1] if known else unknown
        assert index not in outcomes, (outcome, outcomes[index])
        outcomes[index] = outcome
    return outcomes


def settled(call: Callable[[], Any]) -> Outcome:
    try:
        return True, call()
    except BaseException as error:  # noqa: BLE001  (a SystemExit is a job's error as well)
        return False, error


def each_in_turn(take: Callable[[], Any], count: int) -> Iterator[Outcome]:
    """What an iterator gives that goes on after errors; that it ends then is looked at, too."""
    for _ in range(count):
        yield settled(take)
    with contextlib.suppress(StopIteration):
        raise AssertionError(f"something comes behind the last item: {take()!r}")


# -- what they work with ----------------------------------------------------------------------


def make_pool(processes: int, start_method: str, **options: Any) -> Pool:
    return Pool(processes, context=start_method, **options)


def make_executor(processes: int, start_method: str, **options: Any) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, start_method, **options)


def make_async_pool(processes: int, start_method: str, **options: Any) -> AsyncPool:
    return AsyncPool(processes, context=start_method, **options)


POOL = make_pool, lambda pool: pool
EXECUTOR = make_executor, ProcessPoolExecutor.from_pool
ASYNC_POOL = make_async_pool, AsyncPool.from_pool


# -- Pool -------------------------------------------------------------------------------------


def run_map(pool: Pool, calls: list[Call], chunksize: int) -> Outcomes:
    return first_error(lambda: pool.map(faults.perform, calls, chunksize))


def run_map_async(pool: Pool, calls: list[Call], chunksize: int) -> Outcomes:
    result = pool.map_async(faults.perform, calls, chunksize)
    outcomes = dict(enumerate(result.outcomes(DEADLINE)))
    errors = [value for succeeded, value in outcomes.values() if not succeeded]
    succeeded, value = settled(lambda: result.get(0))
    assert value is errors[0] if errors else succeeded
    return outcomes


def run_starmap(pool: Pool, calls: list[Call], chunksize: int) -> Outcomes:
    result = pool.starmap_async(faults.perform_these, calls, chunksize)
    return dict(enumerate(result.outcomes(DEADLINE)))


def run_imap(pool: Pool, calls: list[Call], chunksize: int) -> Outcomes:
    results = pool.imap(faults.perform, calls, chunksize)
    return dict(enumerate(each_in_turn(lambda: results.next(DEADLINE), len(calls))))


def run_imap_unordered(pool: Pool, calls: list[Call], chunksize: int) -> Outcomes:
    results = pool.imap_unordered(faults.perform, iter(calls), chunksize)  # read in a thread
    return by_own_index(each_in_turn(lambda: results.next(DEADLINE), len(calls)))


# -- ProcessPoolExecutor ----------------------------------------------------------------------


def run_submit(executor: ProcessPoolExecutor, calls: list[Call], chunksize: int) -> Outcomes:
    futures = [executor.submit(faults.perform, call) for call in calls]
    return {
        index: settled(lambda future=future: future.result(DEADLINE))  # type: ignore[misc]
        for index, future in enumerate(futures)
    }


def run_executor_map(executor: ProcessPoolExecutor, calls: list[Call], chunksize: int) -> Outcomes:
    """The values before the first error and that; behind it the iterator has ended."""
    results = executor.map(faults.perform, calls, timeout=DEADLINE, chunksize=chunksize)
    outcomes: Outcomes = {}
    for index in range(len(calls)):
        outcomes[index] = settled(lambda: next(results))
        if not outcomes[index][0]:
            break
    assert list(results) == []
    return outcomes


# -- AsyncPool --------------------------------------------------------------------------------


def in_loop(main: Callable[[], Awaitable[Outcomes]]) -> Outcomes:
    async def bounded() -> Outcomes:
        return await asyncio.wait_for(main(), DEADLINE)

    return asyncio.run(bounded())


def run_async_apply(pool: AsyncPool, calls: list[Call], chunksize: int) -> Outcomes:
    async def main() -> Outcomes:
        ended = await asyncio.gather(
            *[pool.apply(faults.perform, call) for call in calls], return_exceptions=True
        )
        return {
            index: (not isinstance(value, BaseException), value)
            for index, value in enumerate(ended)
        }

    return in_loop(main)


def run_async_map(pool: AsyncPool, calls: list[Call], chunksize: int) -> Outcomes:
    async def main() -> Outcomes:
        try:
            values = await pool.map(faults.perform, calls, chunksize)
        except Exception as error:  # noqa: BLE001
            return {-1: (False, error)}
        return {index: (True, value) for index, value in enumerate(values)}

    return in_loop(main)


async def taken(results: AsyncIterator[Any], count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for _ in range(count):
        try:
            outcomes.append((True, await anext(results)))
        except Exception as error:  # noqa: BLE001
            outcomes.append((False, error))
    with contextlib.suppress(StopAsyncIteration):
        raise AssertionError(f"something comes behind the last item: {await anext(results)!r}")
    return outcomes


def run_async_imap(pool: AsyncPool, calls: list[Call], chunksize: int) -> Outcomes:
    async def main() -> Outcomes:
        results = pool.imap(faults.perform, calls, chunksize)
        return dict(enumerate(await taken(results, len(calls))))

    return in_loop(main)


def run_async_imap_unordered(pool: AsyncPool, calls: list[Call], chunksize: int) -> Outcomes:
    async def items() -> AsyncIterator[Call]:
        for call in calls:
            yield call

    async def main() -> Outcomes:
        results = pool.imap_unordered(faults.perform, items(), chunksize)
        return by_own_index(await taken(results, len(calls)))

    return in_loop(main)


# -- all of them ------------------------------------------------------------------------------

FACES = {
    "map": Face(*POOL, run_map),
    "map in chunks": Face(*POOL, run_map_async, CHUNK),
    "starmap in chunks": Face(*POOL, run_starmap, CHUNK),
    "imap": Face(*POOL, run_imap),
    "imap in chunks": Face(*POOL, run_imap, CHUNK),
    "imap_unordered": Face(*POOL, run_imap_unordered),
    "imap_unordered in chunks": Face(*POOL, run_imap_unordered, CHUNK),
    "submit": Face(*EXECUTOR, run_submit),
    "executor map": Face(*EXECUTOR, run_executor_map, goes_on=False),
    "executor map in chunks": Face(*EXECUTOR, run_executor_map, CHUNK, goes_on=False),
    "async apply": Face(*ASYNC_POOL, run_async_apply),
    "async map": Face(*ASYNC_POOL, run_async_map),
    "async map in chunks": Face(*ASYNC_POOL, run_async_map, CHUNK),
    "async imap": Face(*ASYNC_POOL, run_async_imap),
    "async imap in chunks": Face(*ASYNC_POOL, run_async_imap, CHUNK),
    "async imap_unordered": Face(*ASYNC_POOL, run_async_imap_unordered),
}
