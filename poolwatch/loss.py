"""How a death is put into words: the postmortem record and the names of exit statuses.

This is ground: it imports nothing of poolwatch, so that errors can carry the record.
"""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from typing import Any

PYTHON_CRASH_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
)
"""Signals upon which faulthandler writes a Python traceback before the process dies."""


def signal_of(exitcode: int | None) -> int | None:
    """Return the number of the signal behind a (negative) exit code, or None."""
    return -exitcode if exitcode is not None and exitcode < 0 else None


def signal_name(signum: int) -> str:
    """Return ``SIGKILL`` for 9 and so on; real-time and unknown signals get a number."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"SIG{signum}"


def human_status(status: int | None) -> str:
    """Put an exit code into words: ``signal 6 (SIGABRT)`` or ``exitcode 3`` (as in billiard).

    Args:
        status: exit code of a process, negative for a signal; None when it is not known.
    """
    if status is None:
        return "exit status unknown"
    if status < 0:
        return f"signal {-status} ({signal_name(-status)})"
    return f"exitcode {status}"


@dataclass(frozen=True, slots=True)
class Postmortem:
    """What is known about the death of a worker, and about the job that it held.

    Attributes:
        worker: name of the worker.
        pid: its process id, or None when it never started.
        exitcode: its exit code, negative for a signal; None when not known.
        phase: what it was doing: booting, idle, receiving, running, sending or leaving.
        jobs_done: jobs it had finished before.
        job: qualified name of the function it ran, or None.
        job_id: number of that job, or None.
        attempt: how often that job has been started, this time included; 0 when never.
        run_time: seconds since that job began, or None when it had not begun.
        reason: what else is known to have caused the death, such as the end of the zygote.
        traceback: Python traceback that the dying worker wrote, for signals where there is one.
        out_of_memory: the kernel's out-of-memory killer took the worker.
        peak_rss: greatest resident set of the worker as the kernel counted it, in bytes, or None.
    """

    worker: str
    pid: int | None
    exitcode: int | None
    phase: str
    jobs_done: int = 0
    job: str | None = None
    job_id: int | None = None
    attempt: int = 0
    run_time: float | None = None
    reason: str | None = None
    traceback: str | None = None
    out_of_memory: bool = False
    peak_rss: int | None = None

    @property
    def signal(self) -> int | None:
        """Number of the signal that killed the worker, or None."""
        return signal_of(self.exitcode)

    @property
    def signal_name(self) -> str | None:
        """Name of the signal that killed the worker, such as ``SIGABRT``, or None."""
        return None if self.signal is None else signal_name(self.signal)

    @property
    def status_text(self) -> str:
        """The exit code in words, see :func:`human_status`."""
        return human_status(self.exitcode)

    def summary(self) -> str:
        """One line: how the worker died, what it did, for how long."""
        parts = [self.status_text]
        if self.reason:
            parts.append(self.reason)
        if self.job is not None:
            parts.append(f"job {self.job_id} {self.job}, {self._duration()}")
            parts.append(f"attempt {self.attempt}")
        parts.append(f"worker {self.worker} (pid {self.pid}) {self.phase}")
        return "; ".join(parts)

    def _duration(self) -> str:
        return "not begun" if self.run_time is None else f"after {self.run_time:.3f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values, fit for JSON."""
        return {
            **asdict(self),
            "signal": self.signal,
            "signal_name": self.signal_name,
            "status_text": self.status_text,
        }

    def __str__(self) -> str:
        text = self.summary()
        if self.traceback:
            text += "\nThe worker's last words:\n" + self.traceback.rstrip()
        return text
