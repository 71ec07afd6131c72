"""The keyword arguments of ``Pool``, for the faces that pass them on: types only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, TypedDict

from poolwatch.policies import LostWorkerPolicy


class PoolKeywords(TypedDict, total=False):
    """What ``Pool`` takes by keyword beyond multiprocessing's arguments; see there."""

    timeout: float | None
    soft_timeout: float | None
    lost_worker_policy: LostWorkerPolicy | None
    lost_worker_timeout: float | None
    max_restarts: int | None
    max_restart_freq: float
    max_boot_failures: int
    boot_timeout: float
    initializer_timeout: float | None
    terminate_grace: float
    leave_timeout: float | None
    on_process_up: Callable[[Any], object] | None
    on_process_down: Callable[[Any], object] | None
    on_process_exit: Callable[[int, int], object] | None
    on_timeout_set: Callable[..., object] | None
    on_timeout_cancel: Callable[..., object] | None
    min_processes: int | None
    idle_timeout: float | None
    cpu_affinity: bool | Sequence[int]
    max_pending: int | None
    block: bool
    putlocks: bool
    max_memory_per_child: int | None
    contextvars: Iterable[ContextVar[Any]]
    relay_logs: bool | int
    usage: str | None
    memory_limit: int | None
    stall_after: float | None
    capture_stderr: bool
    synack: bool
    threads: bool
    semaphore: object
    allow_restart: bool
    enable_timeouts: bool
    name: str
