"""Time limits: the parent's deadlines, which hold also while C code holds the worker's GIL.

A deadline is armed when a job is sent. When it fires, the row's clock tells when the job really
began, and the deadline is armed again for what is left. Nobody is woken for the start itself.

The hard limit kills, and a deliberate kill never hits a neighbour: what the worker has not begun is
recalled first, so that nothing more can start there; a job that has finished meanwhile keeps its
result. Between the two the worker is asked where it is, through faulthandler, in C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from poolwatch import postmortem
from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.events import Bus, JobTimedOut
from poolwatch.exceptions import TimeLimitExceeded
from poolwatch.hooks import Hooks
from poolwatch.job import NO_OPTIONS, Job
from poolwatch.loop import EventLoop
from poolwatch.timers import Timer
from poolwatch.transport import frames, kernel, ledger
from poolwatch.workers import WorkerProcess, WorkerState

_DUMP_SECONDS = 0.05  # a dump that takes longer is taken as it is
_FIRST_LOOK = 0.001
_SENDING_SECONDS = 1.0  # a job that is writing its result when its limit passes


class _Victim(NamedTuple):
    """A job whose hard limit has passed, while its worker tells where it is.

    Attributes:
        job: the job.
        serial: this sending of it.
        item: the item of a chunk that is too long.
        position: where its stack dump begins in the worker's file.
        deadline: when the dump is taken as it is.
    """

    job: Job
    serial: int
    item: int
    position: int
    deadline: float


class Limits:
    """The deadlines of the jobs that have any."""

    def __init__(
        self,
        loop: EventLoop,
        bus: Bus,
        dispatcher: Dispatcher,
        crew: Crew,
        hooks: Hooks,
        expect_death: Callable[[Job], None],
    ) -> None:
        self._loop = loop
        self._bus = bus
        self._dispatcher = dispatcher
        self._crew = crew
        self._hooks = hooks
        self._expect_death = expect_death
        self._timers: dict[Job, list[Timer]] = {}

    def arm(self, job: Job) -> None:
        """A job has been sent. The dispatcher's lock is held. Any thread."""
        options = job.options
        if options is NO_OPTIONS or (options.timeout is None and options.soft_timeout is None):
            return
        self.disarm(job)
        self._hooks.limits_on(job)
        now = self._loop.time()
        if options.soft_timeout is not None:
            self._arm_soft(job, now + options.soft_timeout)
        if options.timeout is not None:
            self._arm_hard(job, now + options.timeout)

    def disarm(self, job: Job) -> bool:
        """A job has ended or was taken back; return whether it had deadlines. The lock is held."""
        timers = self._timers.pop(job, None)
        for timer in timers or ():
            self._loop.cancel(timer)
        return timers is not None

    def _arm_soft(self, job: Job, when: float) -> None:
        serial = job.serial
        timer = self._loop.call_at(when, lambda: self._soft_deadline(job, serial))
        self._timers.setdefault(job, []).append(timer)

    def _arm_hard(self, job: Job, when: float) -> None:
        serial = job.serial
        timer = self._loop.call_at(when, lambda: self._hard_deadline(job, serial))
        self._timers.setdefault(job, []).append(timer)

    def _still_there(self, job: Job, serial: int) -> WorkerProcess | None:
        """Return the worker that holds this very sending of the job, or None."""
        worker = job.worker
        if worker is None or worker.state is WorkerState.DEAD or worker.jobs.get(serial) is not job:
            return None
        return worker

    def _due(self, worker: WorkerProcess, serial: int, limit: float) -> float:
        """Return when the limit passes, by the row's clock, or for what has not begun the earliest.

        Monotonic seconds.
        """
        fields = worker.fields
        if fields[ledger.STARTED] < serial:
            return self._loop.time() + limit
        return float(fields[ledger.STARTED_AT] / 1e9 + limit)

    # -- soft ----------------------------------------------------------------------------------

    def _soft_deadline(self, job: Job, serial: int) -> None:
        with self._dispatcher.lock:
            worker, limit = self._still_there(job, serial), job.options.soft_timeout
            if worker is None or limit is None:
                return
            item = worker.fields[ledger.ITEM]  # before the clock: it is the clock of this item
            due = self._due(worker, serial, limit)
            if due > self._loop.time():
                self._arm_soft(job, due)
                return
            worker.fields[ledger.SOFT_ITEM] = item
            worker.fields[ledger.SOFT_ORDER] = serial
            self._crew.kill(worker, kernel.SOFT_LIMIT_SIGNAL)
            if job.chunk is not None and job.chunk.flags & frames.CHUNK:
                self._arm_soft(job, self._loop.time() + limit)  # it holds for each item
            self._bus.emit(JobTimedOut(self._bus.pool, job.id, job.name, True, limit))
            self._hooks.limit_hit(job, True, limit)

    # -- hard ----------------------------------------------------------------------------------

    def _hard_deadline(self, job: Job, serial: int) -> None:
        with self._dispatcher.lock:
            worker, limit = self._still_there(job, serial), job.options.timeout
            if worker is None or limit is None:
                return
            item = worker.fields[ledger.ITEM]  # before the clock: it is the clock of this item
            due = self._due(worker, serial, limit)
            if due > self._loop.time():
                self._arm_hard(job, due)
                return
            self._dispatcher.put_back(self._dispatcher.recall(worker))
            self._dispatcher.refill_idle()
            if self._finished(worker, serial):
                self._arm_hard(job, self._loop.time() + _SENDING_SECONDS)
                return
            position = postmortem.dump_size(worker)
            self._crew.kill(worker, kernel.STACK_SIGNAL)
            deadline = self._loop.time() + _DUMP_SECONDS
        victim = _Victim(job, serial, item, position, deadline)
        self._look_again(victim, _FIRST_LOOK)

    def _finished(self, worker: WorkerProcess, serial: int) -> bool:
        """True when the job's result is written, or being written: it wins over the limit."""
        fields = worker.fields
        if fields[ledger.FINISHED] >= serial:
            return True
        # Once only: a worker that hangs while it writes is killed at the next deadline.
        writing = fields[ledger.PHASE] == ledger.SENDING and worker.sending != serial
        worker.sending = serial if writing else worker.sending
        return bool(writing)

    def _look_again(self, victim: _Victim, pause: float) -> None:
        self._loop.call_later(pause, lambda: self._look_at_dump(victim, 2 * pause))

    def _look_at_dump(self, victim: _Victim, pause: float) -> None:
        job, serial = victim.job, victim.serial
        with self._dispatcher.lock:
            worker = self._still_there(job, serial)
            if worker is None:
                return
            dump = postmortem.read_dump(worker.hands.stack_fd, victim.position)
            if not postmortem.is_complete(dump) and self._loop.time() < victim.deadline:
                self._look_again(victim, pause)
                return
            if worker.fields[ledger.ITEM] != victim.item:
                self._arm_hard(job, self._loop.time())  # it has just ended; the next one is not due
                return
            if worker.fields[ledger.FINISHED] >= serial:
                return  # its result is on its way
            self._kill(worker, job, postmortem.trim(dump) or None)

    def _kill(self, worker: WorkerProcess, job: Job, stack: str | None) -> None:
        limit = job.options.timeout or 0.0
        text = f"job {job.id} {job.name} ran longer than its limit of {limit:g} s"
        if stack is not None:
            text += f"; it was at:\n{stack}"
        job.limit = TimeLimitExceeded(text, timeout=limit, stack=stack)
        self._crew.kill(worker)
        self._expect_death(job)
        self._bus.emit(JobTimedOut(self._bus.pool, job.id, job.name, False, limit, stack))
        self._hooks.limit_hit(job, False, limit)
