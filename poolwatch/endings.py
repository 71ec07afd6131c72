"""The one place where a job ends. The dispatcher's lock is held for all of it."""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.dispatcher import Dispatcher
from poolwatch.evidence.verdicts import innermost
from poolwatch.exceptions import (
    JobCancelled,
    MemoryLimitExceeded,
    Terminated,
    TimeLimitExceeded,
)
from poolwatch.hooks import Hooks
from poolwatch.job import NO_OPTIONS, Job
from poolwatch.job_state import JobState
from poolwatch.limits import Limits
from poolwatch.loss import Postmortem, human_status
from poolwatch.outcome import Outcome
from poolwatch.slots import Slots
from poolwatch.tally import Tally
from poolwatch.transport.frames import Frame


class Endings:
    """Ends jobs: with what their worker sent, or with an error of the pool's own."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: Limits,
        hooks: Hooks,
        on_drained: Callable[[], None],
        tally: Tally,
    ) -> None:
        self._tally = tally
        self._dispatcher = dispatcher
        self._limits = limits
        self._hooks = hooks
        self._on_drained = on_drained

    def with_result(self, job: Job, kind: int, payload: bytes, wall: int, cpu: int) -> None:
        """End a job without options with a small frame of its worker: the hot path.

        May be done again after an interruption by a signal handler.
        """
        job.finish(kind, payload, wall, cpu)
        if job.chunk is not None:
            job.chunk.ended(job)
        job.set_ready()
        dispatcher = self._dispatcher
        dispatcher.unfinished -= 1
        if not dispatcher.unfinished:
            self._on_drained()

    def with_frame(self, job: Job, state: JobState, frame: Frame) -> None:
        """End a job with any frame of its worker.

        May be done again after an interruption by a signal handler.
        """
        job.wall, job.cpu = frame.first, frame.second
        if job.state is not state:
            self._dispatcher.move(job, state)
        job.attempts += 1
        job.set_outcome(Outcome.of(frame))
        self._ended(job)

    def with_error(self, job: Job, state: JobState, error: BaseException) -> None:
        """End a job with an error of the pool's own."""
        self._tally.counts["outgrew" if isinstance(error, MemoryLimitExceeded) else state.name] += 1
        self._dispatcher.move(job, state)
        job.set_error(error)
        self._ended(job)

    def over_limit(self, job: Job, record: Postmortem | None = None) -> None:
        """End a job with the error of the limit that it has hit.

        Args:
            job: the job.
            record: what is known of the end of its worker.
        """
        error = job.limit
        assert error is not None
        error.postmortem = record
        if record is not None and record.traceback is not None:
            error.stack = record.traceback
            place = innermost(error.stack)
            where = "" if place is None else f"; it was at {place}"
            error.args = (f"{error}{where}\n{error.stack}",)
        is_time = isinstance(error, TimeLimitExceeded)
        self.with_error(job, JobState.TIMED_OUT if is_time else JobState.FAILED, error)

    def on_purpose(self, job: Job, exitcode: int | None) -> None:
        """End a job that somebody asked to end.

        Args:
            job: the job.
            exitcode: exit code of its worker; None when the job had not begun.
        """
        when = "before it began" if exitcode is None else f"({human_status(exitcode)})"
        job.attempts += exitcode is not None
        if job.cancelled:
            text = f"job {job.id} {job.name} was cancelled {when}"
            self.with_error(job, JobState.CANCELLED, JobCancelled(text))
        else:
            text = f"job {job.id} {job.name} was terminated {when}"
            self.with_error(job, JobState.TERMINATED, Terminated(text, exitcode=exitcode))

    def _ended(self, job: Job) -> None:
        dispatcher = self._dispatcher
        dispatcher.unfinished -= 1
        if job.options is not NO_OPTIONS and self._limits.disarm(job):
            self._hooks.limits_off(job)
        self._hooks.deliver(job)
        if not dispatcher.unfinished:
            self._on_drained()


class SlotEndings(Endings):
    """Ends jobs of a pool with ``max_pending``: each end gives a slot to whoever waits for one."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: Limits,
        hooks: Hooks,
        on_drained: Callable[[], None],
        tally: Tally,
        slots: Slots,
    ) -> None:
        super().__init__(dispatcher, limits, hooks, on_drained, tally)
        self._slots = slots

    def with_result(self, job: Job, kind: int, payload: bytes, wall: int, cpu: int) -> None:
        """See :meth:`Endings.with_result`."""
        super().with_result(job, kind, payload, wall, cpu)
        self._slots.give_back(job)

    def _ended(self, job: Job) -> None:
        super()._ended(job)
        self._slots.give_back(job)
