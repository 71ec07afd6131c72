"""What the pool is made with: Celery's settings, and ``worker_pool_options`` for the rest.

::

    app.conf.worker_pool_options = {"lost_worker_policy": RetryLost(2), "terminate_grace": 10}

They are the keyword arguments of ``poolwatch.Pool``. One that does not exist, or that has a setting
of Celery's, is refused when the worker starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from celery.exceptions import ImproperlyConfigured

from poolwatch.pool import Pool

SETTING = "worker_pool_options"

_CELERYS = {  # keyword of Pool -> how it is said to Celery
    "processes": "worker_concurrency",
    "initializer": "the signal worker_process_init",
    "initargs": "the signal worker_process_init",
    "on_process_exit": "the signal worker_process_shutdown",
    "maxtasksperchild": "worker_max_tasks_per_child",
    "max_memory_per_child": "worker_max_memory_per_child",
    "timeout": "task_time_limit",
    "soft_timeout": "task_soft_time_limit",
    "putlocks": "worker_pool_putlocks",
    "max_pending": "worker_prefetch_multiplier",
    "block": "worker_pool_putlocks",
}
_MEANINGLESS = {"synack", "threads", "semaphore", "allow_restart", "enable_timeouts"}
_BOOT_SECONDS = 30.0  # Pool's own default; Celery's is 4, after which it kills


def own_options(app: Any) -> dict[str, Any]:
    """Return what ``worker_pool_options`` says, as keyword arguments of ``Pool``.

    Raises:
        ImproperlyConfigured: no mapping, or a name that is not to be given there.
    """
    options = None if app is None else app.conf.get(SETTING)
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ImproperlyConfigured(f"{SETTING} must be a dict of options, not {options!r}")
    known = set(inspect.signature(Pool).parameters) - _MEANINGLESS - set(_CELERYS)
    for name in options:
        if name in _CELERYS:
            raise ImproperlyConfigured(f"{SETTING}: {name!r} is said by {_CELERYS[name]}")
        if name not in known:
            names = ", ".join(sorted(known))
            raise ImproperlyConfigured(f"{SETTING}: there is no {name!r}; there are {names}")
    return dict(options)


def pool_options(
    options: Mapping[str, Any],
    app: Any,
    putlocks: bool,
    forking_enable: bool,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the keyword arguments of ``Pool`` for what a Celery worker passes to its pool.

    ``lost_worker_timeout`` (``worker_lost_wait``) is how long billiard waits for a result that may
    still come from a dead process. Here nothing can come any more, so nothing waits.
    ``max_restarts`` is Celery's constant, past which billiard gives up; here deaths at work never
    break the pool.

    Args:
        options: as the worker passes them.
        app: the Celery app, or None.
        putlocks: whether a submission waits until a process is free (the blocking loop only).
        forking_enable: whether the worker may fork (``worker_pool_start_method``).
        own: what ``worker_pool_options`` says; it goes first.
    """
    alive = None if app is None else app.conf.get("worker_proc_alive_timeout")
    chosen: dict[str, Any] = {
        "maxtasksperchild": options.get("maxtasksperchild") or None,
        "max_memory_per_child": options.get("max_memory_per_child") or None,
        "timeout": options.get("timeout") or None,
        "soft_timeout": options.get("soft_timeout") or None,
        "putlocks": bool(putlocks and options.get("threads", True)),
        "context": None if forking_enable else "spawn",
        "boot_timeout": max(_BOOT_SECONDS, float(alive or 0)),
    }
    chosen["soft_timeout"] = sensible_soft(chosen["soft_timeout"], chosen["timeout"])
    return {**chosen, **own}


def sensible_soft(soft: float | None, hard: float | None) -> float | None:
    """Return a soft limit; None where there is none, or where it would come after the hard one."""
    if not soft or (hard and soft > hard):
        return None
    return soft


def starts_fresh(context: Any) -> bool:
    """Return True when workers are no forks of the present program.

    What is no context at all is for ``Pool`` to refuse.
    """
    start_method = getattr(context, "get_start_method", lambda: context)
    return start_method() in ("spawn", "forkserver")
