"""What ``celery inspect stats`` shows of the pool."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

from poolwatch import exceptions
from poolwatch._version import __version__
from poolwatch.integrations.celery.errors import cause_of
from poolwatch.pool import Pool

_LAST = 5  # losses that are told in full


class Account:
    """Counts the tasks that were lost, by cause."""

    def __init__(self) -> None:
        self._losses: Counter[str] = Counter()
        self._last: deque[dict[str, Any]] = deque(maxlen=_LAST)
        self._terminated = 0
        self.submitted = 0

    def add(self, name: str, error: BaseException) -> None:
        """A task has failed for a reason that is the pool's affair, or for one of its own.

        Args:
            name: the task's name and id.
            error: the pool's own error, or the task's.
        """
        if isinstance(error, exceptions.Terminated):
            self._terminated += 1
        cause = cause_of(error)
        if cause is not None:
            self._losses[cause] += 1
            self._last.append(
                {"time": time.time(), "task": name, "cause": cause, "reason": _line(error)}
            )

    def info(self, pool: Pool) -> dict[str, Any]:
        """Return the pool's own part of the statistics, fit for JSON."""
        workers = [
            {
                "name": worker.name,
                "pid": worker.pid,
                "phase": worker.phase,
                "task": worker.job,
                "seconds": None if worker.job_seconds is None else round(worker.job_seconds, 3),
                "done": worker.jobs_done,
            }
            for worker in pool.workers
        ]
        info: dict[str, Any] = {
            "version": __version__,
            "losses": dict(self._losses),
            "last-losses": list(self._last),
            "terminated": self._terminated,
            "workers": workers,
        }
        for name in ("stats", "health"):  # where the pool has them
            tell = getattr(pool, name, None)
            if callable(tell):
                info[name] = _plain(tell())
        return info

    def writes(self, pool: Pool) -> dict[str, Any]:
        """Return how the tasks are spread over the processes, in the form that prefork has."""
        workers = pool.workers
        counts = [worker.jobs_done for worker in workers]
        total = sum(counts)

        def share(count: float) -> str:
            return f"{count / total if total else 0:.2f}"

        return {
            "total": self.submitted,
            "avg": share(total / len(counts) if counts else 0),
            "all": ", ".join(map(share, counts)),
            "raw": ", ".join(map(str, counts)),
            "strategy": "fair",
            "inqueues": {
                "total": len(workers),
                "active": sum(worker.job is not None for worker in workers),
            },
        }


def _line(error: BaseException) -> str:
    if isinstance(error, exceptions.WorkerLostError) and error.postmortem is not None:
        return error.postmortem.summary()
    return str(error).partition("\n")[0]


def _plain(value: Any) -> Any:
    """Return a record as values that are fit for JSON."""
    if callable(getattr(value, "as_dict", None)):
        value = value.as_dict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        if hasattr(value, "_asdict"):
            return _plain(value._asdict())
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return {name: _plain(getattr(value, name)) for name in fields}
    return str(value)
