"""How a forked or spawned process becomes a worker, to itself and to multiprocessing.

Jobs use multiprocessing themselves (queues, child processes, pools of their own). What that needs
of a process is set up by ``BaseProcess._bootstrap``, so the worker runs inside one, as the workers
of every other pool do.
"""

from __future__ import annotations

import atexit
import multiprocessing.process
import os
from typing import NoReturn

from poolwatch.transport import kernel
from poolwatch.worker.main import Worker, WorkerEnds, WorkerSetup


class _WorkerProcess(multiprocessing.process.BaseProcess):
    _start_method = None  # jobs may choose any

    def __init__(self, setup: WorkerSetup, ends: WorkerEnds, name: str) -> None:
        super().__init__(name=name, daemon=False)  # jobs may have children
        self._worker_setup = setup
        self._worker_ends = ends

    def run(self) -> None:
        Worker(self._worker_setup, self._worker_ends).serve()


def become_worker(setup: WorkerSetup, ends: WorkerEnds, name: str, parent_pid: int) -> NoReturn:
    """Turn this process into a worker; never returns.

    Args:
        setup: what all workers of the pool have in common.
        ends: this worker's descriptors.
        name: the worker's name, for multiprocessing and process titles.
        parent_pid: the process that must be our parent; when it is not, it died meanwhile.
    """
    code = 1
    try:
        kernel.set_death_signal()
        if os.getppid() != parent_pid:
            os._exit(1)
        atexit._clear()
        process = _WorkerProcess(setup, ends, name)
        code = process._bootstrap(parent_sentinel=None)  # type: ignore[attr-defined]
    finally:
        atexit._run_exitfuncs()
        os._exit(code)
