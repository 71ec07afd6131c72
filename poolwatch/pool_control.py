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

        With ``min_processes`` there may be so many more; they are made when there is work for them.

        Args:
            n: how many, at least 1.

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

        Idle workers go first. One that runs a job ends it before it leaves, however long that
        takes; what it has not begun goes to others. So ``processes`` changes at once, and the
        number of worker processes when the jobs have ended. Billiard raises ValueError when all
        workers are busy, having let go of those that were not; here they drain, and it is all of
        ``n`` or none. With ``min_processes`` that number falls too where it would be the greater.

        Args:
            n: how many, at least 1 and less than ``processes``.

        Raises:
            TypeError: not a whole number.
            ValueError: less than 1, or no worker would be left, or the pool is closed.
            PoolBroken: the pool cannot go on.
        """
        count = checks.whole("n", n)
        self._core.check_open()
        self._core.supervisor.sizing.shrink(count)

    def restart(self) -> None:
        """Replace all workers, the idle ones too, by ones made from the program as it is now.

        New workers are made first; an old one leaves for each that is up, after the job that it
        runs. No job is lost or refused meanwhile. Returns at once, so that jobs which are submitted
        right afterwards may still meet an old worker. There may be twice as many worker processes
        for a moment. What jobs of old workers have left running ends with the last of those
        workers.

        Raises:
            ValueError: the pool is closed.
            PoolBroken: the pool cannot go on.
            OSError: no process or descriptor to be had; the pool goes on as it is.
            Exception: with ``spawn`` and ``forkserver``, what pickling the initializer raised.
        """
        self._core.restart()

    def maintain_pool(self) -> None:
        """Have the pool look whether workers are missing (from billiard).

        It does so by itself when one dies, so that nobody needs to call this. A pool that has ended
        stays as it is, as billiard's does.

        Raises:
            RuntimeError: in a forked child, which inherited the pool.
        """
        self._core.maintain()

    def did_start_ok(self) -> bool:
        """Return True when a worker has come up, or is still coming up (from billiard).

        False when the pool is broken or closed, and while no process is to be had for the first
        worker. Billiard tells whether no worker has died since the last look, and buries those that
        have; here a death does not matter, and nothing is changed.

        Raises:
            RuntimeError: in a forked child, which inherited the pool.
        """
        return self._core.did_start_ok()

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
