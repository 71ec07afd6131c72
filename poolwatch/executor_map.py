"""``ProcessPoolExecutor.map``: an ``imap`` that ends with the first error and cancels the rest."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from poolwatch.core import Core
from poolwatch.imap_results import IMapIterator, NoResultYet
from poolwatch.imap_state import InOrder
from poolwatch.pool import Pool

T = TypeVar("T")


def map_results(
    pool: Pool,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    deadline: float | None,
    chunksize: int,
    buffersize: int | None,
) -> ResultIterator[T]:
    """Return the iterator; see ``ProcessPoolExecutor.map``.

    Args:
        pool: an open pool.
        fn: called with one item of each iterable.
        iterables: read to their end at once, unless there is a buffersize.
        deadline: monotonic seconds; None for no bound.
        chunksize: items that travel together.
        buffersize: how many items may be read ahead; None for all.
    """
    items: Iterable[Any] = zip(*iterables)  # noqa: B905  (as the standard library: the shortest)
    if buffersize is None:
        items = list(items)
        buffersize = max(1, len(items))
    state = InOrder()
    feed = pool._feed(fn, items, chunksize, buffersize, state, star=True)
    return ResultIterator(IMapIterator(feed, state, pool), pool._core, state, deadline)


class ResultIterator(Generic[T]):
    """The results of ``ProcessPoolExecutor.map``, in order.

    The first error ends it. When it ends, is closed or is dropped, what has not begun is cancelled.
    """

    def __init__(
        self, results: IMapIterator[T], core: Core, state: InOrder, deadline: float | None
    ) -> None:
        """Make one; called by the executor."""
        self._results: IMapIterator[T] | None = results
        self._core = core
        self._state = state
        self._deadline = deadline

    def __iter__(self) -> ResultIterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next result.

        Raises:
            StopIteration: there are no more.
            concurrent.futures.TimeoutError: the time given to ``map`` is over.
            Exception: what the item raised, or its ``WorkerLostError``.
        """
        results = self._results
        if results is None:
            raise StopIteration
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
        if results is not None and not self._core.foreign:
            # Not here: whoever happens to collect garbage may be in the middle of anything.
            core, state = self._core, self._state
            results.drop()
            core.call_soon(lambda: _cancel(core, state))


def _cancel(core: Core, state: InOrder) -> None:
    for job in core.unfinished_jobs(state):
        core.access.orders.take_back(job)
