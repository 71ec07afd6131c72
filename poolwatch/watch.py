"""How a face that has handles of its own learns of a job's end.

Futures and awaitables are resolved by their face, not by ``ApplyResult``. Such a job carries a
:class:`Watch` where a job of a map carries its part of the map.
"""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.chunks import Part
from poolwatch.job import Job
from poolwatch.outcome import Outcome
from poolwatch.transport import frames


class Watch:
    """Calls back when a job ends.

    Args:
        owner: whose handle it is, see ``chunks.Part``.
        notify: called with the job when it has ended, in whatever thread ended it, with the
            dispatcher's lock held: it must be quick, run nothing of the user's and take no lock
            that is held while the pool is used. It may be called twice for the same end.
        accepted: called as ``(pid, time)`` when the job has begun, before it ends, in the
            thread that reads that; what holds for ``notify`` holds for it. None when nobody asks.
    """

    __slots__ = ("_notify", "accepted", "flags", "owner")

    ahead = 1

    def __init__(
        self,
        owner: object,
        notify: Callable[[Job], None],
        accepted: Callable[[int, float], object] | None = None,
    ) -> None:
        self.owner = owner
        self._notify = notify
        self.accepted = accepted
        self.flags = 0 if accepted is None else frames.WANT_ACCEPT

    def call(self) -> None:
        """See ``chunks.Part``: the job's own payload tells the call."""

    def split_at(self, index: int) -> None:
        """See ``chunks.Part``: there is nothing to be split."""

    def divide(self) -> list[Part]:
        """See ``chunks.Part``: there is nothing to be divided."""
        return []

    def drop_received(self) -> bool:
        """See ``chunks.Part``: the job is run again as it is."""
        return False

    def partial(self, outcome: Outcome, count: int) -> None:
        """See ``chunks.Part``; never called."""

    def ended(self, job: Job) -> None:
        """The job has ended."""
        self._notify(job)

    def recount(self) -> None:
        """See ``chunks.Part``: nothing is counted."""

    def abort(self, error: BaseException) -> None:
        """The pool has ended; :meth:`ended` has been called before."""

    def silence(self) -> None:
        """See ``chunks.Part``: a face that watches a job has callbacks of its own."""
