"""What travels between the demo's parts: what has happened, and what a worker is doing."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Ended:
    """A page's job has ended.

    Attributes:
        path: The page.
        result: What the job returned; None if it failed.
        error: How it failed; None if it did not.
    """

    path: str
    result: object
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """The pool has started a worker, first or replacement."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Somebody wants the demo to stop.

    Attributes:
        signum: The signal that said so.
    """

    signum: int


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One living worker as the view shows it; None for what its pool does not tell.

    Attributes:
        pid: Its process.
        phase: What it is doing, in the pool's words.
        page: The page it is working on.
        job_seconds: For how long.
        age: Seconds since it was started.
    """

    pid: int
    phase: str | None = None
    page: str | None = None
    job_seconds: float | None = None
    age: float | None = None


Event: TypeAlias = "Ended | WorkerStarted | Interrupted"
Events: TypeAlias = "queue.SimpleQueue[Event]"
