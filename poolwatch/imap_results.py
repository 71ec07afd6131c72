"""What ``imap`` and ``imap_unordered`` return."""

from __future__ import annotations

import time
from _thread import get_ident
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from poolwatch.checks import seconds
from poolwatch.exceptions import TimeoutError
from poolwatch.feeding import Feed
from poolwatch.imap_state import IMapState, InputError

T = TypeVar("T")


class NoResultYet(TimeoutError):
    """The time to wait for a result is over; told apart from a job's own ``TimeoutError``."""


class IMapIterator(Generic[T]):
    """The results of an ``imap``, in input order (as ``multiprocessing.pool.IMapIterator``).

    An item that failed raises its error at its position; the iterator goes on afterwards. Any
    thread may take results. When it is collected half-way, no more of the input is read.
    """

    __slots__ = ("__weakref__", "_feed", "_pool", "_state")

    def __init__(self, feed: Feed, state: IMapState, pool: object) -> None:
        """Make one; called by the pool.

        Args:
            feed: submits the input.
            state: where outcomes come.
            pool: must not be collected before the end.
        """
        self._feed = feed
        self._state = state
        self._pool = pool

    def __del__(self) -> None:
        # Not by weakref.finalize, which would keep the feed: an error that came from it may lead
        # back here, by the frames of its traceback.
        feed = getattr(self, "_feed", None)  # None: Ctrl-C came while this was being made
        if feed is not None:
            feed.abandon()

    def __iter__(self) -> IMapIterator[T]:
        return self

    def next(self, timeout: float | None = None) -> T:
        """Return the next result, or raise the next item's error.

        Args:
            timeout: seconds to wait; None to wait until there is one.

        Raises:
            StopIteration: there are no more; again and again.
            TimeoutError: there is none after that time (it may come later).
            RuntimeError: in a forked child, which inherited the iterator.
            Terminated, PoolBroken: the pool has ended before the input.
            RuntimeError: the item raised StopIteration, which is the cause; here it would pass for
                the end (in multiprocessing it does).
            Exception: what the item raised, or its ``WorkerLostError``; or, at the end, what the
                input raised.
        """
        state = self._state
        handed, values = state.handed, state.values
        if values and not handed and state.delivered + 1 < state.refill_at:
            first: T = values[-1]  # from here on nothing can interrupt: see ``imap_state``
            del values[-1]
            state.delivered += 1
            return first
        thread = get_ident()
        while True:
            if thread not in handed and not state.take(thread):
                self._await(thread, timeout)
            if state.delivered >= state.refill_at:
                self._feed.go_on()
            item = handed.get(thread)
            if item is None:
                continue  # a signal handler has taken it
            succeeded, value = item.result()
            if not succeeded and isinstance(value, StopIteration):
                value = _not_the_end(value)
            try:
                del handed[thread]
            except KeyError:
                continue  # likewise
            # From here on nothing can interrupt, as above.
            if succeeded:
                result: T = value
                return result
            try:
                raise value
            finally:
                del value, item, self  # the traceback would keep all alive in a cycle

    # Not a function that calls next(): it could be interrupted when that has returned.
    __next__ = next  # noqa: A003

    def outcomes(self) -> Iterator[tuple[bool, T | BaseException]]:
        """Return an iterator of ``(True, value)`` or ``(False, exception)`` for the items to come.

        What an item has raised, also a loss of its worker, is handed out and not raised.

        Raises:
            Terminated, PoolBroken: by the iterator, when the pool has ended before the input.
            Exception: by the iterator, at the end: what the input raised.
        """
        while True:
            try:
                outcome = self._take_outcome()
            except StopIteration:
                return
            yield outcome

    def _take_outcome(self) -> tuple[bool, Any]:
        """Do what :meth:`next` does, without raising an item's error.

        Raises:
            StopIteration: there are no more; an item's own is not raised.
        """
        state, thread = self._state, get_ident()
        handed = state.handed
        while True:
            if thread not in handed and not state.take(thread):
                self._await(thread, None)
            if state.delivered >= state.refill_at:
                self._feed.go_on()
            item = handed.get(thread)
            if item is None:
                continue  # a signal handler has taken it
            outcome = item.result()
            try:
                del handed[thread]
            except KeyError:
                continue  # likewise
            if isinstance(item, InputError):
                raise outcome[1]
            return outcome

    def _await(self, thread: int, timeout: float | None) -> None:
        """Take the next item, and wait for it."""
        state, core = self._state, self._feed.core
        if timeout is not None:
            timeout = seconds("timeout", timeout, negative=True)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not state.take(thread):
            if state.over:
                self._pool = None
                raise StopIteration
            core.check_owner()
            if state.delivered >= state.refill_at:
                self._feed.go_on()
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            core.access.assist.until(state.has_next, rest)
            if rest == 0.0 and not state.has_next():
                raise NoResultYet(f"no result after {timeout:g} s")
            if not state.has_next():
                state.wait(rest)

    def drop(self) -> None:
        """Read no more of the input; what has not been taken out is forgotten."""
        self._feed.drop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state.delivered} taken>"


def _not_the_end(error: StopIteration) -> RuntimeError:
    """Return an item's own StopIteration as an error that ends no loop, as generators do it."""
    problem = RuntimeError(f"the job raised {error!r}")
    problem.__cause__ = error
    return problem


class IMapUnorderedIterator(IMapIterator[T]):
    """The results of an ``imap_unordered``, in order of completion.

    As ``multiprocessing.pool.IMapUnorderedIterator``.
    """

    __slots__ = ()
