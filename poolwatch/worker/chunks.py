"""The items of a map's chunk, run one after the other at the speed of a plain loop.

The worker notes in its row which item it has begun, and the outcomes of finished items leave at
least every millisecond or so. Between two looks at the clock it runs a block of items, as many as
take half a millisecond by the block before; an item that takes longer is a block of its own. Should
items turn slow within a block, a timer's signal has the outcomes leave in its middle. The timer is
set once for each time that outcomes leave: that is a system call, dearer than a short item.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from time import monotonic_ns
from types import FrameType
from typing import Any

from poolwatch.exceptions import MaybeEncodingError
from poolwatch.transport import codec, frames, kernel, ledger
from poolwatch.transport.codec import Payload
from poolwatch.worker.outbox import Outbox
from poolwatch.worker.signals import Orders

_BLOCK_NS = 450_000  # how long a block of items should take
_PARTIAL_AFTER = 700_000  # ns after which finished outcomes leave
_ALARM_NS = 1_000_000  # how long outcomes may wait before they leave in the middle of a block
_FIRST_BLOCK = 1  # it may take long, and what has finished before a death must have left
_LARGEST_BLOCK = 4096
_LARGEST_WITHOUT_ALARM = 16


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
        self._quiet = True
        self._base = 0  # index of the first item whose outcome has not been sent
        self._values: list[Any] = []  # of the items from there on that have an outcome
        self._failures: dict[int, bytes] = {}  # by index in those
        self._alarm: kernel.Alarm | None = None  # made when it is needed
        self._is_set = False  # the alarm will go off, in a block or not
        self._in_block = False
        self._largest = 0  # block; 0: not known yet
        self._block: list[Any] = []  # what is run between two looks at the clock

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
        limited, self._quiet = bool(flags & frames.LIMITED), not flags & frames.PROMPT
        self._call = (lambda item: func(*item)) if star else func
        self._items, self._serial = items, serial
        self._base = 0
        self._values, self._failures = [], {}
        block = 1 if limited else _FIRST_BLOCK
        sent = now = monotonic_ns()
        while (first := self._next()) < len(items):
            begun = now
            if limited:
                self._run_limited(first)
            else:
                self._run_block(first, block)
            self._leave_if_forked()
            now = monotonic_ns()
            done = self._next()
            if now - sent > _PARTIAL_AFTER and done < len(items):
                self._send_outcomes()
                self._is_set = False  # for those it was set for
                sent = now
            self._fields[ledger.STARTED_AT] = now  # limits hold for each item
            if not limited:
                wanted = _BLOCK_NS * (done - first) // max(1, now - begun)
                block = max(1, min(wanted, 4 * block, self._largest))
        self._items = []
        return self._take()

    def _next(self) -> int:
        """Return the index of the first item that has no outcome."""
        return self._base + len(self._values)

    def _run_block(self, first: int, block: int) -> None:
        """Run the next items, up to one that raises."""
        call, append, fields, orders = self._call, self._values.append, self._fields, self._orders
        self._block = self._items[first : first + block]
        items, begun = enumerate(self._block, first), ledger.ITEM
        self._set_alarm(block)
        try:
            orders.begin(self._serial)
            # Which item is begun is written down before its code runs: ``fields[ITEM] = index``.
            # In a process that an item has forked this raises, as the row is not its own.
            for fields[begun], item in items:
                append(call(item))
            orders.serial = 0
            self._in_block = False
        except BaseException as error:
            orders.serial = 0  # a signal must not interrupt anything but the items' code
            self._in_block = False
            self._leave_if_forked()
            if orders.terminating and isinstance(error, SystemExit):
                raise
            # Between two items, by a handler of the user's own, it belongs to the one before; or
            # to none, when that one's outcome has been sent already.
            if fields[ledger.ITEM] == self._next():
                self._failed(error)
            elif self._values:
                self._values.pop()
                self._failed(error)

    def _set_alarm(self, block: int) -> None:
        """Have :meth:`_on_alarm` called when outcomes have waited too long within a block."""
        if not self._largest:
            self._largest = _LARGEST_BLOCK
            try:
                self._alarm = kernel.Alarm(kernel.ALARM_SIGNAL)
                signal.signal(kernel.ALARM_SIGNAL, self._on_alarm)
                signal.siginterrupt(kernel.ALARM_SIGNAL, False)
            except OSError:
                self._largest = _LARGEST_WITHOUT_ALARM
        if self._alarm is not None and block > 1:
            self._in_block = True
            if not self._is_set:
                self._is_set = True
                self._alarm.set(_ALARM_NS)

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        """Items have turned slow: send what there is, and end the block after this item."""
        self._is_set = False
        if self._in_block and self._alarm is not None:
            orders = self._orders
            serial, orders.serial = orders.serial, 0  # no order may break out of this
            self._send_outcomes()
            self._block.clear()  # the loop over it finds nothing more
            if serial:
                orders.begin(serial)

    def _run_limited(self, index: int) -> None:
        """Run the next item, which has a clock and signals of its own."""
        item, orders = self._items[index], self._orders
        self._fields[ledger.ITEM] = index
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

    def _failed(self, error: BaseException) -> None:
        """The next item has raised."""
        error.__traceback__ = without_frames_of(error, __file__)
        self._failures[len(self._values)] = codec.encode_failure(error)
        self._values.append(None)

    def _send_outcomes(self) -> None:
        """Send the outcomes that there are, before the chunk has ended."""
        count = len(self._values)
        if count:
            payload = self._take()
            self._outbox.send(frames.PARTIAL, payload, self._serial, count, quiet=self._quiet)

    def _take(self) -> Payload:
        """Return the pickled outcomes so far, and forget them."""
        # In place, and no more than were there at first: the loop that is interrupted appends.
        values, failures = self._values[:], dict(self._failures)
        del self._values[: len(values)]
        self._failures.clear()
        self._base += len(values)
        try:
            return codec.encode((values, failures))
        except BaseException:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            for index, value in enumerate(values):
                if index not in failures and not _pickles(value):
                    failures[index] = failure_of(value)
                    values[index] = None
            return codec.encode((values, failures))


def _pickles(value: object) -> bool:
    try:
        codec.encode(value)
    except BaseException:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        return False
    return True


def failure_of(value: object) -> bytes:
    """Return the failure that tells why a value cannot be pickled.

    What is no ``Exception`` is told as itself, as concurrent.futures does.
    """
    problem: BaseException
    try:
        codec.encode(value)
    except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        problem = MaybeEncodingError(codec.safe_repr(error), codec.safe_repr(value))
    except BaseException as error:  # noqa: BLE001
        problem = error
    else:
        problem = MaybeEncodingError("it pickled only at the second attempt", type(value).__name__)
    return codec.encode_failure(problem)


def without_frames_of(error: BaseException, *paths: str) -> Any:
    """Drop modules' frames from the top of the traceback; the user's own begin below."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in paths:
        trace = trace.tb_next
    return trace
