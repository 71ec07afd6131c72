"""The caller's own thread helps, rather than sleep until it is woken.

Waking a thread or a process costs more than a short job. So a caller that waits for one looks into
the workers' rings for a moment itself, and takes in what it finds there, in the place of the
supervisor, who is left asleep; and one that submits thousands of jobs takes in results between them
and keeps the workers busy.

Only what is simple is taken here: outcomes of jobs without callbacks and limits, while nobody
listens to events. The rest is left to the supervisor. Nothing here blocks, and nothing here runs
the user's code.

A signal handler may raise in the middle of it (Ctrl-C in the main thread). Taking a frame in may
therefore be done twice, a frame leaves the ring only afterwards, and ``repairs`` puts the rest in
order. A handler may also *use* the pool in the middle of it: see ``Dispatcher.entered``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic_ns

from poolwatch.bus import Bus
from poolwatch.dispatcher import Dispatcher
from poolwatch.intake import Intake
from poolwatch.job import Job
from poolwatch.loop import EventLoop
from poolwatch.transport import kernel, ledger
from poolwatch.transport.kernel import yield_processor
from poolwatch.workers import WorkerProcess, WorkerState

_LOOK_NS = 60_000  # how long to look without finding anything
_SHORT_NS = 60_000  # average run time of jobs that are worth looking out for
_MOST_WORKERS = 8  # whose rings are looked into
_TENDING_SECONDS = 0.001  # without help, after which the supervisor wants to be woken again
_MOST_PATIENCE = 64
_IN_VAIN = 16  # patience that a look in vain costs


class Assist:
    """What callers' threads may do in the place of the supervisor."""

    def __init__(
        self,
        loop: EventLoop,
        bus: Bus,
        dispatcher: Dispatcher,
        intake: Intake,
        repair: Callable[[Job | None], None],
    ) -> None:
        self._loop = loop
        self._bus = bus
        self._dispatcher = dispatcher
        self._intake = intake
        self._repair = repair
        self.foreign = False  # True in a forked child, which inherited the pool
        self._patience = _MOST_PATIENCE
        self._skipped = 0
        self._helped = 0  # how often callers have taken something in
        self._seen = 0  # how often by the last look of the supervisor
        self._watching = False  # the timer of that look is armed

    def until(self, is_ready: Callable[[], bool], timeout: float | None) -> float | None:
        """Help until something is ready, for as long as short jobs come in.

        Args:
            is_ready: tells whether it is.
            timeout: seconds after which to return in any case; None for no bound.

        Returns:
            The seconds that are left to wait.

        Raises:
            RuntimeError: in a forked child, where nothing of the pool moves; or in a signal handler
                that has interrupted this pool's bookkeeping, which cannot go on meanwhile.
        """
        if self.foreign or (timeout != 0 and self._dispatcher.is_held_here()):
            self.check_may_wait()
        if self._dispatcher.average > _SHORT_NS or self._bus.follows_jobs or not self._is_patient():
            return timeout
        begun = monotonic_ns()
        workers: list[WorkerProcess] = []
        try:
            self._call_off_the_bells(workers)
            if workers:
                self._look(workers, is_ready, timeout)
                self._hand_back(workers)
        except BaseException:
            # A signal handler raised. Nobody is looking any more, and the bells may still be off.
            self._loop.call_soon(lambda: self._intake.take_rings(workers))
            raise
        return None if timeout is None else max(0.0, timeout - (monotonic_ns() - begun) / 1e9)

    def check_may_wait(self) -> None:
        """Raise RuntimeError where a wait would never end; see :meth:`until`."""
        if self.foreign:
            raise RuntimeError("this job belongs to a Pool of the parent process")
        if self._dispatcher.is_held_here():
            raise RuntimeError(
                "a signal handler has interrupted the pool's own bookkeeping; it cannot wait here"
            )

    def _is_patient(self) -> bool:
        if self._patience <= 0:
            self._skipped += 1
            return self._skipped % _IN_VAIN == 0
        return True

    def _call_off_the_bells(self, workers: list[WorkerProcess]) -> None:
        """Somebody is looking: nobody needs to be woken by the workers that are put into a list."""
        with self._dispatcher.lock:
            holding = self._dispatcher.holding()
            if len(holding) <= _MOST_WORKERS:
                workers += holding
            for worker in workers:
                worker.fields[ledger.BELL] = 0

    def _look(
        self, workers: list[WorkerProcess], is_ready: Callable[[], bool], timeout: float | None
    ) -> None:
        rings = [worker.ring for worker in workers]
        now = monotonic_ns()
        end = math.inf if timeout is None else now + timeout * 1e9
        deadline = min(end, now + _LOOK_NS)
        while not is_ready():
            for ring in rings:
                if ring.has_data():
                    break
            else:
                if monotonic_ns() > deadline:
                    self._patience = max(0, self._patience - _IN_VAIN)
                    return
                yield_processor()
                continue
            if not self._take(workers):
                return
            now = monotonic_ns()
            if now > end:
                return
            deadline = min(end, now + _LOOK_NS)
        if self._patience < _MOST_PATIENCE:
            self._patience += 1

    def _take(self, workers: list[WorkerProcess]) -> bool:
        """Take in what the rings hold; False when something is left to the supervisor."""
        dispatcher = self._dispatcher
        if dispatcher.entered:
            yield_processor()
            return True  # somebody is at it
        with dispatcher.lock:
            if dispatcher.entered:
                return False
            dispatcher.entered = True
            try:
                return self._take_each(workers)
            finally:
                dispatcher.entered = False

    def _take_each(self, workers: list[WorkerProcess]) -> bool:
        try:
            return self._take_unguarded(workers)
        except BaseException:
            job = self._intake.current
            self._loop.call_soon(lambda: self._repair(job))
            raise

    def _take_unguarded(self, workers: list[WorkerProcess]) -> bool:
        simple = True
        for worker in workers:
            if worker.state is not WorkerState.DEAD and worker.ring.has_data():
                simple &= self._intake.take_simple(worker)
                self._dispatcher.refill(worker)
        return simple

    def take_some(self) -> None:
        """Take in what is there, in the middle of many submissions. The lock is held."""
        if self._bus.follows_jobs:
            return
        holding = self._dispatcher.holding()
        if len(holding) <= _MOST_WORKERS:
            self._tend(holding)
        self._take_each(holding[:_MOST_WORKERS])

    def _tend(self, workers: list[WorkerProcess]) -> None:
        """Let the supervisor sleep while a caller comes by every some jobs. The lock is held.

        Were it woken for each result, two threads would want the interpreter's lock all the time,
        which costs more than the jobs do. It looks once a millisecond instead whether the caller
        has come by since, and wants to be woken again when not.
        """
        self._helped += 1
        if not self._watching:  # in this order: a signal handler may raise anywhere in between
            self._loop.call_later(_TENDING_SECONDS, self._look_after_callers)
            self._watching = True
        if not self._dispatcher.tended:
            self._dispatcher.tended = True
            for worker in workers:
                worker.fields[ledger.BELL] = 0

    def _look_after_callers(self) -> None:
        """Go on sleeping if a caller has come by since, and ask to be woken again otherwise."""
        with self._dispatcher.lock:
            self._watching = False
            if self._dispatcher.tended and self._helped != self._seen:
                self._seen = self._helped
                self._loop.call_later(_TENDING_SECONDS, self._look_after_callers)
                self._watching = True
                return
            # Also when somebody else has said already that they come by no more: they know only of
            # the workers that were at work when they began to wait.
            self._dispatcher.tended = False
            self._intake.take_rings(self._dispatcher.holding())

    def _hand_back(self, workers: list[WorkerProcess]) -> None:
        """Have the supervisor woken again when something comes."""
        with self._dispatcher.lock:
            self._dispatcher.tended = False
            self._arm(workers)

    def _arm(self, workers: list[WorkerProcess]) -> None:
        armed = [worker for worker in workers if worker.jobs]
        for worker in armed:
            if worker.state is not WorkerState.DEAD:
                worker.fields[ledger.BELL] = 1
        if armed:
            kernel.membarrier()
            if any(worker.ring.has_data() for worker in armed):
                self._loop.call_soon(lambda: self._intake.take_rings(armed))
