"""What ``AsyncPool.imap`` and ``imap_unordered`` return.

Outcomes are kept and handed out by the same state as for ``Pool.imap`` (see ``imap_state``). What
differs is who reads the input and how a consumer waits: a synchronous input is read by the
consumer itself, in ``__anext__``, as far as there is room in the window; an asynchronous one by a
task of its own, which waits for room. The task does not know the iterator, so that the iterator can
be collected.
"""

from __future__ import annotations

import asyncio
import itertools
from _thread import get_ident
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from time import monotonic
from typing import Any, Generic, TypeVar

from poolwatch import checks
from poolwatch.aio.jobs import TURN_SECONDS, call_soon, cancel_all, without_effect
from poolwatch.core import Core
from poolwatch.feeding import default_buffersize
from poolwatch.imap_state import Bell, IMapState
from poolwatch.job import Job
from poolwatch.mapping import Mapper, items_at_once
from poolwatch.pool import Pool

T = TypeVar("T")


class AsyncIMapIterator(Generic[T]):
    """The results of an ``imap`` in an event loop; see ``AsyncPool.imap``."""

    def __init__(
        self,
        pool: Pool,
        state: IMapState,
        func: Callable[[Any], T],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int,
        buffersize: int | None,
    ) -> None:
        """Make one; called by the pool."""
        core = pool._core
        core.check_open()
        checks.function("func", func)
        size = checks.whole("chunksize", chunksize)
        if buffersize is None:
            window = default_buffersize(core.size, size)
        else:
            window = checks.whole("buffersize", buffersize)
        size = min(size, window)
        mapper = Mapper(core, func, False, size, prompt=True)
        self._state = state
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._window = _Window(pool, mapper, state, size, window)
        self._source: Iterator[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._turn_ends = monotonic() + TURN_SECONDS
        if isinstance(iterable, AsyncIterable):
            source = aiter(iterable)
            core.add_input(self._window)
            self._task = self._loop.create_task(_feed(self._window, source))
        elif isinstance(iterable, Iterable):
            self._source = iter(iterable)
            core.add_input(self._window)
            self._window.fill(self._source)
        else:
            raise TypeError(f"iterable must be iterable, not {iterable!r}")

    def __aiter__(self) -> AsyncIMapIterator[T]:
        return self

    async def __anext__(self) -> T:
        """Return the next result, or raise the next item's error.

        Raises:
            StopAsyncIteration: there are no more; again and again.
            Terminated, PoolBroken, ValueError: the pool has ended before the input.
            RuntimeError: the item raised what would act on the loop, see ``AsyncPool.apply``.
            Exception: what the item raised, or its ``WorkerLostError``; or, at the end, what the
                input raised.
        """
        outcome = await self._next_outcome()
        if outcome is None:
            raise StopAsyncIteration
        succeeded, value = outcome
        if succeeded:
            result: T = value
            return result
        try:
            raise without_effect(value)
        finally:
            del value, outcome, self  # the traceback would keep all alive in a cycle

    async def _next_outcome(self) -> tuple[bool, Any] | None:
        """Return ``(True, value)`` or ``(False, exception)`` of the next item; None at the end."""
        state, thread = self._state, get_ident()
        if monotonic() > self._turn_ends:
            # Before anything is taken out, which would be lost if the task were cancelled here.
            await asyncio.sleep(0)
            self._turn_ends = monotonic() + TURN_SECONDS
        while True:
            if state.take(thread):
                outcome = state.handed.pop(thread).result()
                self._make_room()
                return outcome
            if state.over:
                return None
            self._core.check_owner()
            bell = _LoopBell(self._loop)
            state.sleepers[bell] = None
            try:
                if not state.has_next():
                    await bell.rung.wait()
                    self._turn_ends = monotonic() + TURN_SECONDS
            finally:
                state.sleepers.pop(bell, None)

    def _make_room(self) -> None:
        if self._source is not None:
            self._window.fill(self._source)
        else:
            self._window.room.set()

    async def outcomes(self) -> AsyncIterator[tuple[bool, Any]]:
        """Yield ``(True, value)`` or ``(False, exception)`` for each item that is left."""
        while (outcome := await self._next_outcome()) is not None:
            yield outcome

    async def aclose(self) -> None:
        """Read no more of the input, and end what has not ended; may be called more than once."""
        with self._core.dispatcher.lock:
            self._state.forget()
            self._state.cut(None)
            self._window.leave()
        self._window.close()
        cancel_all(self._core, self._state)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def __del__(self) -> None:
        window = getattr(self, "_window", None)
        if window is None or self._state.over or self._core.foreign:
            return
        # Not here: whoever happens to collect garbage may be in the middle of anything.
        core, state, task = self._core, self._state, self._task
        window.close()
        state.forget()
        core.call_soon(lambda: _dropped(window, core, state))
        if task is not None:
            call_soon(self._loop, task.cancel)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.delivered} taken>"


class _LoopBell(Bell):
    """Wakes a task instead of a thread; rung in any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.rung = asyncio.Event()
        self._loop = loop

    def ring(self) -> None:
        """Let the task go on that waits."""
        call_soon(self._loop, self.rung.set)


class _Window:
    """Submits items as far as there is room; in the loop's thread."""

    holds_open = False  # a closed pool that waits for its consumer might wait for itself

    def __init__(
        self, pool: Pool, mapper: Mapper, state: IMapState, size: int, buffersize: int
    ) -> None:
        self._pool: Pool | None = pool
        self._core = pool._core
        self._mapper = mapper
        self._state = state
        self.size = size
        self._buffersize = buffersize
        self._enough = max(size, buffersize // 2)
        self._taken = 0
        self.closed = False  # nothing more is submitted
        self.room = asyncio.Event()
        self._ended = False  # the state knows the end; guarded by the dispatcher's lock
        self._loop = asyncio.get_running_loop()

    def space(self) -> int:
        """Return how many items may be submitted now."""
        return 0 if self.closed else self._buffersize - self._taken + self._state.delivered

    def fill(self, source: Iterator[Any]) -> None:
        """Read a synchronous input, when half of the window is free."""
        if self.closed or (self._taken and self.space() < self._enough):
            return
        while (count := min(self.space(), items_at_once(self.size))) >= self.size:
            items: list[Any] = []
            try:
                items.extend(itertools.islice(source, count))
            except BaseException as error:  # noqa: BLE001  (the consumer gets it)
                self.submit(items)
                self.end(error)
                return
            if items:
                self.submit(items)
            if len(items) < count:
                self.end(None)
                return
        self._core.dispatcher.top_up()

    def submit(self, items: list[Any]) -> None:
        """Put items on their way."""
        if self.closed or not items:
            return
        assert self._pool is not None
        core, state = self._core, self._state
        for start in range(0, len(items), self.size if self.size > 1 else len(items)):
            part = items[start : start + self.size] if self.size > 1 else items
            jobs = self._mapper.jobs(state, self._taken, part, self._pool)
            with core.dispatcher.lock:
                try:
                    core.check_open()
                except Exception as error:  # noqa: BLE001  (the consumer gets it)
                    self.end(error)
                    return
                state.expect(self._taken, len(part), len(jobs) < len(part))
                self._taken += len(part)
                for job in jobs:
                    if isinstance(job, Job):
                        core.dispatcher.submit(job)
                    else:
                        state.account_item(*job)

    def end(self, error: BaseException | None) -> None:
        """The input has ended."""
        self.close()
        with self._core.dispatcher.lock:
            if not self._ended:
                self._state.end(self._taken, error)
                self.leave()

    def abort(self, error: BaseException) -> None:
        """The pool has ended. The dispatcher's lock is held; any thread.

        Args:
            error: what the consumer gets after all that has come.
        """
        if not self._ended:
            self._state.cut(error)
            self.leave()
            call_soon(self._loop, self.close)

    def leave(self) -> None:
        """The pool need not tell of its end any more. The dispatcher's lock is held."""
        if not self._ended:
            self._ended = True
            self._core.remove_input(self)

    def lift(self) -> None:
        """Only the consumer has the input read; see ``core.Input``."""

    def close(self) -> None:
        """Submit nothing more."""
        self.closed = True
        self._pool = None
        self.room.set()


def _dropped(window: _Window, core: Core, state: IMapState) -> None:
    """The iterator has been collected; in the supervisor's thread."""
    with core.dispatcher.lock:
        window.leave()
    cancel_all(core, state)


async def _feed(window: _Window, source: AsyncIterator[Any]) -> None:
    """Read an asynchronous input to its end, as far as there is room."""
    items: list[Any] = []
    try:
        async for item in source:
            items.append(item)
            if len(items) >= window.size:
                window.submit(items)
                items = []
            while window.space() <= len(items) and not window.closed:
                window.room.clear()
                await window.room.wait()
            if window.closed:
                return
    except asyncio.CancelledError:
        window.close()
        raise
    except BaseException as error:  # noqa: BLE001  (the consumer gets it)
        window.submit(items)
        window.end(error)
    else:
        window.submit(items)
        window.end(None)
    finally:
        if hasattr(source, "aclose"):
            await source.aclose()
