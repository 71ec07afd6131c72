"""How many workers there should be: grow, shrink, restart.

A worker that is one too many is *retired*: what it has not begun goes to others, it ends the job
that it runs, and leaves. Nobody is killed for it, and its leaving is never a loss. Idle workers are
retired first. With ``min_processes`` the number follows the work, see ``elastic``.

``restart`` makes the new workers first, from the present program, and retires an old one for each
new one that is up.
"""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.elastic import Elastic
from poolwatch.launch.launcher import Launcher
from poolwatch.loop import EventLoop
from poolwatch.workers import WorkerProcess, WorkerState

_LOOK_AGAIN = 0.01  # seconds until the next look whether helpers have gone
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
        self._most = most
        self._least = least
        self._elastic: Elastic | None = None
        self._old_launchers: list[Launcher] = []
        self._on_renewed: Callable[[], None] = lambda: None
        if least is not None:
            self._elastic = Elastic(
                loop, dispatcher, crew, self._retire, least, most, idle_timeout or 0.0, processors
            )

    # -- as the user says ------------------------------------------------------------------------

    def grow(self, count: int) -> None:
        """Have so many workers more. Any thread."""
        with self._dispatcher.lock:
            self._resize(self._most + count)
            self._dispatcher.on_added()  # with putlocks there are more slots now
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
            self._resize(self._most - count)
        self._loop.call_soon(self._trim)

    def _resize(self, most: int) -> None:
        self._most = most
        if self._elastic is None:
            self._crew.target = most
        else:
            self._elastic.most = most
            self._elastic.least = min(self._least or 0, most)
            self._elastic.kept = min(self._elastic.kept, most)

    @property
    def most(self) -> int:
        """How many workers there may be; the number of workers where it is fixed."""
        return self._most

    def _trim(self) -> None:
        """Retire workers that are too many."""
        with self._dispatcher.lock:
            surplus = self._crew.present() - self._most
            for worker in self._by_idleness(current=True)[: max(0, surplus)]:
                self._retire(worker)
        self._crew.maintain()

    def _by_idleness(self, current: bool) -> list[WorkerProcess]:
        """Return the workers that take jobs, or will: the idle ones first.

        Args:
            current: those made since the last restart, or those made before.
        """
        crew = self._crew
        workers = [
            worker
            for worker in crew.everybody()
            if (worker.generation == crew.generation) is current and worker.state in _TAKES_JOBS
        ]
        return sorted(workers, key=_busyness)

    def _retire(self, worker: WorkerProcess) -> None:
        """Let a worker end what it runs, and leave. The lock is held."""
        dispatcher = self._dispatcher
        if worker in dispatcher.in_doubt:
            dispatcher.repair(None)  # first of all it must be known what it holds
        dispatcher.remove(worker, WorkerState.LEAVING)
        dispatcher.put_back(dispatcher.recall(worker))
        self._crew.retire(worker)
        dispatcher.flush(worker)
        dispatcher.refill_idle()

    # -- again from the present program ----------------------------------------------------------

    def restart(self, launcher: Launcher, on_renewed: Callable[[], None]) -> None:
        """Replace all workers by ones that a launcher makes. In the supervisor's thread.

        Args:
            launcher: makes all workers from now on.
            on_renewed: called when no worker that was made before takes jobs any more, unless there
                has been another restart meanwhile. The lock is held.
        """
        crew = self._crew
        self._on_renewed = on_renewed
        if self._elastic is not None:
            self._elastic.kept = min(crew.present(), self._most)
        self._old_launchers.append(crew.renew(launcher))
        crew.maintain()
        self.went_on()

    def came_up(self, worker: WorkerProcess) -> None:
        """A worker is up: for each new one an old one goes. The lock is held."""
        if self._elastic is not None and self._dispatcher.has_idle():
            self._elastic.watch_the_idle()
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
            new = [w for w in crew.everybody() if w.generation == crew.generation]
            if sum(worker.state is WorkerState.UP for worker in new) >= crew.target:
                for worker in self._by_idleness(current=False):
                    self._retire(worker)
            if self._by_idleness(current=False):
                return
            on_renewed, self._on_renewed = self._on_renewed, lambda: None
            on_renewed()
            if self._elastic is not None:
                self._elastic.kept = 0
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
