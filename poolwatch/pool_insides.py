"""What programs read of a ``multiprocessing.Pool`` although it is private there.

These names are in wide use for want of public ones. They can be read, and tell the truth; nothing
can be changed through them. The public names are better: ``processes``, ``workers``, ``stats``.
"""

from __future__ import annotations

import time

from poolwatch.core import Core
from poolwatch.workers import WorkerProcess, WorkerState

_PID_PAUSE = 0.001  # seconds between two looks for the process id of a worker that is being made


class PoolMember:
    """A worker, as far as programs look at the processes in ``multiprocessing.Pool._pool``."""

    __slots__ = ("_core", "_worker", "name")

    def __init__(self, worker: WorkerProcess, core: Core) -> None:
        self._worker = worker
        self._core = core
        self.name = worker.name

    @property
    def pid(self) -> int | None:
        """The process id; waits until there is one, no longer than a worker has to boot."""
        worker = self._worker
        end = time.monotonic() + self._core.options.boot_timeout
        while worker.pid is None and self.is_alive() and time.monotonic() < end:
            time.sleep(_PID_PAUSE)
        return worker.pid

    ident = pid

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal; None while it lives, or where it is not known."""
        return self._worker.exitcode

    def is_alive(self) -> bool:
        """Return True while the process lives, or is being made."""
        with self._core.dispatcher.lock:
            return self._worker.state is not WorkerState.DEAD and not self._worker.has_ended()

    def __repr__(self) -> str:
        return f"<PoolMember {self.name} pid={self._worker.pid}>"


class WaitingJobs:
    """As much of a queue as programs use to see how many jobs wait."""

    __slots__ = ("_core",)

    def __init__(self, core: Core) -> None:
        self._core = core

    def qsize(self) -> int:
        """Return how many jobs have not been sent to a worker; a chunk of a map is one job."""
        dispatcher = self._core.dispatcher
        with dispatcher.lock:
            return len(dispatcher.backlog) + len(dispatcher.arrivals)

    def empty(self) -> bool:
        """Return True when there is none."""
        return not self.qsize()


class PoolInsides:
    """Part of ``Pool``."""

    _core: Core

    @property
    def _processes(self) -> int:
        """Number of workers, as ``multiprocessing.Pool._processes``; see ``processes``."""
        return self._core.size

    @property
    def _pool(self) -> list[PoolMember]:
        """The workers that take jobs, with ``pid``, ``name``, ``exitcode`` and ``is_alive()``.

        As ``multiprocessing.Pool._pool``, where they are processes; see ``workers``.
        """
        core = self._core
        core.check_owner()
        core.hired.wait(core.options.boot_timeout)
        with core.dispatcher.lock:
            workers = core.supervisor.crew.everybody()
        working = (WorkerState.BOOTING, WorkerState.UP)
        return [PoolMember(worker, core) for worker in workers if worker.state in working]

    @property
    def _state(self) -> str:
        """``"RUN"``, ``"CLOSE"`` or ``"TERMINATE"``, as ``multiprocessing.Pool._state``.

        A broken pool counts as terminated.
        """
        if self._core.is_terminated:
            return "TERMINATE"
        return "CLOSE" if self._core.is_closed else "RUN"

    @property
    def _cache(self) -> dict[int, str]:
        """What is unfinished: number to function's name. Empty when all callbacks have run.

        As ``multiprocessing.Pool._cache``, whose values are results. A chunk of a map is one job.
        """
        core = self._core
        core.check_owner()
        return core.unfinished()

    @property
    def _taskqueue(self) -> WaitingJobs:
        """Has ``qsize()`` and ``empty()``, as ``multiprocessing.Pool._taskqueue``."""
        self._core.check_owner()
        return WaitingJobs(self._core)

    @property
    def _maxtasksperchild(self) -> int | None:
        """As ``multiprocessing.Pool._maxtasksperchild``."""
        return self._core.options.maxtasksperchild

    def _maintain_pool(self) -> None:
        """Nothing needs to be done: dead workers are replaced at once."""

    _repopulate_pool = _maintain_pool
