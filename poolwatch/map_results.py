"""What ``map_async`` returns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from poolwatch.checks import seconds
from poolwatch.exceptions import TimeoutError
from poolwatch.job import Waiter
from poolwatch.latch import Latch
from poolwatch.outcome import Outcome
from poolwatch.pieces import Piece, new_piece

if TYPE_CHECKING:
    from poolwatch.assist import Assist

T = TypeVar("T")


class MapResult(Generic[T]):
    """The results of a ``map_async``, in input order (as ``multiprocessing.pool.MapResult``).

    It is ready when every item is accounted for. Whoever asks first unpickles, in their own thread;
    with callbacks it is the pool's delivery thread, and the map is ready when they have run.
    """

    def __init__(
        self,
        length: int,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        deliver: Callable[[Callable[[], object]], None],
        on_failure: Callable[[str, BaseException, object], None],
        assist: Assist | None = None,
    ) -> None:
        """Make one; called by the pool.

        Args:
            length: number of items.
            callback: called with the values when all items have succeeded.
            error_callback: called with the first error in input order when one has not.
            deliver: has something called on the delivery thread.
            on_failure: told of a callback that raises: its role, what it raised, itself.
            assist: helps the pool along in the thread that waits.
        """
        self._values: list[Any] = [None] * length
        self._failed: dict[int, BaseException] = {}
        self._pieces: list[Piece] = []
        self._accounted = bytearray(length)  # 1 for every item that has an outcome
        self._missing = length
        self._callback = callback
        self._error_callback = error_callback
        self._deliver = deliver
        self._on_failure = on_failure
        self._assist = assist
        self._completed = False
        self._aborted: BaseException | None = None
        self._ready = Latch()
        self._lock = threading.RLock()  # for unpickling, which may come back here
        if not length:
            self._complete()

    # -- the pool's side -------------------------------------------------------------------------

    # Nothing of the user's runs here. Each of these may be done again after an interruption; what
    # is counted wrong then is counted again.

    def account(self, start: int, count: int, outcome: Outcome | BaseException) -> None:
        """Take the outcomes of neighbouring items that travelled together."""
        if not count or self._accounted[start]:
            return
        self._pieces.append(Piece(start, count, outcome, False))
        self._accounted[start : start + count] = b"\1" * count
        self._missing -= count
        if not self._missing:
            self._complete()

    def account_item(self, index: int, outcome: Outcome | BaseException) -> None:
        """Take the outcome of an item that travelled alone."""
        if self._accounted[index]:
            return
        self._pieces.append(new_piece(Piece, (index, 1, outcome, True)))
        self._accounted[index] = 1
        self._missing -= 1
        if not self._missing:
            self._complete()

    def recount(self) -> None:
        """Count again, after an interruption in the middle of the bookkeeping."""
        self._missing = self._accounted.count(0)
        if not self._missing:
            self._complete()

    def _complete(self) -> None:
        if self._callback is None and self._error_callback is None:
            self._ready.set()
        elif not self._completed:
            self._deliver(self._call_back)
            self._completed = True  # when that is interrupted in between, twice

    def _call_back(self) -> None:
        if self._ready.is_set():
            return
        role = "callback"
        callback: Callable[[Any], object] | None = self._callback
        try:
            error = self._first_error()
            if error is not None:
                role, callback = "error_callback", self._error_callback
            if callback is not None:
                callback(self._values if error is None else error)
        except BaseException as problem:  # noqa: BLE001  (the user's code, even exit(); reported)
            self._on_failure(role, problem, callback)
        finally:
            self._ready.set()

    def silence(self) -> None:
        """Call nobody back: items were dropped by ``flush()``."""
        self._callback = self._error_callback = None

    def abort(self, error: BaseException) -> None:
        """Be ready at once: the pool has ended, and a callback may block for ever."""
        if not self._ready.is_set():
            self._aborted = error
            self._ready.set()

    # -- unpickling ------------------------------------------------------------------------------

    def _unpickle(self) -> None:
        with self._lock:
            self._unpickle_all()

    def _unpickle_all(self) -> None:
        pieces = self._pieces
        while pieces:
            piece = pieces[-1]
            if piece.alone:
                self._unpickle_item(piece)
            else:
                self._unpickle_piece(piece)
            pieces.pop()  # not when Ctrl-C came in between: then once more

    def _unpickle_item(self, piece: Piece) -> None:
        succeeded, value = piece.result()
        if succeeded:
            self._values[piece.start] = value
        else:
            self._failed[piece.start] = value

    def _unpickle_piece(self, piece: Piece) -> None:
        values, failures = piece.load()
        self._values[piece.start : piece.start + piece.length] = values
        for place, error in failures.items():
            self._failed[piece.start + place] = error

    def _first_error(self) -> BaseException | None:
        self._unpickle()
        return self._failed[min(self._failed)] if self._failed else self._aborted

    # -- the user's side -------------------------------------------------------------------------

    def _wait(self, timeout: float | None) -> bool:
        if timeout is not None:
            timeout = seconds("timeout", timeout, negative=True)
        if self._assist is None or self._ready.is_set():
            return self._ready.wait(timeout)
        return self._ready.wait(self._assist.until(self._ready.is_set, timeout))

    def _await(self, timeout: float | None) -> None:
        if not self._wait(timeout):
            raise TimeoutError(f"{self._missing} items are not ready after {timeout:g} s")

    def get(self, timeout: float | None = None) -> list[T]:
        """Return the values in input order, or raise the first error in input order.

        Args:
            timeout: seconds to wait; None to wait until all items are accounted for.

        Raises:
            TimeoutError: they are not, after that time.
            Exception: the error of the first item that failed.
        """
        self._await(timeout)
        error = self._first_error()
        if error is None:
            return self._values
        try:
            raise error
        finally:
            del error, self

    def outcomes(self, timeout: float | None = None) -> list[tuple[bool, Any]]:
        """Return ``(True, value)`` or ``(False, exception)`` for every item, in input order.

        Args:
            timeout: as for :meth:`get`.

        Raises:
            TimeoutError: as for :meth:`get`.
        """
        self._await(timeout)
        self._unpickle()
        return [self._outcome(index) for index in range(len(self._values))]

    def _outcome(self, index: int) -> tuple[bool, Any]:
        if index in self._failed:
            return False, self._failed[index]
        if not self._accounted[index]:
            return False, self._aborted
        return True, self._values[index]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every item is accounted for, no longer than ``timeout`` seconds."""
        self._wait(timeout)

    def ready(self) -> bool:
        """Return True when every item is accounted for."""
        return self._ready.is_set()

    def successful(self) -> bool:
        """Return True when no item failed.

        Raises:
            ValueError: not every item is accounted for.
        """
        if not self._ready.is_set():
            raise ValueError(f"{self!r} not ready")
        return self._first_error() is None

    def _add_waiter(self, waiter: Waiter) -> None:
        self._ready.add_waiter(waiter)

    def _remove_waiter(self, waiter: Waiter) -> None:
        self._ready.remove_waiter(waiter)

    def _check_may_wait(self) -> None:
        if self._assist is not None:
            self._assist.check_may_wait()

    @property
    def accounted(self) -> int:
        """How many items have an outcome by now."""
        return len(self._values) - self._missing

    # Programs read how many chunks are left, and how long those are, although both are private in
    # multiprocessing. Their product is the number of items, so it is here.

    _chunksize = 1

    @property
    def _number_left(self) -> int:
        return self._missing

    def __repr__(self) -> str:
        state = "ready" if self._ready.is_set() else f"{self._missing} missing"
        return f"<{type(self).__name__} {len(self._values)} items, {state}>"
