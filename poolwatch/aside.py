"""Jobs that are neither in line nor with a worker: they wait for a pickle, or for time to pass."""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.chunks import Part
from poolwatch.dispatcher import Dispatcher
from poolwatch.endings import Endings
from poolwatch.hooks import Hooks
from poolwatch.job import NO_OPTIONS, Job, JobOptions
from poolwatch.job_state import JobState
from poolwatch.loop import EventLoop


class Aside:
    """Keeps such jobs, so that none is forgotten when the pool ends.

    Attributes:
        jobs: the jobs, guarded by the dispatcher's lock.
    """

    def __init__(
        self, loop: EventLoop, dispatcher: Dispatcher, endings: Endings, hooks: Hooks
    ) -> None:
        self.jobs: set[Job] = set()
        self._loop = loop
        self._dispatcher = dispatcher
        self._endings = endings
        self._hooks = hooks

    def go_on(self, job: Job, part: Part) -> None:
        """Put part of a chunk's job in line as a job of its own. The lock is held."""
        other = Job(job.id, job.name, b"", None, job.options, job.keepalive)
        other.chunk = part
        other.by_value = job.by_value
        self._dispatcher.unfinished += 1
        self.encode(other)

    def divide(self, job: Job) -> bool:
        """Put the items of a chunk that could not be loaded in line anew, each alone.

        The lock is held.

        Returns:
            False when there is no chunk of more than one item; nothing is done then.
        """
        others = [] if job.chunk is None else job.chunk.divide()
        if not others:
            return False
        for part in reversed(others):  # each goes to the front of the line
            self.go_on(job, part)
        self._dispatcher.move(job, JobState.PENDING)
        job.worker = None
        job.limit = None
        job.moves = 0
        self.encode(job)
        return True

    def encode(self, job: Job) -> None:
        """Have a job's call pickled anew, then put it in line. The lock is held.

        Pickling is the user's code, so the delivery thread does it.
        """
        self.jobs.add(job)
        self._hooks.encode(job, lambda error: self._encoded(job, error))

    def _encoded(self, job: Job, error: BaseException | None) -> None:
        with self._dispatcher.lock:
            self.jobs.discard(job)
            if job.state.final:
                return
            if error is not None:
                self._endings.with_error(job, JobState.FAILED, error)
                return
            self._dispatcher.to_the_front([job])
            self._dispatcher.refill_idle()

    def retry(self, job: Job, seconds: float) -> None:
        """Put a lost job back in line, now or after a back-off. The lock is held."""
        job.worker = None
        if job.options is NO_OPTIONS:
            job.options = JobOptions()  # so that its attempts are looked at when it is sent
        if job.chunk is not None and job.chunk.drop_received():
            job.payload = None
        if seconds > 0:
            self.wait(job, seconds, lambda: self._back_in_line(job))
        else:
            self._back_in_line(job)

    def _back_in_line(self, job: Job) -> None:
        self._dispatcher.move(job, JobState.PENDING)
        if job.payload is None:
            self.encode(job)
            return
        self._dispatcher.line_up(job)
        self._dispatcher.refill_idle()

    def wait(self, job: Job, seconds: float, then: Callable[[], None]) -> None:
        """Wait for a grace period or a back-off; the job may be ended meanwhile. The lock is held.

        Args:
            job: the job, whose worker has died.
            seconds: how long.
            then: called with the lock held, unless the job has ended.
        """
        self._dispatcher.move(job, JobState.LOST_PENDING)
        self.jobs.add(job)

        def over() -> None:
            with self._dispatcher.lock:
                self.jobs.discard(job)
                if job.state is JobState.LOST_PENDING:
                    then()

        self._loop.call_later(seconds, over)
