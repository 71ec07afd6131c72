"""Killing a worker for what its job does, so that nobody else pays for it.

A deliberate kill never hits a neighbour: what the worker has not begun is recalled first, so that
nothing more can start there; a job that has finished meanwhile keeps its result. Between the two
the worker is asked where it is, through faulthandler, in C.
"""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.evidence.stacks import StackDumps
from poolwatch.exceptions import MemoryLimitExceeded, TimeLimitExceeded
from poolwatch.job import Job
from poolwatch.transport import ledger
from poolwatch.workers import WorkerProcess, WorkerState

_DUMP_SECONDS = 0.05  # a dump that takes longer is taken as it is


class Strikes:
    """Strikes jobs that have gone too far. The dispatcher's lock is held for all of it."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        crew: Crew,
        stacks: StackDumps,
        expect_death: Callable[[Job], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._crew = crew
        self._stacks = stacks
        self._expect_death = expect_death

    def holder(self, job: Job, serial: int) -> WorkerProcess | None:
        """Return the worker that holds this very sending of a job, or None."""
        worker = job.worker
        if worker is None or worker.state is WorkerState.DEAD or worker.jobs.get(serial) is not job:
            return None
        return worker

    def isolate(self, worker: WorkerProcess, serial: int) -> bool:
        """Take back what the worker has not begun; return whether this job still runs.

        False when its result is written, or being written: it wins.
        """
        self._dispatcher.put_back(self._dispatcher.recall(worker))
        self._dispatcher.refill_idle()
        fields = worker.fields
        if fields[ledger.FINISHED] >= serial:
            return False
        # Once only: a worker that hangs while it writes is struck the next time.
        writing = fields[ledger.PHASE] == ledger.SENDING and worker.sending != serial
        worker.sending = serial if writing else worker.sending
        return not writing

    def strike(
        self,
        worker: WorkerProcess,
        job: Job,
        item: int,
        kill: Callable[[str | None], None],
        spared: Callable[[], None],
    ) -> None:
        """Ask the worker where it is; then have it killed, if it is still at it.

        Args:
            worker: the one that runs the job, isolated.
            job: the job.
            item: of a chunk, the one that has gone too far.
            kill: told where it was; is to call :meth:`kill`.
            spared: called instead when that item has ended meanwhile and another has begun.
        """
        serial = job.serial

        def asked(stack: str | None) -> None:
            if self.holder(job, serial) is not worker:
                return
            if worker.fields[ledger.ITEM] != item:
                spared()
            elif worker.fields[ledger.FINISHED] < serial:  # or its result is on its way
                kill(stack or None)

        self._stacks.request(worker, _DUMP_SECONDS, asked)

    def kill(
        self, worker: WorkerProcess, job: Job, error: TimeLimitExceeded | MemoryLimitExceeded
    ) -> None:
        """Kill the worker; the job ends with this error when it is dead."""
        job.limit = error
        self._crew.kill(worker, why=f"killed by this pool: {error.args[0].splitlines()[0]}")
        self._expect_death(job)
