"""``AsyncPool`` itself; see the package."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from poolwatch import checks, config, hints
from poolwatch.aio.imap import AsyncIMapIterator
from poolwatch.aio.jobs import AwaitedMap, JobFuture, Mailboxes, cancel_all, in_thread
from poolwatch.imap_state import AsCompleted, InOrder
from poolwatch.job import JobOptions
from poolwatch.mapping import Mapper, default_chunksize
from poolwatch.policies import LostWorkerPolicy
from poolwatch.pool import Pool
from poolwatch.results import ApplyResult

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from poolwatch.keywords import PoolKeywords

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

_MANY = 2_000  # items of a map


class AsyncCalls:
    """Calls functions in the workers of an ``AsyncPool``; see ``AsyncPool.options``."""

    def __init__(self, pool: Pool, mailboxes: Mailboxes, options: JobOptions | None) -> None:
        """Make one; called by the pool."""
        self._pool = pool
        self._core = pool._core
        self._mailboxes = mailboxes
        self._options = options

    async def apply(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``func(*args, **kwargs)`` in a worker and return its value.

        Cancelling the task that awaits this ends the job, see :class:`JobFuture`.

        Raises:
            TypeError: not callable, or a coroutine function.
            ValueError, PoolBroken: as :meth:`submit`.
            WorkerLostError: the worker died while it ran the job.
            RuntimeError: the job raised what would act on the event loop or the task here:
                ``SystemExit``, ``KeyboardInterrupt``, ``GeneratorExit``, ``StopIteration``,
                ``StopAsyncIteration`` or ``asyncio.CancelledError``; it is the cause.
            Exception: what the job raised.
        """
        return await self.submit(func, *args, **kwargs)

    def submit(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[T]:
        """Have ``func(*args, **kwargs)`` run in a worker; return at once what can be awaited.

        If the call does not pickle, the future tells so.

        Raises:
            TypeError: not callable, or a coroutine function.
            ValueError: the pool is closed.
            PoolBroken: the pool cannot go on.
            PoolFull: ``max_pending`` jobs are unfinished; it never waits, as that would stop the
                loop. :meth:`imap` has a window of its own.
            RuntimeError: no event loop runs in this thread.
        """
        checks.function("func", func)
        core = self._core
        core.check_open()
        loop = asyncio.get_running_loop()
        future: JobFuture[T] = JobFuture(loop=loop)
        options = core.plain_options() if self._options is None else self._options
        try:
            options = core.with_surroundings(options)
            call = core.snapshot.encode(func, args, kwargs)
        except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            hints.note_call(error, config.name_of(func), args, kwargs)
            future.set_exception(error)
            return future
        name, watch = config.name_of(func), self._mailboxes.of(loop).watch(future)
        job = core.submit(name, call, options, self._pool, wait=False, part=watch)
        future._handle = ApplyResult(job, core.access)
        return future


class AsyncPool(AsyncCalls):
    """A pool of worker processes for programs that run in an event loop.

    ``async with AsyncPool() as pool:`` waits at its end for what was submitted. When the body
    raises, or is cancelled, everything is ended at once. Submissions may come from several loops in
    several threads; each future belongs to the loop in which it was made.

    Making one forks processes, which takes some milliseconds of the loop's time: make it early.

    Args:
        processes: number of workers; by default the processors that this process may use.
        initializer: called once per worker before its first job, see ``Pool``.
        initargs: its arguments.
        maxtasksperchild: jobs after which a worker is replaced; None for no bound.
        context: how workers are made, see ``Pool``.
        **options: all other keyword arguments of ``Pool``, by the same names.

    Raises:
        TypeError: an argument of the wrong kind, or one that does not exist.
        ValueError: a value out of range.
        OSError: no process or descriptor to be had.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: str | BaseContext | None = None,
        **options: Unpack[PoolKeywords],
    ) -> None:
        pool = Pool(processes, initializer, initargs, maxtasksperchild, context, **options)
        super().__init__(pool, Mailboxes(), None)

    @classmethod
    def from_pool(cls, pool: Pool) -> Self:
        """Return an ``AsyncPool`` that shares a pool. Ending one ends the other.

        Raises:
            TypeError: no pool.
        """
        if not isinstance(pool, Pool):
            raise TypeError(f"pool must be a poolwatch.Pool, not {pool!r}")
        self = cls.__new__(cls)
        AsyncCalls.__init__(self, pool, Mailboxes(), None)
        return self

    @property
    def pool(self) -> Pool:
        """The pool behind this face: its workers, its events, its control."""
        return self._pool

    def options(
        self,
        *,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        lost_worker_policy: LostWorkerPolicy | None = None,
        correlation_id: str | None = None,
        tag: object = None,
        priority: int = 0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        memory_limit: int | None = None,
    ) -> AsyncCalls:
        """Return something that calls as this pool does, but with options for each job.

        ``await pool.options(timeout=5).apply(parse, page)``. The arguments are those of
        ``Pool.apply_async``; by default what holds for the pool.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a value out of range.
        """
        soft, hard = config.job_limits(self._core.options, soft_timeout, timeout)
        policy = config.policy(lost_worker_policy, lost_worker_timeout)
        none = (None, None, None, None)
        options = config.job_options(
            *none, soft, hard, policy, tag, correlation_id, priority, env, cwd, memory_limit
        )
        return AsyncCalls(self._pool, self._mailboxes, options)

    # -- many items ------------------------------------------------------------------------------

    async def map(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int | None = None
    ) -> list[T]:
        """Return ``[func(item) for item in iterable]``, computed by the workers.

        The input is read and pickled before this first waits; for very many items see :meth:`imap`.
        Cancelling the task that awaits this ends all that has not ended.

        Args:
            func: called with each item.
            iterable: the items; read to its end at once.
            chunksize: items that travel together; by default a quarter of a worker's share.

        Raises:
            TypeError, ValueError, PoolBroken: as ``Pool.map_async``.
            Exception: what the iterable raised; or the error of the first item, in input order,
                that failed, after all items are accounted for.
        """
        return await self._gather(func, iterable, chunksize, star=False)

    async def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[T]:
        """Return ``[func(*args) for args in iterable]``; everything else as :meth:`map`."""
        return await self._gather(func, iterable, chunksize, star=True)

    async def _gather(
        self, func: Callable[..., T], iterable: Iterable[Any], chunksize: int | None, star: bool
    ) -> list[T]:
        core = self._core
        core.check_open()
        checks.function("func", func)
        size = None if chunksize is None else checks.whole("chunksize", chunksize)
        items = list(iterable)
        if size is None:
            size = default_chunksize(len(items), core.size)
        result: AwaitedMap[T] = AwaitedMap(len(items), core, self._pool._hook_failed)
        try:
            Mapper(core, func, star, size).submit(result, items, self._pool)
            await result.done
        except BaseException:
            cancel_all(core, result)
            raise
        if len(items) < _MANY:
            return result.get()
        return await in_thread(result.get)  # unpickling so many would hold up the loop

    def imap(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> AsyncIMapIterator[T]:
        """Return an asynchronous iterator over ``func(item)`` for each item, in input order.

        The input, which may be endless, is read as results are taken. An item that fails, or whose
        worker dies, raises at its position, and the iterator goes on afterwards. Leave it early
        with ``aclose()``: what has not ended is ended then, as when it is collected.

        Args:
            func: called with each item.
            iterable: the items; a synchronous one is read in the loop's thread and must not block.
            chunksize: items that travel together; more than 1 pays for short jobs.
            buffersize: how many items may be read beyond those whose results have been taken; by
                default as ``Pool.imap``.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: chunksize or buffersize below 1, or the pool is closed.
            PoolBroken: the pool cannot go on.
            RuntimeError: no event loop runs in this thread.
        """
        return AsyncIMapIterator(self._pool, InOrder(), func, iterable, chunksize, buffersize)

    def imap_unordered(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S] | AsyncIterable[S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> AsyncIMapIterator[T]:
        """Do what :meth:`imap` does; the results come in order of completion."""
        return AsyncIMapIterator(self._pool, AsCompleted(), func, iterable, chunksize, buffersize)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more jobs. Those that were taken run, also when workers die meanwhile."""
        self._pool.close()

    async def join(self, timeout: float | None = None) -> None:
        """Wait until all jobs have ended and all workers have gone.

        This waits in a thread of its own. Cancelled, it leaves the pool as it is.

        Args:
            timeout: seconds to wait; None to wait for ever.

        Raises:
            ValueError: the pool is still open.
            TimeoutError: it is not finished after that time.
        """
        await in_thread(lambda: self._pool.join(timeout))

    async def aclose(self) -> None:
        """Close the pool, and wait for the end of all jobs and workers."""
        self.close()
        await self.join()

    async def terminate(self) -> None:
        """End everything at once; unfinished jobs end with ``Terminated``."""
        self._core.terminate()  # at once, even if no thread is to be had
        await in_thread(self._pool.terminate)

    async def __aenter__(self) -> Self:
        self._core.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            await self.terminate()
            return
        try:
            await self.aclose()
        except asyncio.CancelledError:
            await self.terminate()
            raise

    def __repr__(self) -> str:
        return f"<AsyncPool of {self._pool!r}>"
