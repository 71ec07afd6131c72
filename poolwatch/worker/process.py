"""How a forked or spawned process becomes a worker, to itself and to multiprocessing.

Jobs use multiprocessing themselves (queues, child processes, pools of their own). What that needs
of a process is set up by ``BaseProcess._bootstrap``, so the worker runs inside one, as the workers
of every other pool do.
"""

from __future__ import annotations

import atexit
import multiprocessing.process
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing import util
from typing import Any, NoReturn

from poolwatch.transport import kernel
from poolwatch.worker.main import Worker, WorkerEnds, WorkerSetup


class _Bootstrapped(multiprocessing.process.BaseProcess):
    """Runs a function inside ``BaseProcess._bootstrap``."""

    _start_method = None  # jobs may choose any

    def __init__(self, name: str, serve: Callable[[], NoReturn]) -> None:
        super().__init__(name=name, daemon=False)  # jobs may have children
        self._serve = serve

    def run(self) -> None:
        self._serve()

    @staticmethod
    def _after_fork() -> None:
        """Not for the zygote: what others have registered is called in each worker."""


def run_bootstrapped(name: str, serve: Callable[[], NoReturn]) -> NoReturn:
    """Run a process that is, or may fork, a worker; never returns.

    What ``_bootstrap`` does is done once in the zygote, outside of its loop, and not in each worker
    after its fork: whatever a worker writes to after the fork is memory that it no longer shares.
    Its end, which waits for the job's own child processes, is reached by workers only.

    Args:
        name: of the process, to multiprocessing.
        serve: what the process does; it ends with ``SystemExit``.
    """
    code = 1
    try:
        atexit._clear()
        code = _Bootstrapped(name, serve)._bootstrap(parent_sentinel=None)  # type: ignore[attr-defined]
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def _identify(name: str) -> None:
    """Take the worker's name, and a number of its own as multiprocessing's identity.

    The number is the one in its name: workers of a pool count 1, 2, 3, ..., and a replacement has a
    new one. Programs choose devices, seeds and lines of the screen by it.
    """
    process: Any = multiprocessing.process.current_process()
    process.name = name
    process._identity = (*process._identity[:-1], int(name.rpartition("-")[2]))


def serve_as_worker(setup: WorkerSetup, ends: WorkerEnds, name: str, parent_pid: int) -> NoReturn:
    """Be a worker, inside :func:`run_bootstrapped`.

    Args:
        setup: what all workers of the pool have in common.
        ends: this worker's descriptors.
        name: the worker's name, for multiprocessing and process titles.
        parent_pid: the process that must be our parent; when it is not, it died meanwhile.

    Raises:
        SystemExit: when the worker's time has come.
    """
    kernel.set_death_signal()
    if os.getppid() != parent_pid:
        os._exit(1)
    if ends.stderr_fd >= 0:
        if ends.stderr_fd == 2:
            os.set_inheritable(2, True)
        else:
            os.dup2(ends.stderr_fd, 2)
            os.close(ends.stderr_fd)
        # In the parent it may have been something else that would be written to directly.
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    _identify(name)
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]
    if util._afterfork_registry or util._finalizer_registry:  # type: ignore[attr-defined]
        multiprocessing.process.BaseProcess._after_fork()  # type: ignore[attr-defined]
    Worker(setup, ends, name).serve()
    raise SystemExit(0)
