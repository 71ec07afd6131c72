"""Start methods: which one a ``context=`` means, and the launcher that plays it."""

from __future__ import annotations

from multiprocessing.context import BaseContext

from poolwatch.launch.forking import ForkLauncher
from poolwatch.launch.guarded import GuardedLauncher
from poolwatch.launch.launcher import Launcher
from poolwatch.transport import kernel
from poolwatch.worker.main import WorkerSetup

METHODS = ("zygote", "fork", "spawn", "forkserver")


def start_method(context: str | BaseContext | None) -> str:
    """Return the name of the start method that ``context`` stands for.

    Args:
        context: a name, a multiprocessing context, or None for the default: ``zygote`` on Linux,
            ``spawn`` elsewhere.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a context.
    """
    if context is None:
        return "zygote" if kernel.LINUX else "spawn"
    if isinstance(context, BaseContext):
        # The default context says "fork" for itself where it stands for the default.
        name = context.get_start_method()
    elif isinstance(context, str):
        name = context
    else:
        kind = type(context).__name__
        raise TypeError(f"context must be a start method or a multiprocessing context, not {kind}")
    if name not in METHODS:
        raise ValueError(f"context must be one of {', '.join(METHODS)}, not {name!r}")
    return name


def make_launcher(method: str, setup: WorkerSetup, name: str) -> Launcher:
    """Return the launcher for a start method.

    Raises:
        OSError: no process or descriptor to be had.
        Exception: with ``spawn`` and ``forkserver``, what pickling the initializer raised.
    """
    if method == "fork":
        return ForkLauncher(setup)
    return GuardedLauncher(method, setup, name)
