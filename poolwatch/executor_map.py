"""``ProcessPoolExecutor.map``: an ``imap`` that ends with the first error and cancels the rest."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from poolwatch.core import Core
from poolwatch.feeding import Feed
from poolwatch.imap_results import IMapIterator, NoResultYet
from poolwatch.imap_state import InOrder
from poolwatch.pool import Pool

T = TypeVar("T")


class Maps:
    """The maps of one executor, as long as anything of them is under way."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._states: weakref.WeakSet[InOrder] = weakref.WeakSet()  # jobs and consumers hold them
        self._feeds: weakref.WeakSet[Feed] = weakref.WeakSet()  # the core holds those that read

    def start(
        self,
        pool: Pool,
        fn: Callable[..., T],
        items: Iterable[Any],
        deadline: float | None,
        chunksize: int,
        buffersize: int | None,
    ) -> ResultIterator[T]:
        """Begin a map; see ``ProcessPoolExecutor.map``.

        Args:
            pool: an open pool.
            fn: called with one item of each iterable.
            items: tuples of arguments; a list unless there is a buffersize.
            deadline: monotonic seconds; None for no bound.
            chunksize: items that travel together.
            buffersize: how many items may be read ahead; None for all.

        Raises:
            ValueError, PoolBroken: the pool has ended meanwhile.
        """
        reads_on = buffersize is not None
        if buffersize is None:
            items = list(items)
            buffersize = len(items) + chunksize  # room for a last chunk that is not full
        state = InOrder()
        with self._lock:
            self._states.add(state)
        feed = pool._feed(fn, items, chunksize, buffersize, state, star=True)
        with self._lock:
            self._feeds.add(feed)
        results: IMapIterator[T] = IMapIterator(feed, state, pool)
        return ResultIterator(results, pool._core, state, deadline, reads_on)

    def owners(self) -> list[InOrder]:
        """Return whose jobs the jobs of the maps are, see ``chunks.Part``."""
        with self._lock:
            return list(self._states)

    def stop(self, error: BaseException) -> None:
        """Read no more of any input; what has been read runs.

        Args:
            error: of which kind consumers get one after the results of that.
        """
        with self._lock:
            feeds = list(self._feeds)
        for feed in feeds:
            feed.stop(type(error)(*error.args))


class ResultIterator(Generic[T]):
    """The results of ``ProcessPoolExecutor.map``, in order.

    The first error ends it. When it has ended that way, is closed, or is dropped half-way, what has
    not begun is cancelled. Dropped before anything was taken from it, it was called for its
    effects: what has been read runs (all as in the standard library).
    """

    def __init__(
        self,
        results: IMapIterator[T],
        core: Core,
        state: InOrder,
        deadline: float | None,
        reads_on: bool,
    ) -> None:
        """Make one; called by the executor."""
        self._results: IMapIterator[T] | None = results
        self._core = core
        self._state = state
        self._deadline = deadline
        self._reads_on = reads_on
        self._begun = False

    def __iter__(self) -> ResultIterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next result.

        Raises:
            StopIteration: there are no more.
            concurrent.futures.TimeoutError: the time given to ``map`` is over.
            RuntimeError: the item raised StopIteration, which is the cause.
            Exception: what the item raised, or its ``WorkerLostError``.
        """
        results = self._results
        if results is None:
            raise StopIteration
        self._begun = True
        deadline = self._deadline
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return results.next(timeout)
        except StopIteration:
            self._results = None
            raise
        except NoResultYet:
            self.close()
            raise concurrent.futures.TimeoutError from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the iterator; cancel what has not begun. May be called more than once."""
        results, self._results = self._results, None
        if results is not None and not self._core.foreign:
            results.drop()
            _cancel(self._core, self._state)

    def __del__(self) -> None:
        results = getattr(self, "_results", None)
        if results is None or self._core.foreign:
            return
        if self._begun or self._reads_on:
            results.drop()
        if self._begun:
            # Not here: whoever happens to collect garbage may be in the middle of anything.
            core, state = self._core, self._state
            core.call_soon(lambda: _cancel(core, state))


def _cancel(core: Core, state: InOrder) -> None:
    core.access.orders.take_back_all(core.unfinished_jobs(state))
