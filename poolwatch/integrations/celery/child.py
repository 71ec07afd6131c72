"""What runs in the workers: Celery's own preparation of a prefork process, and what it lacks."""

from __future__ import annotations

import os
import signal
from multiprocessing.process import current_process
from typing import Any

import billiard.process
from celery import signals
from celery.concurrency.prefork import process_destructor, process_initializer
from celery.exceptions import SoftTimeLimitExceeded

from poolwatch.worker.current import worker_id
from poolwatch.worker.signals import raise_at_soft_limit

_KEPT = (signal.SIGTERM, signal.SIGUSR1)  # Celery's initializer resets those that are the pool's


def before_fork(sender: object) -> None:
    """Tell receivers that a process is about to be made, in the process that makes it."""
    signals.worker_before_create_process.send(sender=sender)


def initialize(app: Any, hostname: str) -> None:
    """Make this process one of Celery's: the initializer of the pool.

    Args:
        app: the Celery app, by inheritance, or unpickled where the process is a fresh one.
        hostname: name of the Celery worker.
    """
    _introduce()
    raise_at_soft_limit(SoftTimeLimitExceeded)
    handlers = {signum: signal.getsignal(signum) for signum in _KEPT}
    process_initializer(app, hostname)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    # Inherited is the main process's, which begins a cold shutdown. A signal to the whole group is
    # for the main process alone. (Not ignored: that would be inherited by what a task executes.)
    signal.signal(signal.SIGQUIT, lambda signum, frame: None)


def _introduce() -> None:
    """Be known to billiard as what this process is to multiprocessing.

    Celery asks billiard whether it is in the main process, for the process's name in log records
    and titles, and for its index (``%i`` in the name of a log file).
    """
    process: Any = current_process()
    process.index = worker_id() or 0
    billiard.process._current_process = process


def leave(pid: int, exitcode: int) -> None:
    """Tell receivers that this process ends in peace."""
    process_destructor(pid, exitcode)


def mark_as_fresh() -> None:
    """Have processes that are no forks of this one prepare themselves in full (as prefork does)."""
    os.environ["FORKED_BY_MULTIPROCESSING"] = "1"
