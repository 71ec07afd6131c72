"""What the workers run: functions that every peer's workers find by name, wherever they start."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_HANG_SECONDS = 60.0  # nothing here lasts longer, also when whoever waits for it has gone
_SPIN_SECONDS = 50e-6


def noop(item: object = None) -> None:
    """Do nothing."""


def identity(value: T) -> T:
    """Return the argument."""
    return value


def spin(item: object = None) -> None:
    """Keep the processor busy for 50 microseconds."""
    end = time.perf_counter() + _SPIN_SECONDS
    while time.perf_counter() < end:
        pass


def meet(folder: str, count: int) -> int:
    """Leave a file in a folder, and wait until there are so many: all of them run at once.

    Returns:
        The process id.
    """
    Path(folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()
    deadline = time.monotonic() + _HANG_SECONDS
    while len(os.listdir(folder)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"fewer than {count} workers at work")
        time.sleep(0.0005)
    return os.getpid()


def hold(file: str) -> None:
    """Wait until a file exists."""
    deadline = time.monotonic() + _HANG_SECONDS
    while not os.path.exists(file) and time.monotonic() < deadline:
        time.sleep(0.02)


def hang(file: str) -> None:
    """Write the process id into a file, and wait to be killed."""
    draft = Path(file + ".draft")
    draft.write_text(str(os.getpid()))
    draft.rename(file)
    time.sleep(_HANG_SECONDS)
