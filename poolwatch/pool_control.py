"""The methods of ``Pool`` that look at its workers and steer them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from poolwatch import checks
from poolwatch.core import Core
from poolwatch.events import Event
from poolwatch.evidence.stacks import WorkerStack
from poolwatch.health import Health, examine
from poolwatch.tally import PoolStats
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

    def listen(self, callback: Callable[[Any], object], *kinds: type[Event]) -> Callable[[], None]:
        """Call back with events from now on, on a thread of the pool (see ``poolwatch.events``).

        What comes with every job (``JobSent``, ``JobStarted``, ``JobDone``) costs every job some
        microseconds, as long as somebody listens to it; the other events cost jobs nothing. One
        that raises is reported in the log. Ten thousand events may wait for slow listeners; what is
        beyond that is dropped and counted, see :meth:`stats`.

        Args:
            callback: called with each event.
            kinds: classes of events to be called with, those derived from them included; by default
                all.

        Returns:
            A function that ends it.

        Raises:
            TypeError: not callable, or no class of events.
            RuntimeError: in a forked child, which inherited the pool.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        for kind in kinds:
            if not isinstance(kind, type) or not issubclass(kind, Event):
                raise TypeError(f"kinds must be classes of events, not {kind!r}")
        return self._core.listen(callback, kinds)

    # -- how it is -----------------------------------------------------------------------------

    def health(self, timeout: float = 1.0) -> Health:
        """Return a small verdict: working, idle, degraded, stalled or broken, with the reason.

        For liveness probes: ``health().ok`` is False when the pool is stalled or broken. It looks
        at the supervisor and at every worker process, also without ``stall_after``; only how long a
        job may run is not known then.

        Args:
            timeout: seconds that the supervisor has to answer; a pool whose supervisor does not is
                stalled.

        Raises:
            TypeError: not a number of seconds.
            ValueError: not positive.
            RuntimeError: in a forked child, which inherited the pool.
        """
        self._core.check_owner()
        return examine(self._core, checks.seconds("timeout", timeout))

    def stats(self) -> PoolStats:
        """Return what the pool has done so far: counters, gauges, histograms. Always on.

        Raises:
            RuntimeError: in a forked child, which inherited the pool.
        """
        return self._core.stats()

    def dump_stacks(self, timeout: float = 1.0) -> list[WorkerStack]:
        """Return where all workers are: the stacks of all their Python threads.

        Works at any time, also while a job holds the interpreter's lock in C code: the dump is
        written by a signal handler in C (``faulthandler``). Jobs are not disturbed, but that a
        system call may be interrupted.

        Args:
            timeout: seconds to wait for workers that do not answer, because they are stopped.

        Raises:
            TypeError: not a number of seconds.
            ValueError: not positive.
            RuntimeError: in a forked child, which inherited the pool, or in a policy.
        """
        if self._core.is_supervisor_thread():
            raise RuntimeError("a policy runs in the supervisor's thread, which must not wait")
        return self._core.dump_stacks(checks.seconds("timeout", timeout))

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
