"""What a pool was asked to be: every option, checked at the call."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poolwatch import checks
from poolwatch.checks import optional_seconds, seconds
from poolwatch.job import JobOptions
from poolwatch.policies import FailFast, GracePeriod, LostWorkerPolicy


@dataclass(slots=True)
class PoolOptions:
    """Options of a pool, checked; see ``Pool`` for their meaning."""

    processes: int
    start_method: str
    processors: int = field(default_factory=lambda: usable_cpus())
    name: str = "poolwatch"
    maxtasksperchild: int | None = None
    timeout: float | None = None
    soft_timeout: float | None = None
    policy: LostWorkerPolicy = None  # type: ignore[assignment]
    max_restarts: int | None = None
    max_restart_freq: float = 1.0
    max_boot_failures: int = 10
    boot_timeout: float = 30.0
    terminate_grace: float = 0.5
    on_process_up: Callable[..., object] | None = None
    on_process_down: Callable[..., object] | None = None
    on_timeout_set: Callable[..., object] | None = None
    on_timeout_cancel: Callable[..., object] | None = None


def processes(value: object) -> int:
    """Return the number of workers; None stands for the usable processors.

    Raises:
        TypeError: not a whole number.
        ValueError: not at least one.
    """
    return usable_cpus() if value is None else checks.whole("processes", value)


def name(value: object) -> str:
    """Return a pool's name.

    Raises:
        TypeError: not a string, or empty.
    """
    if not isinstance(value, str) or not value:
        raise TypeError(f"name must be a non-empty string, not {value!r}")
    return value


def initargs(value: object) -> tuple[Any, ...]:
    """Return the arguments of an initializer as a tuple.

    Raises:
        TypeError: not iterable, or a string.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"initargs must be a tuple of arguments, not {value!r}")
    return tuple(value)


def job_options(
    callback: object,
    error_callback: object,
    accept_callback: object,
    timeout_callback: object,
    soft_timeout: float | None,
    timeout: float | None,
    policy: LostWorkerPolicy | None,
    tag: object,
    correlation_id: str | None,
) -> JobOptions:
    """Return the options of one job; limits and policy have been checked.

    Raises:
        TypeError: a callback is not callable.
    """
    check = checks.callable_or_none
    return JobOptions(
        callback=check("callback", callback),
        error_callback=check("error_callback", error_callback),
        accept_callback=check("accept_callback", accept_callback),
        timeout_callback=check("timeout_callback", timeout_callback),
        soft_timeout=soft_timeout,
        timeout=timeout,
        policy=policy,
        tag=tag,
        correlation_id=correlation_id,
    )


def limits(soft_timeout: object, timeout: object) -> tuple[float | None, float | None]:
    """Return both limits of a job.

    Raises:
        TypeError: not a number of seconds.
        ValueError: not positive, or the soft limit would come after the hard one.
    """
    soft = optional_seconds("soft_timeout", soft_timeout)
    hard = optional_seconds("timeout", timeout)
    if soft is not None and hard is not None and soft > hard:
        raise ValueError(f"soft_timeout ({soft:g} s) must not be longer than timeout ({hard:g} s)")
    return soft, hard


def policy(lost_worker_policy: object, lost_worker_timeout: object) -> LostWorkerPolicy | None:
    """Return the policy that two arguments stand for, or None when neither is given.

    Raises:
        TypeError: no policy, or no number of seconds.
        ValueError: both given, or negative seconds.
    """
    if lost_worker_timeout is not None:
        grace = seconds("lost_worker_timeout", lost_worker_timeout, positive=False)
        if lost_worker_policy is not None:
            raise ValueError("give lost_worker_policy or lost_worker_timeout, not both")
        return GracePeriod(grace)
    if lost_worker_policy is None or isinstance(lost_worker_policy, LostWorkerPolicy):
        return lost_worker_policy
    raise TypeError(f"lost_worker_policy must be a LostWorkerPolicy, not {lost_worker_policy!r}")


def pool_policy(lost_worker_policy: object, lost_worker_timeout: object) -> LostWorkerPolicy:
    """Return a pool's policy; see :func:`policy`."""
    return policy(lost_worker_policy, lost_worker_timeout) or FailFast()


def call(func: object, args: object, kwds: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments as a tuple and a dict.

    Raises:
        TypeError: the function is not callable, args no iterable, kwds no mapping of names.
    """
    if not callable(func):
        raise TypeError(f"func must be callable, not {func!r}")
    if type(args) is not tuple:
        if not isinstance(args, Iterable) or isinstance(args, (str, bytes)):
            raise TypeError(f"args must be a tuple of arguments, not {args!r}")
        args = tuple(args)
    if type(kwds) is not dict:
        if not isinstance(kwds, Mapping):
            raise TypeError(f"kwds must be a mapping of names to arguments, not {kwds!r}")
        kwds = dict(kwds)
    if kwds:
        for name in kwds:
            if not isinstance(name, str):
                raise TypeError(f"kwds must have names as keys, not {name!r}")
    return args, kwds


def usable_cpus() -> int:
    """Return how many processors this process may use: its affinity, and its cgroup's quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _cgroup_quota() -> float | None:
    """Return the processors that the cgroup grants, or None without a bound."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        limit_us = int((base / "cpu.cfs_quota_us").read_text())
        period_us = int((base / "cpu.cfs_period_us").read_text())
        return None if limit_us <= 0 else limit_us / period_us
    except (OSError, ValueError):
        return None
