"""The chunks of a map: many items travel as one job, and yet only the guilty item pays.

The worker notes in its row which item it has begun, and sends the outcomes of finished items at
least every millisecond. After a death the items behind the guilty one become a chunk of their own,
which costs no attempt. What had finished within the last millisecond and had not been sent shares
the fate of the guilty item: it is not run twice unless the policy says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolwatch.job import Job, Outcome
from poolwatch.map_results import MapResult


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

    def partial(self, outcome: Outcome, count: int) -> None:
        """Some more items have finished; still pickled."""
        start = self.start + self.received
        self.received += count
        self._result.account(start, count, outcome)

    def ended(self, job: Job) -> None:
        """The chunk's job has ended: with the outcomes that are missing, or with an error."""
        start = self.start + self.received
        count = len(self.items) - self.received
        self._result.account(start, count, job.take_outcome())

    def abort(self, error: BaseException) -> None:
        """The pool has ended: whoever waits for the map must not wait for the delivery thread."""
        self._result.abort(error)

    def fail(self, error: BaseException) -> None:
        """Fail all items: the chunk could not be sent."""
        self._result.account(self.start, len(self.items), error)
