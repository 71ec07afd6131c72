"""Time limits: the parent's deadlines, which hold also while C code holds the worker's GIL.

A deadline is armed when a job is sent. When it fires, the row's clock tells when the job really
began, and the deadline is armed again for what is left. Nobody is woken for the start itself.

The hard limit kills the worker, see ``strikes``.
"""

from __future__ import annotations

from poolwatch.bus import Bus
from poolwatch.dispatcher import Dispatcher
from poolwatch.events import JobTimedOut
from poolwatch.exceptions import TimeLimitExceeded
from poolwatch.hooks import Hooks
from poolwatch.job import NO_OPTIONS, Job
from poolwatch.loop import EventLoop
from poolwatch.strikes import Strikes
from poolwatch.timers import Timer
from poolwatch.transport import frames, ledger
from poolwatch.workers import WorkerProcess

_SENDING_SECONDS = 1.0  # a job that is writing its result when its limit passes


class Limits:
    """The deadlines of the jobs that have any."""

    def __init__(
        self,
        loop: EventLoop,
        bus: Bus,
        dispatcher: Dispatcher,
        hooks: Hooks,
        strikes: Strikes,
    ) -> None:
        self._loop = loop
        self._bus = bus
        self._dispatcher = dispatcher
        self._hooks = hooks
        self._strikes = strikes
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

    def _arm_soft(self, job: Job, when: float, told: int | None = None) -> None:
        """Arm the soft deadline; one item of a chunk, if any, has been told already."""
        serial = job.serial
        timer = self._loop.call_at(when, lambda: self._soft_deadline(job, serial, told))
        self._timers.setdefault(job, []).append(timer)

    def _arm_hard(self, job: Job, when: float) -> None:
        serial = job.serial
        timer = self._loop.call_at(when, lambda: self._hard_deadline(job, serial))
        self._timers.setdefault(job, []).append(timer)

    def _due(self, worker: WorkerProcess, serial: int, limit: float) -> float:
        """Return when the limit passes, by the row's clock, or for what has not begun the earliest.

        Monotonic seconds.
        """
        fields = worker.fields
        if fields[ledger.STARTED] < serial:
            return self._loop.time() + limit
        return float(fields[ledger.STARTED_AT] / 1e9 + limit)

    # -- soft ----------------------------------------------------------------------------------

    def _soft_deadline(self, job: Job, serial: int, told: int | None) -> None:
        with self._dispatcher.lock:
            worker, limit = self._strikes.holder(job, serial), job.options.soft_timeout
            if worker is None or limit is None:
                return
            item = worker.fields[ledger.ITEM]  # before the clock: it is the clock of this item
            due = self._due(worker, serial, limit)
            if due > self._loop.time():
                self._arm_soft(job, due)
                return
            if item == told:  # what it does since then is its own affair
                self._arm_soft(job, self._loop.time() + limit, told)
                return
            self._strikes.interrupt(worker, job, item)
            if job.chunk is not None and job.chunk.flags & frames.CHUNK:
                self._arm_soft(job, self._loop.time() + limit, item)  # it holds for each item
            self._bus.emit(JobTimedOut(self._bus.pool, job.id, job.name, True, limit))
            self._hooks.limit_hit(job, True, limit)

    # -- hard ----------------------------------------------------------------------------------

    def _hard_deadline(self, job: Job, serial: int) -> None:
        with self._dispatcher.lock:
            worker, limit = self._strikes.holder(job, serial), job.options.timeout
            if worker is None or limit is None:
                return
            item = worker.fields[ledger.ITEM]  # before the clock: it is the clock of this item
            due = self._due(worker, serial, limit)
            if due > self._loop.time():
                self._arm_hard(job, due)
                return
            if not self._strikes.isolate(worker, serial):
                self._arm_hard(job, self._loop.time() + _SENDING_SECONDS)
                return
            text = f"job {job.id} {job.name} ran longer than its limit of {limit:g} s"
            self._strikes.strike(worker, job, item, TimeLimitExceeded(text, timeout=limit))
            self._hooks.limit_hit(job, False, limit)
