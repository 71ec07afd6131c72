"""What a pool was asked to be: every option, checked at the call."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from poolwatch import cgroup, checks
from poolwatch.checks import optional_seconds, seconds
from poolwatch.job import JobOptions
from poolwatch.policies import FailFast, GracePeriod, LostWorkerPolicy
from poolwatch.transport import settings

_LEAST_MEMORY = 2**20


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
    initializer_timeout: float | None = None
    terminate_grace: float = 0.5
    leave_timeout: float | None = None
    min_processes: int | None = None
    idle_timeout: float | None = None
    cpu_affinity: tuple[int, ...] = ()
    max_pending: int | None = None
    block: bool = True
    putlocks: bool = False
    contextvars: tuple[ContextVar[Any], ...] = ()
    relay_logs: int | None = None
    memory_limit: int | None = None
    stall_after: float | None = None
    capture_stderr: bool = False
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


def maxtasksperchild(value: object) -> int | None:
    """Return how many jobs a worker does; None for no bound.

    Raises:
        ValueError: neither None nor a whole number of at least one (as multiprocessing, where it is
            no TypeError either).
    """
    try:
        return None if value is None else checks.whole("maxtasksperchild", value)
    except TypeError as error:
        raise ValueError(str(error)) from None


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
    priority: object,
    env: object,
    cwd: object,
    memory_limit: object = None,
) -> JobOptions:
    """Return the options of one job; limits and policy have been checked.

    Raises:
        TypeError: a callback is not callable, or another argument is of the wrong kind.
        ValueError: a name or a value in ``env`` that the system does not allow.
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
        priority=checks.integer("priority", priority),
        env=None if env is None else environment(env),
        cwd=None if cwd is None else folder(cwd),
        memory_limit=memory(memory_limit),
    )


def add_settings(options: JobOptions, variables: tuple[ContextVar[Any], ...]) -> None:
    """Note what a job is to find around it, with the submitter's context variables.

    Raises:
        pickle.PicklingError: the value of a variable does not pickle; the text names it.
    """
    if variables or options.env or options.cwd is not None:
        options.settings = settings.encode(options.env, options.cwd, variables)


def environment(value: object) -> dict[str, str]:
    """Return variables of the environment for one job.

    Raises:
        TypeError: no mapping of strings to strings.
        ValueError: a name that is empty or holds ``=``, or a NUL anywhere.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"env must be a mapping of names to strings, not {value!r}")
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"env must map names to strings, not {key!r} to {text!r}")
        if not key or "=" in key or "\0" in key + text:
            raise ValueError(f"env must hold names and values that the system allows, not {key!r}")
    return dict(value)


def memory(value: object) -> int | None:
    """Return a memory limit in bytes; None for no limit.

    Raises:
        TypeError: not a whole number.
        ValueError: less than 1 MiB, in which no worker fits: it was probably meant in other units.
    """
    if value is None:
        return None
    limit = checks.whole("memory_limit", value, unit="bytes")
    if limit < _LEAST_MEMORY:
        raise ValueError(f"memory_limit is in bytes, and must be at least 1 MiB: {limit}")
    return limit


def folder(value: object) -> str:
    """Return a path as a string.

    Raises:
        TypeError: no path.
        ValueError: it holds a NUL.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"cwd must be a path, not {value!r}")
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"cwd must be a path of characters, not {value!r}")
    if not path or "\0" in path:
        raise ValueError(f"cwd must be a path that the system allows, not {path!r}")
    return path


def processors(value: object) -> tuple[int, ...]:
    """Return the processors that workers are pinned to in turn; none for False.

    Raises:
        TypeError: neither a bool nor a sequence of whole numbers.
        ValueError: empty, or a processor that this process may not use.
    """
    if value is None or isinstance(value, bool):
        return tuple(sorted(_affinity())) if value else ()
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise TypeError(f"cpu_affinity must be True, False or processors' numbers, not {value!r}")
    numbers = tuple(checks.whole("cpu_affinity", number, 0) for number in value)
    unusable = [number for number in numbers if number not in _affinity()]
    if not numbers or unusable:
        raise ValueError(f"cpu_affinity must name processors that may be used, not {unusable}")
    return numbers


def context_variables(value: object) -> tuple[ContextVar[Any], ...]:
    """Return the context variables whose values travel with each job.

    Raises:
        TypeError: not an iterable of ``contextvars.ContextVar``.
    """
    if not isinstance(value, Iterable):
        raise TypeError(f"contextvars must be an iterable of ContextVar, not {value!r}")
    variables = tuple(value)
    for variable in variables:
        if not isinstance(variable, ContextVar):
            raise TypeError(f"contextvars must hold ContextVar objects, not {variable!r}")
    return variables


def log_level(value: object) -> int | None:
    """Return the level from which workers' log records are relayed; None for False.

    Raises:
        TypeError: neither a bool nor a level.
    """
    if value is None or value is False:
        return None
    if value is True:
        return 0
    if not hasattr(value, "__index__"):
        wanted = "True, False or a level as a number, such as logging.INFO"
        raise TypeError(f"relay_logs must be {wanted}, not {value!r}")
    return checks.whole("relay_logs", value, 0)


def usage_memory(value: object) -> bool:
    """Return whether the peak of memory is measured for every job.

    Raises:
        ValueError: neither None nor ``"memory"``.
    """
    if value not in (None, "memory"):
        raise ValueError(f'usage must be None or "memory", not {value!r}')
    return value is not None


def elasticity(
    processes: int, min_processes: object, idle_timeout: object
) -> tuple[int | None, float | None]:
    """Return how few workers may be left when there is little to do, and after how long.

    None for both: the number of workers is fixed. Of two, the one that was not given is 1 worker,
    or 60 seconds.

    Raises:
        TypeError: not a whole number, or no number of seconds.
        ValueError: more than ``processes``, or negative.
    """
    if min_processes is None and idle_timeout is None:
        return None, None
    least = 1 if min_processes is None else checks.whole("min_processes", min_processes, 0)
    if least > processes:
        raise ValueError(f"min_processes ({least}) must not be more than processes ({processes})")
    seconds_idle = 60.0 if idle_timeout is None else seconds("idle_timeout", idle_timeout)
    return least, seconds_idle


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


def job_limits(
    options: PoolOptions, soft_timeout: object, timeout: object
) -> tuple[float | None, float | None]:
    """Return both limits of a job, with the pool's where it names none, as :func:`limits`."""
    soft, hard = limits(soft_timeout, timeout)
    if hard is None:
        hard = options.timeout
    if soft is None and (options.soft_timeout or 0) <= (hard or float("inf")):
        soft = options.soft_timeout
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
        TypeError: the function is not callable, or a coroutine function; args no iterable, kwds no
            mapping of names.
    """
    checks.function("func", func)
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


def name_of(func: Callable[..., Any]) -> str:
    """Return the name by which a function is known in errors and events.

    A ``functools.partial`` has that of its function, an object that of its class.
    """
    name = getattr(func, "__qualname__", None)
    if isinstance(name, str):
        return name
    if isinstance(func, functools.partial):
        return name_of(func.func)
    return type(func).__qualname__


def usable_cpus() -> int:
    """Return how many processors this process may use: its affinity, and its cgroups' quota.

    A quota of part of a processor more counts as one.
    """
    count = len(_affinity())
    quota = cgroup.cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _affinity() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:
        return set(range(os.cpu_count() or 1))
