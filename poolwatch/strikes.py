"""Killing a worker for what its job does, so that nobody else pays for it.

A deliberate kill never hits a neighbour: what the worker has not begun is recalled first, so that
nothing more can start there; a job that has finished meanwhile keeps its result.

The signal that kills first has faulthandler write where the worker is. Both happen inside of one
signal handler: were the worker asked first and killed afterwards, the signal could interrupt a call
in C, the job would run on with what that returned, and end well after its limit. Where the signal
does not get through (the worker is stopped, or blocks all signals), SIGKILL follows.
"""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.evidence import stacks
from poolwatch.exceptions import MemoryLimitExceeded, TimeLimitExceeded
from poolwatch.job import Job
from poolwatch.loop import EventLoop
from poolwatch.transport import kernel, ledger
from poolwatch.workers import Strike, WorkerProcess, WorkerState

_DUMP_SECONDS = 0.05  # a dump that takes longer is taken as it is, ...
_WAIT_SECONDS = 0.25  # ... but for a worker that waits for a processor, which gets so much more
_FIRST_NUDGE = 0.05  # s; each is twice as long after the one before
_LAST_NUDGE = 2.0


class Strikes:
    """Strikes jobs that have gone too far. The dispatcher's lock is held for all of it."""

    def __init__(
        self,
        loop: EventLoop,
        dispatcher: Dispatcher,
        crew: Crew,
        expect_death: Callable[[Job], None],
    ) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._crew = crew
        self._expect_death = expect_death

    def holder(self, job: Job, serial: int) -> WorkerProcess | None:
        """Return the worker that holds this very sending of a job, or None."""
        worker = job.worker
        if worker is None or worker.state is WorkerState.DEAD or worker.jobs.get(serial) is not job:
            return None
        return worker

    def isolate(self, worker: WorkerProcess, serial: int) -> bool:
        """Take back what the worker has not begun; return whether this job still runs.

        False when its result is written, or being written: it wins. Also when somebody has asked
        for the job's end: that is under way.
        """
        job = worker.jobs.get(serial)
        if job is None or job.terminated:
            return False
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
        error: TimeLimitExceeded | MemoryLimitExceeded,
    ) -> None:
        """Kill the worker; the job ends with this error when it is dead.

        Args:
            worker: the one that runs the job, isolated.
            job: the job.
            item: of a chunk, the one that has gone too far.
            error: does not say yet where the job was.
        """
        job.limit = error
        worker.struck = Strike(stacks.size_of_dumps(worker), item)
        self._crew.kill(worker, kernel.FATAL_STACK_SIGNAL, why=f"killed by this pool: {error}")
        self._loop.call_later(_DUMP_SECONDS, lambda: self._finish_off(worker, _WAIT_SECONDS))
        self._expect_death(job)

    def interrupt(self, worker: WorkerProcess, job: Job, item: int) -> None:
        """Have the soft limit's error raised in a job.

        Args:
            worker: the one that runs the job.
            job: the job.
            item: of a chunk, the one that it is meant for.
        """
        worker.fields[ledger.SOFT_ITEM] = item
        worker.fields[ledger.SOFT_ORDER] = job.serial
        self._crew.kill(worker, kernel.SOFT_LIMIT_SIGNAL)
        self._nudge_later(worker, job, job.serial, _FIRST_NUDGE)

    def _nudge_later(self, worker: WorkerProcess, job: Job, serial: int, pause: float) -> None:
        self._loop.call_later(pause, lambda: self._nudge(worker, job, serial, 2 * pause))

    def _nudge(self, worker: WorkerProcess, job: Job, serial: int, pause: float) -> None:
        """Send the signal again, as long as the job has not heard it.

        One that comes between Python's last look for signals and a call that sleeps is seen only
        when that call ends.
        """
        with self._dispatcher.lock:
            if self.holder(job, serial) is not worker or worker.fields[ledger.SOFT_ORDER] != serial:
                return
            self._crew.kill(worker, kernel.SOFT_LIMIT_SIGNAL)
            if pause < _LAST_NUDGE:
                self._nudge_later(worker, job, serial, pause)

    def _finish_off(self, worker: WorkerProcess, patience: float) -> None:
        with self._dispatcher.lock:
            if worker.state is WorkerState.DEAD:
                return
            if patience and worker.pid and _waits_for_a_processor(worker.pid):
                self._loop.call_later(patience, lambda: self._finish_off(worker, 0.0))
            else:
                self._crew.kill(worker)


def _waits_for_a_processor(pid: int) -> bool:
    """Return True when a process is not stopped, does not sleep, and does not block the signal."""
    try:
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return False
    blocked = int(status.get("SigBlk", "0"), 16) >> (kernel.FATAL_STACK_SIGNAL - 1) & 1
    return status.get("State", "").startswith("R") and not blocked
