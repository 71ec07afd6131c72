"""The chunks of a map: many items travel as one job, and yet only the guilty item pays.

The worker notes in its row which item it has begun, and sends the outcomes of finished items at
least every millisecond. After a death the items behind the guilty one become a chunk of their own,
which costs no attempt. What had finished within the last millisecond and had not been sent shares
the fate of the guilty item: it is not run twice unless the policy says so. Where the items cannot
even be loaded, nobody knows which of them is guilty, and none has run: each travels alone then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from poolwatch.job import Job
from poolwatch.outcome import Outcome
from poolwatch.transport import frames


class Accounts(Protocol):
    """The results of a map, as the parts of it see them."""

    def account(self, start: int, count: int, outcome: Outcome | BaseException) -> None:
        """Take the outcomes of neighbouring items that travelled together."""

    def account_item(self, index: int, outcome: Outcome | BaseException) -> None:
        """Take the outcome of an item that travelled alone."""

    def recount(self) -> None:
        """Count again, after an interruption in the middle of the bookkeeping."""

    def abort(self, error: BaseException) -> None:
        """Be ready at once: the pool has ended."""

    def silence(self) -> None:
        """Call nobody back: items were dropped by ``flush()``."""


class Part(Protocol):
    """What a job does for a map: a chunk of its items, or one item.

    Attributes:
        flags: of the job's frame.
        ahead: how many such jobs a worker may hold at least, the one that it runs included.
        owner: to whom the outcome goes; jobs of the same owner may be ended together.
    """

    flags: int
    ahead: int

    @property
    def owner(self) -> object:
        """See above."""

    def call(self) -> tuple[Any, ...] | None:
        """Return the call to be pickled anew; None when the job's own payload tells it."""

    def split_at(self, index: int) -> Part | None:
        """Keep the items up to and including one that was begun; return the rest, if any."""

    def divide(self) -> list[Part]:
        """Keep the first item; return the others, each as a part of its own."""

    def drop_received(self) -> bool:
        """Leave only the items without an outcome, before the job is run again.

        Returns:
            True when the call is another one now, and must be pickled anew.
        """

    def partial(self, outcome: Outcome, count: int) -> None:
        """Some more items have finished; still pickled."""

    def ended(self, job: Job) -> None:
        """The job has ended: with the outcomes that are missing, or with an error."""

    def recount(self) -> None:
        """See :meth:`Accounts.recount`."""

    def abort(self, error: BaseException) -> None:
        """The pool has ended: whoever waits for the map must not wait for the delivery thread."""

    def silence(self) -> None:
        """See :meth:`Accounts.silence`."""


class Item:
    """One item of a map that travels alone; its job is like any other.

    Attributes:
        index: where it stands in the map.
    """

    __slots__ = ("_result", "index")

    flags = 0
    ahead = 1

    def __init__(self, result: Accounts, index: int) -> None:
        self._result = result
        self.index = index

    @property
    def owner(self) -> object:
        """The map."""
        return self._result

    def call(self) -> None:
        """See :meth:`Part.call`."""

    def split_at(self, index: int) -> None:
        """See :meth:`Part.split_at`."""

    def divide(self) -> list[Part]:
        """See :meth:`Part.divide`."""
        return []

    def drop_received(self) -> bool:
        """See :meth:`Part.drop_received`."""
        return False

    def partial(self, outcome: Outcome, count: int) -> None:
        """See :meth:`Part.partial`; never called."""

    def ended(self, job: Job) -> None:
        """See :meth:`Part.ended`."""
        self._result.account_item(self.index, job.take_outcome())

    def recount(self) -> None:
        """See :meth:`Part.recount`."""
        self._result.recount()

    def abort(self, error: BaseException) -> None:
        """See :meth:`Part.abort`."""
        self._result.abort(error)

    def silence(self) -> None:
        """See :meth:`Part.silence`."""
        self._result.silence()


class Chunk:
    """Neighbouring items of one map that travel together.

    Attributes:
        start: index of the first item in the whole map.
        items: the items.
        received: how many outcomes have come.
    """

    __slots__ = ("_func", "_result", "_star", "flags", "items", "received", "start")

    ahead = 2  # the next chunk is there when one ends; it is taken back should that last

    def __init__(
        self,
        result: Accounts,
        start: int,
        func: Callable[..., Any],
        items: list[Any],
        star: bool,
        flags: int = 0,
    ) -> None:
        self._result = result
        self._func = func
        self._star = star
        self.flags = frames.CHUNK | flags
        self.start = start
        self.items = items
        self.received = 0

    @property
    def owner(self) -> object:
        """The map."""
        return self._result

    def call(self) -> tuple[Any, ...]:
        """Return what the worker needs."""
        return self._func, self.items, self._star

    def split_at(self, index: int) -> Chunk | None:
        """Keep the items up to and including one that was begun; return the rest, if any."""
        rest = self.items[index + 1 :]
        if not rest:
            return None
        self.items = self.items[: index + 1]
        start = self.start + index + 1
        return Chunk(self._result, start, self._func, rest, self._star, self.flags)

    def divide(self) -> list[Part]:
        """Keep the first item; return the others, each as a chunk of its own."""
        alone: list[Part] = [
            Chunk(self._result, start, self._func, [item], self._star, self.flags)
            for start, item in enumerate(self.items, self.start)
        ]
        self.items = self.items[:1]
        return alone[1:]

    def drop_received(self) -> bool:
        """Leave only the items without an outcome, before the chunk is run again."""
        self.start += self.received
        self.items = self.items[self.received :]
        self.received = 0
        return True

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

    def recount(self) -> None:
        """See :meth:`Part.recount`."""
        self._result.recount()

    def abort(self, error: BaseException) -> None:
        """The pool has ended: whoever waits for the map must not wait for the delivery thread."""
        self._result.abort(error)

    def silence(self) -> None:
        """See :meth:`Part.silence`."""
        self._result.silence()
