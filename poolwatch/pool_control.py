"""The methods of ``Pool`` that look at its workers and steer them."""

from __future__ import annotations

import signal
from collections.abc import Callable

from poolwatch import checks
from poolwatch.core import Core
from poolwatch.events import Event
from poolwatch.workers import WorkerInfo


class PoolControl:
    """Part of ``Pool``."""

    _core: Core

    @property
    def processes(self) -> int:
        """Number of workers that were asked for; with ``min_processes``, how many there may be."""
        return self._core.size

    @property
    def workers(self) -> list[WorkerInfo]:
        """The worker processes as they are now, those included that boot or leave."""
        return self._core.infos()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._core.options.name

    def listen(self, callback: Callable[[Event], object]) -> None:
        """Call back with every event from now on, on a thread of the pool (see ``events``).

        Raises:
            TypeError: not callable.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        self._core.listen(callback)

    def terminate_job(self, pid: int, sig: int = signal.SIGTERM) -> bool:
        """End the job that the worker with this process id runs (from billiard).

        The job ends with ``Terminated``. A worker that runs none is left alone.

        Args:
            pid: process id of the worker.
            sig: the signal that the job gets; SIGKILL follows after ``terminate_grace``.

        Returns:
            False when no worker with this process id runs a job.

        Raises:
            TypeError: not a whole number.
            ValueError: not a signal.
        """
        checks.whole("pid", pid)
        return self._core.supervisor.orders.terminate_worker_job(
            pid, checks.signal_number("sig", sig)
        )

    # -- how many workers ----------------------------------------------------------------------

    def grow(self, n: int = 1) -> None:
        """Have ``n`` workers more (from billiard).

        With ``min_processes`` there may be so many more.

        Raises:
            TypeError: not a whole number.
            ValueError: less than 1, or the pool is closed.
            PoolBroken: the pool cannot go on.
        """
        count = checks.whole("n", n)
        self._core.check_open()
        self._core.supervisor.sizing.grow(count)

    def shrink(self, n: int = 1) -> None:
        """Have ``n`` workers fewer (from billiard).

        Idle workers go first. One that runs a job ends it before it leaves; what it has not begun
        goes to others. Billiard refuses when all workers are busy; here they drain.

        Raises:
            TypeError: not a whole number.
            ValueError: less than 1, or none would be left, or the pool is closed.
            PoolBroken: the pool cannot go on.
        """
        count = checks.whole("n", n)
        self._core.check_open()
        self._core.supervisor.sizing.shrink(count)

    def restart(self) -> None:
        """Replace all workers, the idle ones too, by ones made from the program as it is now.

        New workers are made first; an old one leaves for each that is up, after the job that it
        runs. No job is lost or refused meanwhile. Returns at once (as billiard's, which replaces
        only workers that get another job).

        Raises:
            ValueError: the pool is closed.
            PoolBroken: the pool cannot go on.
            OSError: no process or descriptor to be had.
        """
        self._core.restart()

    def maintain_pool(self) -> None:
        """Nothing needs to be done: dead workers are replaced at once (from billiard).

        Raises:
            ValueError, PoolBroken: as for submissions.
        """
        self._core.check_open()

    def did_start_ok(self) -> bool:
        """Return True unless the pool has broken or has been closed (from billiard).

        Billiard tells whether no worker has died; here a death does not matter.
        """
        return not self._core.is_closed

    def flush(self) -> int:
        """Drop the jobs that have not begun (from Celery's pool on billiard).

        What waits, and what was sent to a worker that has not begun it, ends with ``JobCancelled``
        without any callback. Running jobs go on, and so do jobs that have begun once and wait for
        another attempt. Of a map, the items that travel in a job that has not begun are dropped;
        the map becomes ready when its running items have ended, also without callbacks. An ``imap``
        raises ``JobCancelled`` at the positions of the dropped items, and reads on.

        Returns:
            How many jobs were dropped; a chunk of a map counts as one.

        Raises:
            RuntimeError: in a forked child, which inherited the pool.
        """
        return self._core.supervisor.orders.flush()
