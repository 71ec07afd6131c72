"""Putting the books in order after a signal handler raised in the middle of a caller's help."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from poolwatch.aside import Aside
from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.intake import Intake
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.workers import WorkerProcess


class Repairs:
    """Finds out what the workers hold, and puts everything else back in line.

    A caller's thread submits jobs and takes results in itself, and Ctrl-C may end that at any point
    (see ``assist``): a frame may have been sent and not be noted, or a job taken from its place and
    not be put into the next.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        crew: Crew,
        intake: Intake,
        aside: Aside,
        on_drained: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._crew = crew
        self._intake = intake
        self._aside = aside
        self._on_drained = on_drained

    def repair(self, job: Job | None) -> None:
        """Put the books in order. In the supervisor's thread.

        What workers have written is taken in, as far as it has not been. What any worker has not
        begun is taken back, so that it does not matter whether its frame went out. The job that the
        caller was about is put in line if it is nowhere.

        Args:
            job: the one that the caller was about, if there was one.
        """
        dispatcher = self._dispatcher
        with dispatcher.lock:
            workers = self._crew.everybody()
            for worker in workers:
                self._intake.take_ring(worker)
                dispatcher.put_back(dispatcher.recall(worker))
            doubtful, dispatcher.in_doubt = dispatcher.in_doubt, {}
            self._recount(job, workers)
            if job is not None and job.chunk is not None:
                job.chunk.recount()
            for worker in workers:
                if worker.stream.broken or (worker in doubtful and not dispatcher.can_recall):
                    dispatcher.on_broken(worker)
                else:
                    dispatcher.refill(worker)
                    dispatcher.flush(worker)
                    self._intake.arm(worker)
            if not dispatcher.unfinished:
                self._on_drained()

    def _recount(self, job: Job | None, workers: list[WorkerProcess]) -> None:
        """Have every job in one place, and count the unfinished ones. The lock is held."""
        dispatcher = self._dispatcher
        held = [other for worker in workers for other in worker.jobs.values()]
        dispatcher.take_arrivals()
        waiting = dict.fromkeys(dispatcher.backlog)  # one may be in line twice
        dispatcher.backlog = deque(other for other in waiting if other not in held)
        for other in dispatcher.backlog:
            if other.state is JobState.SENT:
                dispatcher.move(other, JobState.PENDING)
        places = {*dispatcher.backlog, *self._aside.jobs, *held}
        if job is not None and job not in places and not job.state.final:
            if job.state is not JobState.PENDING:
                dispatcher.move(job, JobState.PENDING)
            dispatcher.line_up(job)
            places.add(job)
        dispatcher.unfinished = sum(not other.state.final for other in places)
