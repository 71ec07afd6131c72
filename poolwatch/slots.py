"""The slots of a pool with ``max_pending``: how many jobs may be unfinished at a time.

A slot is not a semaphore that somebody must remember to release. It is the fact that a job that was
submitted has not ended, and the one place where jobs end (``endings``) strikes it off, whatever the
end is. So no slot can leak, and none is given back twice.

Submissions that wait stand in a line, each with a lock of its own that is released when it is their
turn, and are let in in order of arrival. Whoever leaves the line for another reason (Ctrl-C, the
pool's end) wakes the next.
"""

from __future__ import annotations

from _thread import LockType, allocate_lock, get_ident
from typing import TYPE_CHECKING

from poolwatch.config import PoolOptions
from poolwatch.job import Job
from poolwatch.sleep import acquire

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolwatch.dispatcher import Dispatcher


class Ticket:
    """A place in the line of submissions that wait.

    Attributes:
        thread: who waits.
    """

    __slots__ = ("_turn", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()
        self._turn: LockType = allocate_lock()
        self._turn.acquire()

    def call(self) -> None:
        """Let the thread look again. The dispatcher's lock is held, so nobody else calls."""
        if self._turn.locked():
            self._turn.release()

    def wait(self) -> None:
        """Sleep until called, once for each call; may be interrupted by a signal handler."""
        acquire(self._turn)


class Slots:
    """Who has a slot, and who waits for one. The dispatcher's lock guards everything here."""

    def __init__(self, options: PoolOptions) -> None:
        self._bound = options.max_pending
        self._holders: set[Job] = set()
        self._line: dict[Ticket, None] = {}
        self._dispatcher: Dispatcher
        self._size: Callable[[], int]

    def attach(self, dispatcher: Dispatcher, size: Callable[[], int]) -> None:
        """Take note of the dispatcher, and of how to ask how many workers there may be."""
        self._dispatcher = dispatcher
        self._size = size
        dispatcher.on_added = self.call_next  # with putlocks there are more slots now

    @property
    def bound(self) -> int:
        """How many jobs may be unfinished now."""
        return self._size() if self._bound is None else self._bound

    def has_room(self) -> bool:
        """Return True when fewer jobs are unfinished than may be. A look; no lock needed."""
        return len(self._holders) < self.bound

    def is_free(self, ticket: Ticket | None) -> bool:
        """Return True when a submission may go on.

        Args:
            ticket: its place in the line; None for one that has just come. A signal handler of a
                thread that waits does not stand behind that thread, which cannot go on before it.
        """
        if not self.has_room():
            return False
        first = next(iter(self._line), None)
        return first is None or first is ticket or (ticket is None and self.waits_here())

    def waits_here(self) -> bool:
        """Return True in a signal handler that has interrupted a submission that waits."""
        thread = get_ident()
        return any(ticket.thread == thread for ticket in self._line)

    def stand_in_line(self, ticket: Ticket) -> None:
        """Take a place at the end of the line."""
        self._line[ticket] = None

    def leave_line(self, ticket: Ticket) -> None:
        """Give up a place, or have no more need of it; the next one may go on."""
        self._line.pop(ticket, None)
        self.call_next()

    def take(self, job: Job) -> None:
        """A job is about to be submitted."""
        self._holders.add(job)

    def give_back(self, job: Job) -> None:
        """A job has ended, or was not submitted; may be done again."""
        self._holders.discard(job)
        if self._line:
            self.call_next()

    def call_next(self) -> None:
        """Let the first in line go on if there is room."""
        if self._line and self.has_room():
            next(iter(self._line)).call()

    def call_all(self) -> None:
        """Let all look: the pool takes no more jobs."""
        for ticket in list(self._line):
            ticket.call()


def is_bounded(options: PoolOptions) -> bool:
    """Return True when a pool has slots."""
    return options.max_pending is not None or options.putlocks
