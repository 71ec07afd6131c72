"""How many workers there should be: grow, shrink, workers that come and go with the work, restart.

A worker that is one too many is *retired*: what it has not begun goes to others, it ends the job
that it runs, and leaves. Nobody is killed for it, and its leaving is never a loss. Idle workers are
retired first.

With ``min_processes`` the number follows the work. A worker is made when jobs wait and no worker is
idle, more of them at each look as long as that lasts, so that long jobs have their workers at once
and a burst of tiny jobs, which the present workers will have done sooner than another is up, makes
none. A timer looks for workers that have been idle for long; it exists only while there are idle
workers that may go.

``restart`` makes the new workers first, from the present program, and retires an old one for each
new one that is up.
"""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.crew import Crew
from poolwatch.dispatcher import TINY_NS, Dispatcher
from poolwatch.launch.launcher import Launcher
from poolwatch.loop import EventLoop
from poolwatch.workers import WorkerProcess, WorkerState

_LOOK_AGAIN = 0.01  # seconds until the next look whether jobs still wait
_LOOKS = 4  # at idle workers within idle_timeout
_TAKES_JOBS = (WorkerState.UP, WorkerState.BOOTING)


class Sizing:
    """Says how many workers there should be, and which are to go. The crew sees to it."""

    def __init__(
        self,
        loop: EventLoop,
        dispatcher: Dispatcher,
        crew: Crew,
        least: int | None,
        most: int,
        idle_timeout: float | None,
        processors: int,
    ) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._crew = crew
        self._least = least
        self._most = most
        self._idle_timeout = idle_timeout or 0.0
        self._processors = processors
        self._idle_since: dict[WorkerProcess, tuple[int, float]] = {}  # jobs done, when first seen
        self._done = 0  # jobs, by the last look
        self._old_launchers: list[Launcher] = []
        self.on_renewed: Callable[[], None]  # set by the core: the last old worker takes no jobs
        if least is not None:
            crew.target = least
            dispatcher.elastic = True
            dispatcher.on_demand = self._on_demand
            dispatcher.on_idle = self._watch_the_idle

    # -- as the user says ------------------------------------------------------------------------

    def grow(self, count: int) -> None:
        """Have so many workers more. Any thread."""
        with self._dispatcher.lock:
            self._most += count
            if self._least is None:
                self._crew.target += count
        self._loop.call_soon(self._crew.maintain)

    def shrink(self, count: int) -> None:
        """Have so many workers fewer; they end what they run. Any thread.

        Raises:
            ValueError: less than one would be left.
        """
        with self._dispatcher.lock:
            if count >= self._most:
                raise ValueError(
                    f"n must be less than the number of workers ({self._most}): {count}"
                )
            self._most -= count
            if self._least is None:
                self._crew.target -= count
            else:
                self._least = min(self._least, self._most)
                self._crew.target = min(self._crew.target, self._most)
        self._loop.call_soon(self._trim)

    @property
    def most(self) -> int:
        """How many workers there may be; the number of workers where it is fixed."""
        return self._most

    def _trim(self) -> None:
        """Retire workers that are too many."""
        with self._dispatcher.lock:
            crew = self._crew
            surplus = crew.present() - crew.target
            for worker in self._by_idleness(current=True)[: max(0, surplus)]:
                self._retire(worker)

    def _by_idleness(self, current: bool) -> list[WorkerProcess]:
        """Return the workers that take jobs, or will: the idle ones first.

        Args:
            current: those made since the last restart, or those made before.
        """
        crew = self._crew
        workers = [
            worker
            for worker in crew.workers.values()
            if (worker.generation == crew.generation) is current and worker.state in _TAKES_JOBS
        ]
        return sorted(workers, key=_busyness)

    def _retire(self, worker: WorkerProcess) -> None:
        """Let a worker end what it runs, and leave. The lock is held."""
        dispatcher = self._dispatcher
        back = dispatcher.recall(worker)
        dispatcher.remove(worker, WorkerState.LEAVING)
        dispatcher.put_back(back)
        self._idle_since.pop(worker, None)
        self._crew.retire(worker)
        dispatcher.refill_idle()

    # -- as the work demands ---------------------------------------------------------------------

    def _on_demand(self) -> None:
        """Jobs have been submitted while no worker was idle."""
        self._dispatcher.demanded = False
        self._look_for_waiting_jobs()

    def _look_for_waiting_jobs(self) -> None:
        """Have more workers made while jobs wait: as many again as there are, at each look."""
        dispatcher, crew = self._dispatcher, self._crew
        with dispatcher.lock:
            dispatcher.take_arrivals()
            present, booting = crew.present(), crew.booting()
            waiting = dispatcher.unfinished - len(dispatcher.holding()) - booting
            if waiting <= 0 or dispatcher.has_idle() or present >= self._most:
                return
            self._loop.call_later(_LOOK_AGAIN, self._look_for_waiting_jobs)
            done, self._done = self._done, sum(w.done for w in list(crew.workers.values()))
            is_moving = dispatcher.average <= TINY_NS and done != self._done
            if is_moving and present >= self._processors:
                return  # these are done sooner than another worker would be up
            dispatcher.recall_stuck()
            # How long jobs take is seen when those that boot have done some.
            wanted = min(waiting, max(present - booting, self._processors) - booting)
            crew.target = min(self._most, present + max(0, wanted))
        crew.maintain()

    def _watch_the_idle(self) -> None:
        """A worker is idle: see to it that somebody looks whether it stays so."""
        dispatcher = self._dispatcher
        if self._least is not None and self._crew.present() > self._least:
            dispatcher.watching_idle = True
            self._loop.call_later(self._idle_timeout / _LOOKS, self._look_for_the_idle)

    def _look_for_the_idle(self) -> None:
        dispatcher, crew, now = self._dispatcher, self._crew, self._loop.time()
        with dispatcher.lock:
            dispatcher.watching_idle = False
            idle = dispatcher.idle_workers()
            seen, self._idle_since = self._idle_since, {}
            for worker in idle:
                done, since = seen.get(worker, (-1, now))
                if done != worker.done:
                    since = now
                if now - since >= self._idle_timeout and crew.present() > (self._least or 0):
                    crew.target = max(self._least or 0, crew.present() - 1)
                    self._retire(worker)
                else:
                    self._idle_since[worker] = (worker.done, since)
            if self._idle_since:
                self._watch_the_idle()

    def after_deaths(self) -> None:
        """Workers have died: replace those that are needed. In the supervisor's thread."""
        if self._least is None:
            return
        with self._dispatcher.lock:
            self._dispatcher.take_arrivals()
            self._crew.target = max(self._least, min(self._crew.target, self._crew.present()))
        self._look_for_waiting_jobs()

    # -- again from the present program ----------------------------------------------------------

    def restart(self, launcher: Launcher) -> None:
        """Replace all workers by ones that this launcher makes. In the supervisor's thread."""
        crew = self._crew
        self._old_launchers.append(crew.renew(launcher))
        crew.maintain()
        self.went_on()

    def came_up(self, worker: WorkerProcess) -> None:
        """A worker is up: for each new one an old one goes. The lock is held."""
        if self._old_launchers and worker.generation == self._crew.generation:
            for other in self._by_idleness(current=False)[:1]:
                self._retire(other)
            self.went_on()

    def went_on(self) -> None:
        """See how far a restart has come; also after a worker's end."""
        if not self._old_launchers:
            return
        crew = self._crew
        with self._dispatcher.lock:
            new = [w for w in crew.workers.values() if w.generation == crew.generation]
            if sum(worker.state is WorkerState.UP for worker in new) >= crew.target:
                for worker in self._by_idleness(current=False):
                    self._retire(worker)
            if self._by_idleness(current=False):
                return
            self.on_renewed()
            if len(new) < len(crew.workers):
                return
            launchers, self._old_launchers = self._old_launchers, []
        for launcher in launchers:
            launcher.stop()
            self._close_soon(launcher)

    def _close_soon(self, launcher: Launcher) -> None:
        """Close what a launcher holds once its helpers have gone."""
        if launcher.is_gone():
            launcher.close()
        else:
            self._loop.call_later(_LOOK_AGAIN, lambda: self._close_soon(launcher))


def _busyness(worker: WorkerProcess) -> tuple[int, bool]:
    return len(worker.jobs), worker.state is not WorkerState.UP
