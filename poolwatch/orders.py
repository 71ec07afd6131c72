"""Ending a job on purpose: terminate and cancel, from any thread.

The same rule as for limits: what the worker has not begun is recalled first, so that nothing more
can start there. A job that was not begun ends without a signal, one that has finished keeps its
result, and only a running one costs its worker.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from poolwatch.aside import Aside
from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.loop import EventLoop
from poolwatch.transport import kernel, ledger
from poolwatch.watch import Watch
from poolwatch.workers import Order, WorkerProcess, WorkerState


class Orders:
    """Carries out what users ask of single jobs."""

    def __init__(
        self,
        loop: EventLoop,
        dispatcher: Dispatcher,
        crew: Crew,
        grace: float,
        end_on_purpose: Callable[[Job, int | None], None],
        expect_death: Callable[[Job], None],
        aside: Aside,
        interrupt: Callable[[WorkerProcess, Job, int], None],
    ) -> None:
        self.foreign = False  # True in a forked child, which inherited the pool
        self._loop = loop
        self._dispatcher = dispatcher
        self._crew = crew
        self._grace = grace
        self._end_on_purpose = end_on_purpose
        self._expect_death = expect_death
        self._aside = aside
        self._interrupt = interrupt

    def cancel(self, job: Job) -> bool:
        """End a job, which then reads as cancelled; return False when it has ended already."""
        self.check_owner()
        with self._dispatcher.lock:
            self._dispatcher.take_arrivals()
            if job.state.final:
                return job.state is JobState.CANCELLED
            job.cancelled = True
        return self.terminate(job, signal.SIGTERM)

    def take_back(self, job: Job) -> bool:
        """Cancel a job only if it has not begun; return whether it is cancelled."""
        self.check_owner()
        with self._dispatcher.lock:
            self._dispatcher.take_arrivals()
            if job.state.final:
                return job.state is JobState.CANCELLED
            if not self._not_begun(job):
                return False
            job.cancelled = job.terminated = True
            self._end_on_purpose(job, None)
            return True

    def take_back_all(self, jobs: list[Job]) -> list[Job]:
        """Cancel those of many jobs that have not begun; return those that run.

        One at a time, each would have a worker asked and given its other jobs again.
        """
        self.check_owner()
        dispatcher = self._dispatcher
        with dispatcher.lock:
            dispatcher.take_arrivals()
            for worker in dispatcher.holding():
                dispatcher.put_back(dispatcher.recall(worker))
            running = []
            for job in jobs:
                if job.state.final:
                    continue
                if job.state in (JobState.PENDING, JobState.LOST_PENDING):
                    job.cancelled = job.terminated = True
                    self._end_on_purpose(job, None)
                else:
                    running.append(job)
            dispatcher.refill_idle()
            return running

    def terminate(self, job: Job, signum: int) -> bool:
        """End a job; return False when it has ended already."""
        self.check_owner()
        with self._dispatcher.lock:
            self._dispatcher.take_arrivals()
            if job.state.final:
                return False
            job.terminated = True
            if self._not_begun(job):
                self._end_on_purpose(job, None)
            elif job.worker is not None:
                self._signal(job.worker, job, signum)
            return True

    def discard(self, job: Job) -> None:
        """Let go of a job's outcome, now or when it comes; nobody is called back."""
        self.check_owner()
        with self._dispatcher.lock:
            job.silence()
            if job.ready or job.state.final:
                job.drop_outcome()
            elif job.chunk is None:
                job.chunk = Watch(None, Job.drop_outcome)

    def flush(self) -> int:
        """End what has not begun; return how many jobs. Nobody is called back."""
        self.check_owner()
        with self._dispatcher.lock:
            return self._drop_all()

    def _drop_all(self) -> int:
        dispatcher = self._dispatcher
        dispatcher.take_arrivals()
        for worker in dispatcher.holding():
            dispatcher.put_back(dispatcher.recall(worker))
        dropped = 0
        for job in [*dispatcher.backlog, *self._aside.jobs]:
            if job.state is JobState.PENDING and not job.attempts:
                job.silence()
                job.terminated = job.cancelled = True
                self._end_on_purpose(job, None)
                dropped += 1
        dispatcher.refill_idle()
        return dropped

    def terminate_worker_job(self, pid: int, signum: int) -> bool:
        """End the job that the worker with this process id runs; False when it runs none."""
        self.check_owner()
        with self._dispatcher.lock:
            jobs = self._running_in(pid)
        return any(job is not None and self.terminate(job, signum) for job in jobs)

    def _running_in(self, pid: int) -> list[Job | None]:
        workers = self._crew.everybody()
        return [worker.running() for worker in workers if worker.pid == pid]

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked child, where nothing of the pool moves."""
        if self.foreign:
            raise RuntimeError("this job belongs to a Pool of the parent process")

    def _not_begun(self, job: Job) -> bool:
        """Make sure that a job will not begin, if it has not; the caller ends it then."""
        worker = job.worker
        if job.state in (JobState.PENDING, JobState.LOST_PENDING) or worker is None:
            return True
        recalled = self._dispatcher.recall(worker)
        self._dispatcher.put_back([other for other in recalled if other is not job])
        self._dispatcher.refill_idle()
        return job in recalled

    def _signal(self, worker: WorkerProcess, job: Job, signum: int) -> None:
        serial = job.serial
        if worker.state is WorkerState.DEAD or worker.fields[ledger.FINISHED] >= serial:
            return  # its death is being dealt with, or its result is on its way and wins
        grace = self._grace if signum != signal.SIGKILL else 0.0
        worker.ordered = Order(serial, signum)
        if signum == signal.SIGTERM:
            worker.fields[ledger.TERM_ORDER] = serial
        if signum == kernel.SOFT_LIMIT_SIGNAL:
            self._interrupt(worker, job, worker.fields[ledger.ITEM])
        else:
            self._crew.kill(worker, signum)
        if grace > 0:
            self._loop.call_later(grace, lambda: self._kill(worker, job, serial))
        else:
            self._expect_death(job)

    def _kill(self, worker: WorkerProcess, job: Job, serial: int) -> None:
        """The grace is over: it has not heard the signal, or did not listen."""
        with self._dispatcher.lock:
            if worker.state is WorkerState.DEAD or worker.jobs.get(serial) is not job:
                return
            if worker.fields[ledger.FINISHED] >= serial:
                return
            self._crew.kill(worker)
            self._expect_death(job)
