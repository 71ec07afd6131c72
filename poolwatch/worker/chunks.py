"""The items of a map's chunk, run one after the other at the speed of a plain loop.

The worker notes in its row which item it has begun, and the outcomes of finished items leave at
least every millisecond or so. Between two looks at the clock it runs a block of items, as many as
take a quarter of a millisecond by the block before; an item that takes longer is a block of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from poolwatch.exceptions import MaybeEncodingError
from poolwatch.transport import codec, frames, ledger
from poolwatch.transport.codec import Payload
from poolwatch.worker.outbox import Outbox
from poolwatch.worker.signals import Orders

_BLOCK_NS = 250_000  # how long a block of items should take
_PARTIAL_AFTER = 700_000  # ns after which finished outcomes leave
_FIRST_BLOCK = 4
_LARGEST_BLOCK = 4096


class ChunkRunner:
    """Runs one chunk at a time.

    Args:
        outbox: where outcomes go.
        fields: the row.
        orders: the signals of the pool.
        leave_if_forked: called when an item's code has ended; ends the process if that is a fork.
    """

    def __init__(
        self,
        outbox: Outbox,
        fields: memoryview,
        orders: Orders,
        leave_if_forked: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._fields = fields
        self._orders = orders
        self._leave_if_forked = leave_if_forked
        self._call: Callable[[Any], Any]
        self._items: list[Any] = []
        self._serial = 0
        self._next = 0  # index of the first item that has no outcome yet
        self._values: list[Any] = []  # of the items before it that have not been sent
        self._failures: dict[int, bytes] = {}  # by index in those

    def run(
        self, func: Callable[..., Any], items: list[Any], star: bool, serial: int, flags: int
    ) -> Payload:
        """Run all items; return the pickled outcomes that have not been sent yet.

        Args:
            func: what to call.
            items: its arguments, one item each.
            star: an item is a tuple of arguments.
            serial: of the chunk's job.
            flags: of the frame. LIMITED: each item has a clock and a signal of its own. PROMPT:
                the parent is woken for each frame of outcomes.

        Raises:
            SystemExit: the chunk was told to end.
        """
        limited, quiet = bool(flags & frames.LIMITED), not flags & frames.PROMPT
        self._call = (lambda item: func(*item)) if star else func
        self._items, self._serial = items, serial
        self._next = 0
        self._values, self._failures = [], {}
        run_block = self._run_limited if limited else self._run_block
        block = 1 if limited else _FIRST_BLOCK
        sent = now = monotonic_ns()
        while self._next < len(items):
            begun, first = now, self._next
            run_block(block)
            self._leave_if_forked()
            now = monotonic_ns()
            if now - sent > _PARTIAL_AFTER and self._next < len(items):
                count = len(self._values)
                self._outbox.send(frames.PARTIAL, self._take(), serial, count, quiet=quiet)
                sent = now
            self._fields[ledger.STARTED_AT] = now  # limits hold for each item
            if not limited:
                wanted = _BLOCK_NS * (self._next - first) // max(1, now - begun)
                block = max(1, min(wanted, 4 * block, _LARGEST_BLOCK))
        self._items = []
        return self._take()

    def _run_block(self, block: int) -> None:
        """Run the next items, up to one that raises."""
        call, values, fields, orders = self._call, self._values, self._fields, self._orders
        append, first, held = values.append, self._next, len(values)
        try:
            orders.begin(self._serial)
            # Which item is begun is written down before its code runs: ``fields[ITEM] = index``.
            # In a process that an item has forked this raises, as the row is not its own.
            for fields[ledger.ITEM], item in enumerate(self._items[first : first + block], first):
                append(call(item))
            orders.serial = 0
        except BaseException as error:
            orders.serial = 0  # a signal must not interrupt anything but the items' code
            self._leave_if_forked()
            if orders.terminating and isinstance(error, SystemExit):
                raise
            ended = first + len(values) - held
            self._next = ended
            if fields[ledger.ITEM] == ended:
                self._failed(error)
            elif not values:
                return  # between two items, by a handler of the user's own; it belongs to none
            else:
                values.pop()
                self._next -= 1
                self._failed(error)
            return
        self._next = first + len(values) - held

    def _run_limited(self, _: int) -> None:
        """Run the next item, which has a clock and signals of its own."""
        item, orders = self._items[self._next], self._orders
        self._fields[ledger.ITEM] = self._next
        try:
            try:
                orders.begin(self._serial)
                value = self._call(item)
            finally:
                orders.serial = 0
        except BaseException as error:
            self._leave_if_forked()
            if orders.terminating and isinstance(error, SystemExit):
                raise
            self._failed(error)
        else:
            self._values.append(value)
            self._next += 1

    def _failed(self, error: BaseException) -> None:
        """The next item has raised."""
        error.__traceback__ = without_frames_of(error, __file__)
        self._failures[len(self._values)] = codec.encode_failure(error)
        self._values.append(None)
        self._next += 1

    def _take(self) -> Payload:
        """Return the pickled outcomes so far, and begin anew."""
        values, self._values = self._values, []
        failures, self._failures = self._failures, {}
        try:
            return codec.encode((values, failures))
        except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            for index, value in enumerate(values):
                if index not in failures and not _pickles(value):
                    failures[index] = failure_of(value)
                    values[index] = None
            return codec.encode((values, failures))


def _pickles(value: object) -> bool:
    try:
        codec.encode(value)
    except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        return False
    return True


def failure_of(value: object) -> bytes:
    """Return the failure that tells why a value cannot be pickled."""
    try:
        codec.encode(value)
    except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        problem = MaybeEncodingError(codec.safe_repr(error), codec.safe_repr(value))
    else:
        problem = MaybeEncodingError("it pickled only at the second attempt", type(value).__name__)
    return codec.encode_failure(problem)


def without_frames_of(error: BaseException, *paths: str) -> Any:
    """Drop modules' frames from the top of the traceback; the user's own begin below."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in paths:
        trace = trace.tb_next
    return trace
