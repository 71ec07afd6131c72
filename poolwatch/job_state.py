"""Where a job is on its way.

::

    PENDING -> SENT -> RUNNING -> SUCCEEDED | FAILED | TIMED_OUT | TERMINATED | LOST
    SENT | RUNNING -> PENDING             recalled, or its worker died before the job began
    SENT | RUNNING -> LOST_PENDING        its worker died; a grace period or a back-off runs
    LOST_PENDING -> LOST | PENDING        ... and ends
    PENDING -> CANCELLED | TERMINATED | FAILED | LOST

That a job runs is written in its worker's row of the ledger, and read there when somebody asks;
nobody is woken for it. A job whose result has come is SENT or RUNNING until then.
"""

from __future__ import annotations

import enum


class JobState(enum.Enum):
    """Where a job is on its way; see the module's drawing."""

    PENDING = 1
    SENT = 2
    RUNNING = 3
    LOST_PENDING = 4
    SUCCEEDED = 5
    FAILED = 6
    TIMED_OUT = 7
    TERMINATED = 8
    CANCELLED = 9
    LOST = 10

    bit: int
    successors: int

    @property
    def final(self) -> bool:
        """True when nothing more will happen to the job."""
        return self.value >= JobState.SUCCEEDED.value


def _define_transitions() -> None:
    final = [state for state in JobState if state.final]
    allowed = {
        JobState.PENDING: [JobState.SENT, *final],
        JobState.SENT: [JobState.PENDING, JobState.RUNNING, JobState.LOST_PENDING, *final],
        JobState.RUNNING: [JobState.PENDING, JobState.LOST_PENDING, *final],
        JobState.LOST_PENDING: [JobState.PENDING, *final],
    }
    for state in JobState:
        state.bit = 1 << state.value
    for state in JobState:
        # Bits rather than a set of members: hashing a member costs more than the rest of a move.
        state.successors = sum(other.bit for other in allowed.get(state, ()))


_define_transitions()
