"""The one place where a job ends. The dispatcher's lock is held for all of it."""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.dispatcher import Dispatcher
from poolwatch.exceptions import JobCancelled, Terminated
from poolwatch.hooks import Hooks
from poolwatch.job import NO_OPTIONS, Job, JobState, Outcome, Usage
from poolwatch.limits import Limits
from poolwatch.loss import human_status
from poolwatch.transport.frames import Frame


class Endings:
    """Ends jobs: with what their worker sent, or with an error of the pool's own."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: Limits,
        hooks: Hooks,
        on_drained: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._limits = limits
        self._hooks = hooks
        self._on_drained = on_drained

    def with_outcome(self, job: Job, state: JobState, frame: Frame) -> None:
        """End a job with what its worker sent."""
        self._dispatcher.move(job, state)
        job.attempts += 1
        job.usage = Usage(frame.first / 1e9, frame.second / 1e9)
        job.set_outcome(Outcome.of(frame))
        self._ended(job)

    def with_error(self, job: Job, state: JobState, error: BaseException) -> None:
        """End a job with an error of the pool's own."""
        self._dispatcher.move(job, state)
        job.set_error(error)
        self._ended(job)

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
        if job.options is NO_OPTIONS:
            job.set_ready()
        else:
            if self._limits.disarm(job):
                self._hooks.limits_off(job)
            self._hooks.deliver(job)
        if not dispatcher.unfinished:
            self._on_drained()
