"""How jobs come into a pool: the part of ``Core`` that makes them and puts them on their way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace

from poolwatch.chunks import Part
from poolwatch.config import PoolOptions, add_settings, job_limits
from poolwatch.dispatcher import Dispatcher
from poolwatch.job import NO_OPTIONS, Job, JobOptions
from poolwatch.job_state import JobState
from poolwatch.snapshot import Call
from poolwatch.supervisor import Supervisor

_FOREIGN = "this Pool belongs to the parent process; make one of your own"


class Submissions(ABC):
    """Part of ``Core``.

    Attributes:
        options: of the pool.
        foreign: True in a forked child, which inherited the pool.
        supervisor: the pool's.
        dispatcher: the supervisor's.
    """

    options: PoolOptions
    foreign: bool
    supervisor: Supervisor
    dispatcher: Dispatcher
    _refusal: BaseException | None  # what apply_async raises
    _job_numbers: Iterator[int]

    @abstractmethod
    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back in the supervisor's thread."""

    @abstractmethod
    def _on_drained(self) -> None:
        """No job is unfinished; called with the lock held."""

    @abstractmethod
    def _has_deliveries(self) -> bool:
        """Return True when callbacks are to come."""

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked child, which inherited the pool."""
        if self.foreign:
            raise RuntimeError(_FOREIGN)

    def check_open(self) -> None:
        """Raise what a submission must raise, if anything.

        Raises:
            ValueError: the pool is closed or terminated (as in multiprocessing).
            PoolBroken: it is broken.
            RuntimeError: it was inherited by a forked child.
        """
        self.check_owner()
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args) from self._refusal.__cause__

    def submit(
        self,
        name: str,
        call: Call,
        options: JobOptions,
        keepalive: object,
        wait: bool | None = None,
        part: Part | None = None,
    ) -> Job:
        """Make a job and put it on its way.

        Args:
            name: of the function.
            call: the pickled call.
            options: what the caller asked for.
            keepalive: must not be collected while the job is unfinished.
            wait: whether to wait for a slot; without meaning where there is no bound.
            part: to whom the outcome goes, where that is not the job's handle.

        Raises:
            ValueError, PoolBroken: as :meth:`check_open`; the pool may have ended meanwhile.
        """
        head, payload, by_value = call
        job = Job(next(self._job_numbers), name, head, payload, options, keepalive)
        job.by_value = by_value
        job.chunk = part
        self.submit_job(job)
        return job

    def submit_job(self, job: Job) -> None:
        """Put a job on its way; errors as for :meth:`submit`."""
        dispatcher = self.dispatcher
        is_ranked = job.options is not NO_OPTIONS and job.options.priority != 0
        if is_ranked:
            dispatcher.ranked = True
        try:
            dispatcher.submit(job)
        except BaseException:
            # A signal handler raised (Ctrl-C) in the middle of the bookkeeping.
            self.call_soon(lambda: self.supervisor.repair(job))
            raise
        if is_ranked:
            dispatcher.recalls.urge()
        if self._refusal is not None or self.foreign:
            self._withdraw(job)

    def _withdraw(self, job: Job) -> None:
        """The pool has ended meanwhile: refuse the job, unless it still runs or has ended."""
        self.check_owner()
        dispatcher = self.dispatcher
        with dispatcher.lock:
            dispatcher.take_arrivals()
            if dispatcher.accepting or job.state.final or job not in dispatcher.backlog:
                return
            dispatcher.backlog.remove(job)
            dispatcher.unfinished -= 1
            if not dispatcher.unfinished:
                self._on_drained()
        self.check_open()

    def part_job(
        self, name: str, call: Call, part: Part, options: JobOptions, keepalive: object
    ) -> Job:
        """Return the job of a part of a map; arguments as for :meth:`submit`."""
        head, payload, by_value = call
        job = Job(next(self._job_numbers), name, head, payload, options, keepalive)
        job.by_value = by_value
        job.chunk = part
        return job

    def plain_options(self) -> JobOptions:
        """Return the options of a job for which nothing was asked but what holds for the pool."""
        soft, hard = job_limits(self.options, None, None)
        if soft is None and hard is None:
            return NO_OPTIONS
        return JobOptions(soft_timeout=soft, timeout=hard)

    def with_surroundings(self, options: JobOptions) -> JobOptions:
        """Return the options with what the job is to find around it, by the caller's context.

        Raises:
            pickle.PicklingError: the value of a context variable does not pickle.
        """
        variables = self.options.contextvars
        if options is NO_OPTIONS and not variables:
            return options
        options = replace(options)
        add_settings(options, variables)
        return options

    def failed_job(self, name: str, error: BaseException, options: JobOptions) -> Job:
        """Return a job that has ended before it began: its call does not pickle."""
        job = Job(next(self._job_numbers), name, b"", None, options, None)
        with self.dispatcher.lock:
            self.dispatcher.unfinished += 1
            self.supervisor.endings.with_error(job, JobState.FAILED, error)
        return job

    def unfinished_jobs(self, *owners: object) -> list[Job]:
        """Return the jobs that go to these owners (see ``chunks.Part``) and have not ended."""
        wanted = {id(owner) for owner in owners}
        with self.dispatcher.lock:
            jobs = self._jobs()
        return [
            job
            for job in jobs
            if job.chunk is not None and id(job.chunk.owner) in wanted and not job.state.final
        ]

    def _jobs(self) -> list[Job]:
        """Return all jobs that may not have ended, in no special order. The lock is held."""
        dispatcher, supervisor = self.dispatcher, self.supervisor
        dispatcher.take_arrivals()
        jobs = [*dispatcher.backlog, *supervisor.aside.jobs]
        for worker in supervisor.crew.everybody():
            jobs.extend(worker.jobs.values())
        return jobs

    def unfinished(self) -> dict[int, str]:
        """Return number and name of each job that has not ended; 0 stands for callbacks to come."""
        with self.dispatcher.lock:
            return self._unfinished()

    def _unfinished(self) -> dict[int, str]:
        names = {job.id: job.name for job in self._jobs() if not job.state.final}
        return {**names, 0: "callbacks"} if self._has_deliveries() else names
