"""Workers that come and go with the work: a pool with ``min_processes``.

A worker is made when a job waits that nobody will come to soon. What that means depends on what the
jobs have been like. Where they are long, each that waits gets a worker at once. Otherwise somebody
looks every few milliseconds while jobs wait, and has as many made as the work in line is worth: a
burst of tiny jobs is done sooner than another worker would be up, and more workers than processors
are of no use to it. It makes no more than twice as many at a time, for the average may be about to
fall. Whatever the jobs have been like: when all the workers are at long ones, more are made, twice
as many at each look, for what waits is probably long as well.

Nothing looks while no job waits, or when there are as many workers as there may be; then the next
look is due when one leaves. The number of workers is thought over whenever one has gone, so that a
death is replaced only if somebody is needed.

A timer looks for workers that have been idle for long. It exists only while there are idle workers
that may go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from poolwatch.crew import Crew
from poolwatch.dispatcher import OVERHEAD_NS, TINY_NS, Dispatcher
from poolwatch.loop import EventLoop
from poolwatch.recalls import LONG_NS
from poolwatch.workers import WorkerProcess, WorkerState

if TYPE_CHECKING:
    from poolwatch.timers import Timer

_LOOK_AGAIN = 0.004  # seconds until the next look whether jobs still wait
_WORTH_NS = 10_000_000  # ns of work in line that are worth making a worker
_PROVEN = 32  # results after which the average run time is believed
_LOOKS = 4  # at idle workers within idle_timeout


class Elastic:
    """Sets the crew's target by what there is to do.

    Attributes:
        least: so many workers stay.
        most: no more are made.
        kept: so many stay for now, see ``Sizing.restart``.
    """

    def __init__(
        self,
        loop: EventLoop,
        dispatcher: Dispatcher,
        crew: Crew,
        retire: Callable[[WorkerProcess], None],
        least: int,
        most: int,
        idle_timeout: float,
        processors: int,
    ) -> None:
        self.least = least
        self.most = most
        self.kept = 0
        self._loop = loop
        self._dispatcher = dispatcher
        self._crew = crew
        self._retire = retire
        self._idle_timeout = idle_timeout
        self._processors = processors
        self._idle_since: dict[WorkerProcess, tuple[int, float]] = {}  # jobs sent, when first seen
        self._results = 0  # results so far, as far as they need be counted
        self._step = 0  # workers that were made at the last look because all are at long jobs
        self._next_look: Timer | None = None
        crew.target = least
        crew.review = self.review
        dispatcher.demanded = dispatcher.watching_idle = False
        dispatcher.on_demand = crew.maintain
        dispatcher.on_idle = self.watch_the_idle

    # -- as the work demands ---------------------------------------------------------------------

    def review(self) -> None:
        """Say how many workers there should be. In the supervisor's thread."""
        dispatcher, crew = self._dispatcher, self._crew
        if not crew.hiring:
            return
        with dispatcher.lock:
            # From here on whoever submits asks for a look; what came before is seen by this one.
            dispatcher.demanded = False
            dispatcher.take_arrivals()
            stuck = dispatcher.recalls.recall_stuck()
            waiting, present = dispatcher.waiting(), crew.present()
            needed = self._needed(waiting, stuck, present) if waiting else 0
            crew.target = max(self.least, self.kept, min(self.most, present + needed))
            if present >= self.most:
                dispatcher.demanded = True  # nobody need ask before one leaves: that is a review
            elif waiting:
                dispatcher.demanded = True
                self._look_later()
            if stuck and dispatcher.has_idle():
                dispatcher.refill_idle()

    def _look_later(self) -> None:
        if self._next_look is None:
            self._next_look = self._loop.call_later(_LOOK_AGAIN, self._look)

    def _look(self) -> None:
        self._next_look = None
        self._crew.maintain()

    def _needed(self, waiting: int, stuck: int, present: int) -> int:
        """Return how many more workers what waits is worth."""
        dispatcher, crew = self._dispatcher, self._crew
        workers = crew.everybody()
        coming = sum(w.state is WorkerState.BOOTING for w in workers)
        able = sum(self._is_able(w) for w in workers)
        if coming and able and dispatcher.average < LONG_NS:
            return 0
        needed = self._lanes(waiting, present, workers) - able - coming
        all_at_long_ones = stuck and not able and waiting > coming
        # After tiny jobs one worker that boots is enough to learn whether those that wait are.
        if all_at_long_ones and (not coming or dispatcher.average > TINY_NS):
            self._step = max(1, 2 * self._step)
            needed = max(needed, min(self._step, waiting - coming))
        else:
            self._step = 0
        return max(0, needed)

    def _is_able(self, worker: WorkerProcess) -> bool:
        """Return True for a worker that will come to what waits in a moment."""
        dispatcher = self._dispatcher
        if worker.state is not WorkerState.UP or dispatcher.recalls.is_held_up(worker):
            return False
        return not worker.jobs or dispatcher.average < LONG_NS

    def _lanes(self, waiting: int, present: int, workers: list[WorkerProcess]) -> int:
        """Return how many workers should be at what waits."""
        average = self._dispatcher.average
        if self._results < _PROVEN:
            # The first jobs of a worker take long, whatever they are.
            self._results = max(self._results, sum(worker.done for worker in workers))
            return 1
        if average >= LONG_NS:
            return waiting
        lanes = -(-waiting * (average + OVERHEAD_NS) // _WORTH_NS)
        if average <= TINY_NS:
            lanes = min(lanes, self._processors)
        # Twice as many, and then it is seen what that was good for.
        return max(1, min(waiting, int(lanes), 2 * present))

    # -- and as it does not ----------------------------------------------------------------------

    def watch_the_idle(self) -> None:
        """A worker is idle: see to it that somebody looks whether it stays so. The lock is held."""
        dispatcher = self._dispatcher
        if not dispatcher.watching_idle and self._crew.present() > self.least:
            dispatcher.watching_idle = True
            self._loop.call_later(self._idle_timeout / _LOOKS, self._look_for_the_idle)

    def _look_for_the_idle(self) -> None:
        dispatcher, crew, now = self._dispatcher, self._crew, self._loop.time()
        with dispatcher.lock:
            dispatcher.watching_idle = False
            dispatcher.refill_idle()
            seen, self._idle_since = self._idle_since, {}
            for worker in dispatcher.idle_workers():
                sent, since = seen.get(worker, (-1, now))
                if sent != worker.sent:
                    since = now
                is_current = worker.generation == crew.generation
                if is_current and now - since >= self._idle_timeout and self._may_go():
                    self._retire(worker)
                else:
                    self._idle_since[worker] = (worker.sent, since)
            if self._idle_since:
                self.watch_the_idle()
        # Somebody who submits may have seen one idle that has been retired now.
        crew.maintain()

    def _may_go(self) -> bool:
        return self._crew.present() > max(self.least, self.kept)
