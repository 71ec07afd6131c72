"""The launchers of one pool: one, and several for a while after a restart."""

from __future__ import annotations

import threading
from collections.abc import Callable

from poolwatch.launch.contexts import make_launcher
from poolwatch.launch.launcher import Launcher
from poolwatch.worker.main import WorkerSetup


class Launchers:
    """Makes launchers, and stops all of them.

    Args:
        start_method: how workers are made.
        setup: what all workers have in common.
        name: of the pool.

    Attributes:
        first: the one that the pool began with.

    Raises:
        OSError: no process or descriptor to be had.
        Exception: with ``spawn`` and ``forkserver``, what pickling the initializer raised.
    """

    def __init__(self, start_method: str, setup: WorkerSetup, name: str) -> None:
        self._start_method = start_method
        self._setup = setup
        self._name = name
        self._lock = threading.Lock()
        self._ended = False  # whoever ends the pool stops no further launcher
        self.first = self._make()
        self._all = [self.first]  # the newest last

    def _make(self) -> Launcher:
        return make_launcher(self._start_method, self._setup, self._name)

    def add(self, then: Callable[[], None]) -> Launcher | None:
        """Make a launcher from the present program. Any thread.

        Args:
            then: called before anybody else can add one.

        Returns:
            None when the pool has ended meanwhile.

        Raises:
            OSError: no process or descriptor to be had.
        """
        launcher = self._make()
        with self._lock:
            ended = self._ended
            if not ended:
                self._all = [*self._present(), launcher]
                then()
        if ended:
            _stop([launcher], 1.0)
            return None
        return launcher

    def _present(self) -> list[Launcher]:
        return [launcher for launcher in self._all if not launcher.is_gone()]

    def stop(self, seconds: float) -> None:
        """Stop all of them for good; helpers that last longer than so many seconds are killed."""
        with self._lock:
            launchers, self._ended = list(self._all), True
        _stop(launchers, seconds)

    def closers(self) -> list[Callable[[], object]]:
        """Return what closes the parent's descriptors; for a forked child."""
        return [launcher.close for launcher in self._all]


def _stop(launchers: list[Launcher], seconds: float) -> None:
    for launcher in launchers:
        launcher.stop()
    for launcher in launchers:
        launcher.wait(seconds)
