"""The methods of ``Pool`` that call a function with each item of an iterable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from poolwatch import call_types, checks
from poolwatch.config import name_of
from poolwatch.core import Core
from poolwatch.events import HookFailed
from poolwatch.feeding import Feed, default_buffersize
from poolwatch.hints import OF_CALLS, hinting
from poolwatch.imap_results import IMapIterator, IMapUnorderedIterator
from poolwatch.imap_state import AsCompleted, IMapState, InOrder
from poolwatch.map_results import MapResult
from poolwatch.mapping import Mapper, default_chunksize
from poolwatch.progress import (
    DrawnIMapIterator,
    DrawnIMapUnorderedIterator,
    follow,
    follow_aside,
    length_of,
    new_bar,
)

T = TypeVar("T")
S = TypeVar("S")


class PoolMaps:
    """Part of ``Pool``."""

    _core: Core

    @hinting(OF_CALLS)
    def map(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[T]:
        """Return ``[func(item) for item in iterable]``, computed by the workers.

        Args:
            func: called with each item.
            iterable: the items; read to its end at once.
            chunksize: items that travel together; by default a quarter of a worker's share (as in
                multiprocessing).
            progress: True to show a bar (tqdm, extra ``progress``) that moves as items finish.

        Raises:
            ImportError: ``progress`` without tqdm.
            Exception: what the iterable raised; or the error of the first item, in input order,
                that failed, after all items are accounted for (both as in multiprocessing).
        """
        if checks.flag("progress", progress):
            return self._drawn_map(func, iterable, False, chunksize)
        return self.map_async(func, iterable, chunksize).get()

    @hinting(OF_CALLS)
    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: bool = False,
    ) -> MapResult[T]:
        """Do what :meth:`map` does, and return at once.

        Args:
            func: called with each item.
            iterable: the items; read to its end at once.
            chunksize: as for :meth:`map`.
            callback: called with the list of values when all items have succeeded.
            error_callback: called with the first error in input order when one has not.
            progress: as for :meth:`map`; the bar has a thread of its own.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: chunksize out of range, or the pool is closed.
            PoolBroken: the pool cannot go on.
            Exception: what the iterable raised.
        """
        return self._map_async(func, iterable, False, chunksize, callback, error_callback, progress)

    @call_types.starmap
    @hinting(OF_CALLS)
    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[T]:
        """Return ``[func(*args) for args in iterable]``, computed by the workers.

        Args:
            func: called with each item's elements.
            iterable: the items, each an iterable of arguments; read to its end at once.
            chunksize: as for :meth:`map`.
            progress: as for :meth:`map`.

        Raises:
            Exception: as :meth:`map`.
        """
        if checks.flag("progress", progress):
            return self._drawn_map(func, iterable, True, chunksize)
        return self._map_async(func, iterable, True, chunksize, None, None).get()

    @call_types.starmap_async
    @hinting(OF_CALLS)
    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: bool = False,
    ) -> MapResult[T]:
        """Do what :meth:`starmap` does, and return at once.

        Args:
            func: called with each item's elements.
            iterable: the items, each an iterable of arguments; read to its end at once.
            chunksize: as for :meth:`map`.
            callback: as for :meth:`map_async`.
            error_callback: as for :meth:`map_async`.
            progress: as for :meth:`map_async`.

        Raises:
            TypeError, ValueError, PoolBroken, Exception: as :meth:`map_async`.
        """
        return self._map_async(func, iterable, True, chunksize, callback, error_callback, progress)

    def _map_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        star: bool,
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        progress: bool = False,
    ) -> MapResult[T]:
        core = self._core
        core.check_open()
        if checks.flag("progress", progress):
            return self._drawn_aside(func, iterable, star, chunksize, callback, error_callback)
        checks.function("func", func)
        size = None if chunksize is None else checks.whole("chunksize", chunksize)
        items = list(iterable)
        result: MapResult[T] = MapResult(
            len(items),
            checks.callable_or_none("callback", callback),
            checks.callable_or_none("error_callback", error_callback),
            core.deliver,
            self._hook_failed,
            core.access.assist,
        )
        if size is None:
            size = default_chunksize(len(items), core.size)
        Mapper(core, func, star, size).submit(result, items, self)
        return result

    def _drawn_map(
        self, func: Callable[..., T], iterable: Iterable[Any], star: bool, chunksize: int | None
    ) -> list[T]:
        items = list(iterable)
        bar = new_bar(len(items))
        try:
            result = self._map_async(func, items, star, chunksize, None, None)
            follow(result, bar)
        finally:
            bar.close()
        return result.get()

    def _drawn_aside(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        star: bool,
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult[T]:
        items = list(iterable)
        bar = new_bar(len(items))
        try:
            result = self._map_async(func, items, star, chunksize, callback, error_callback)
            follow_aside(result, bar, f"{self._core.options.name}-progress")
        except BaseException:
            bar.close()
            raise
        return result

    def _hook_failed(self, hook: str, error: BaseException, callback: Any) -> None:
        bus = self._core.supervisor.bus
        bus.emit(HookFailed(bus.pool, hook, error, name_of(callback)))

    @hinting(OF_CALLS)
    def imap(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> IMapIterator[T]:
        """Return an iterator over ``func(item)`` for each item, in input order.

        The input is read as results are taken, so that it may be endless. An item that fails, or
        whose worker dies, raises its error at its position; the iterator goes on afterwards. If
        the input raises, its error comes after the results of the items before, and ends it (as in
        multiprocessing).

        A list, tuple, range or string is read in the thread that takes results. Any other input is
        read in a thread of its own, so that it may wait, also for results. Reading ends when the
        iterator is dropped half-way, or with the pool. ``close()`` lets it go on; ``join()`` has
        the input read to its end without waiting for results to be taken (as in multiprocessing).
        The same holds for an iterator that is dropped before anything was taken from it.

        Args:
            func: called with each item.
            iterable: the items.
            chunksize: items that travel together; more than 1 pays for short jobs.
            buffersize: how many items may be read beyond those whose results have been taken; by
                default 128 items or 32 chunks for each worker, whichever is more. No more than
                that travel together.
            progress: True to show a bar (tqdm, extra ``progress``) that moves as results are
                taken, and is closed at the end or when the iterator is dropped.

        Raises:
            ImportError: ``progress`` without tqdm.
            TypeError: an argument of the wrong kind.
            ValueError: chunksize or buffersize below 1, or the pool is closed.
            PoolBroken: the pool cannot go on.
            RuntimeError: no more threads to be had.
        """
        state = InOrder()
        bar = new_bar(length_of(iterable)) if checks.flag("progress", progress) else None
        feed = self._feed(func, iterable, chunksize, buffersize, state, bar)
        if bar is not None:
            return DrawnIMapIterator(feed, state, self, bar)
        return IMapIterator(feed, state, self)

    @hinting(OF_CALLS)
    def imap_unordered(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> IMapUnorderedIterator[T]:
        """Do what :meth:`imap` does; the results come in order of completion.

        Args:
            func: called with each item.
            iterable: the items.
            chunksize: as for :meth:`imap`.
            buffersize: as for :meth:`imap`.
            progress: as for :meth:`imap`.

        Raises:
            TypeError, ValueError, PoolBroken, RuntimeError: as :meth:`imap`.
        """
        state = AsCompleted()
        bar = new_bar(length_of(iterable)) if checks.flag("progress", progress) else None
        feed = self._feed(func, iterable, chunksize, buffersize, state, bar)
        if bar is not None:
            return DrawnIMapUnorderedIterator(feed, state, self, bar)
        return IMapUnorderedIterator(feed, state, self)

    def _feed(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        state: IMapState,
        bar: Any = None,
        star: bool = False,
    ) -> Feed:
        """Begin to read the input of an ``imap``; a bar is closed if that fails.

        With ``star`` an item holds several arguments.
        """
        try:
            return self._start_feed(func, iterable, chunksize, buffersize, state, star)
        except BaseException:
            if bar is not None:
                bar.close()
            raise

    def _start_feed(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        state: IMapState,
        star: bool,
    ) -> Feed:
        core = self._core
        core.check_open()
        checks.function("func", func)
        size = checks.whole("chunksize", chunksize)
        if buffersize is None:
            window = default_buffersize(core.size, size)
        else:
            window = checks.whole("buffersize", buffersize)
        size = min(size, window)
        mapper = Mapper(core, func, star, size, prompt=True)
        feed = Feed(core, mapper, state, iterable, size, window, self)
        feed.start()
        return feed
