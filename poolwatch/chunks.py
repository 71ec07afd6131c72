"""The chunks of a map: many items travel as one job, and yet only the guilty item pays.

The worker notes in its row which item it has begun, and sends the outcomes of finished items at
least every millisecond. After a death the items behind the guilty one become a chunk of their own,
which costs no attempt. What had finished within the last millisecond and had not been sent shares
the fate of the guilty item: it is not run twice unless the policy says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolwatch.results import MapResult
from poolwatch.transport import codec


class Chunk:
    """Neighbouring items of one map.

    Attributes:
        start: index of the first item in the whole map.
        items: the items.
        received: how many outcomes have come.
    """

    __slots__ = ("_func", "_result", "_star", "items", "received", "start")

    def __init__(
        self,
        result: MapResult[Any],
        start: int,
        func: Callable[..., Any],
        items: list[Any],
        star: bool,
    ) -> None:
        self._result = result
        self._func = func
        self._star = star
        self.start = start
        self.items = items
        self.received = 0

    def call(self) -> tuple[Callable[..., Any], list[Any], bool]:
        """Return what the worker needs."""
        return self._func, self.items, self._star

    def split_at(self, index: int) -> Chunk | None:
        """Keep the items up to and including one that was begun; return the rest, if any."""
        rest = self.items[index + 1 :]
        if not rest:
            return None
        self.items = self.items[: index + 1]
        return Chunk(self._result, self.start + index + 1, self._func, rest, self._star)

    def drop_received(self) -> None:
        """Leave only the items without an outcome, before the chunk is run again."""
        self.start += self.received
        self.items = self.items[self.received :]
        self.received = 0

    def deliver(self, start: int, outcomes: list[tuple[bool, Any]]) -> None:
        """Hand outcomes to the map; on the delivery thread, since failures are unpickled here."""
        self._result.set_items(
            start,
            [
                (True, value) if succeeded else (False, codec.decode_failure(value))
                for succeeded, value in outcomes
            ],
        )

    def abort(self, error: BaseException) -> None:
        """The pool has ended: whoever waits for the map must not wait for the delivery thread."""
        self._result.abort(error)

    def fail(self, start: int, error: BaseException) -> None:
        """Fail the items from a place on; on the delivery thread."""
        missing = len(self.items) - (start - self.start)
        self._result.set_items(start, [(False, error)] * missing)
