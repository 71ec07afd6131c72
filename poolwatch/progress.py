"""The bar of ``progress=True``: tqdm, drawn in threads that belong to the user or to the bar.

The supervisor draws nothing: writing to a terminal may block. Whoever waits for a map moves its bar
meanwhile; for a map that nobody waits for, the bar has a thread of its own that ends with the map.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sized
from typing import Any, TypeVar

from poolwatch.feeding import Feed
from poolwatch.imap_results import IMapIterator, IMapUnorderedIterator
from poolwatch.imap_state import IMapState
from poolwatch.map_results import MapResult

T = TypeVar("T")
_EVERY_SECONDS = 0.1  # as tqdm draws at most


def new_bar(total: int | None) -> Any:
    """Return a bar.

    Args:
        total: number of items; None when it is not known.

    Raises:
        ImportError: tqdm is not installed.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        text = "progress=True needs tqdm: pip install 'poolwatch[progress]'"
        raise ImportError(text) from error
    # No thread that outlives the bar, which tqdm starts for bars that are not moved for long.
    return type("tqdm", (tqdm,), {"monitor_interval": 0})(total=total)


def length_of(iterable: Iterable[Any]) -> int | None:
    """Return how many items an input has, where it can say so."""
    return len(iterable) if isinstance(iterable, Sized) else None


def follow(result: MapResult[Any], bar: Any) -> None:
    """Move a bar until a map is ready; it is closed in every case."""
    try:
        while not result.ready():
            result.wait(_EVERY_SECONDS)
            bar.update(result.accounted - bar.n)
        bar.update(result.accounted - bar.n)
    finally:
        bar.close()


def follow_aside(result: MapResult[Any], bar: Any, name: str) -> None:
    """Do what :func:`follow` does, in a thread that ends when the map is ready.

    Raises:
        RuntimeError: no more threads to be had; the bar is closed, the map goes on.
    """
    thread = threading.Thread(target=follow, args=(result, bar), name=name, daemon=True)
    try:
        thread.start()
    except BaseException:
        bar.close()
        raise


class _Drawn(IMapIterator[T]):
    """An iterator that moves a bar for each item that is taken."""

    __slots__ = ("_bar",)

    def __init__(self, feed: Feed, state: IMapState, pool: object, bar: Any) -> None:
        super().__init__(feed, state, pool)
        self._bar = bar

    def next(self, timeout: float | None = None) -> T:
        """See :meth:`IMapIterator.next`."""
        before = self._state.delivered
        try:
            return super().next(timeout)
        finally:
            self._moved(before)

    __next__ = next  # noqa: A003

    def _moved(self, before: int) -> None:
        state = self._state
        if state.delivered > before:
            self._bar.update(min(state.delivered, state.length or state.delivered) - self._bar.n)
        if state.over or (state.length is not None and state.delivered >= state.length):
            self._bar.close()

    def _take_outcome(self) -> tuple[bool, T]:
        before = self._state.delivered
        try:
            return super()._take_outcome()
        finally:
            self._moved(before)

    def __del__(self) -> None:
        super().__del__()
        bar = getattr(self, "_bar", None)
        if bar is not None:
            bar.close()


class DrawnIMapIterator(_Drawn[T]):
    """The results of an ``imap(progress=True)``."""

    __slots__ = ()


class DrawnIMapUnorderedIterator(_Drawn[T], IMapUnorderedIterator[T]):
    """The results of an ``imap_unordered(progress=True)``."""

    __slots__ = ()
