"""How a death is put into words: the postmortem record and the names of exit statuses.

This is ground: it imports nothing of poolwatch, so that errors can carry the record.
"""

from __future__ import annotations

import math
import signal
from dataclasses import asdict, dataclass, field, fields, replace
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
        pass
    first = getattr(signal, "SIGRTMIN", None)
    if first is not None and first < signum <= signal.SIGRTMAX:
        return f"SIGRTMIN+{signum - first}"
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


def mebibytes(count: int) -> str:
    """Return a number of bytes in words: ``498 MiB``."""
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True, slots=True)
class OomEvidence:
    """What the kernel says about its out-of-memory killer, in the worker's control group.

    Attributes:
        group: path of the control group, as the worker sees it.
        kills_before: value of its ``oom_kill`` counter when it was looked at before.
        kills_after: its value after the worker's death.
        seconds: between these two looks.
        limit: memory that the group and those around it may use, in bytes; None without a limit.
    """

    group: str
    kills_before: int
    kills_after: int
    seconds: float
    limit: int | None

    def __str__(self) -> str:
        return (
            f"oom_kill of control group {self.group} went from {self.kills_before} to "
            f"{self.kills_after} within {self.seconds:.1f} s"
        )


@dataclass(frozen=True, slots=True)
class Postmortem:
    """What is known about the death of a worker, and about the job that it held.

    Attributes:
        worker: name of the worker.
        pid: its process id, or None when it never started.
        exitcode: its exit code, negative for a signal; None when not known.
        phase: what it was doing: booting, idle, receiving, running, sending or leaving.
        verdict: in one sentence, why it died, as far as the evidence goes.
        when: time of the death, in seconds since the epoch.
        age: seconds that the worker lived.
        jobs_done: jobs it had finished before.
        job: qualified name of the function it ran, or None.
        job_id: number of that job, or None.
        call: the call with its arguments, shortened, or None. They are read from their pickle
            without running anybody's code, so that objects show what they were pickled as.
        tag: the caller's own mark of the job.
        correlation_id: likewise, as in billiard.
        attempt: how often that job has been started, this time included; 0 when never.
        run_time: seconds since that job began, or None when it had not begun.
        reason: what else is known to have caused the death, such as the end of the zygote.
        traceback: where all the worker's Python threads were, most recent call first: what the
            dying worker wrote itself, for signals where it can.
        stderr: what the worker last wrote to standard error, with ``capture_stderr``, or None.
        out_of_memory: the kernel's out-of-memory killer took the worker.
        oom: the evidence for that, or None.
        rss: resident sets of the worker and its children as sampled last, in bytes; None where
            nobody samples (see ``memory_limit``).
        peak_rss: greatest resident set of the worker, or of any one child that it has waited for,
            as the kernel counted it, in bytes, or None.
        memory_limit: of the job, in bytes, or None.
        core: where the core dump is, when one was written, or None.
    """

    worker: str
    pid: int | None
    exitcode: int | None
    phase: str
    verdict: str = ""
    when: float | None = None
    age: float | None = None
    jobs_done: int = 0
    job: str | None = None
    job_id: int | None = None
    call: str | None = None
    tag: object = field(default=None, repr=False, compare=False)
    correlation_id: str | None = None
    attempt: int = 0
    run_time: float | None = None
    reason: str | None = None
    traceback: str | None = None
    stderr: str | None = None
    out_of_memory: bool = False
    oom: OomEvidence | None = None
    rss: int | None = None
    peak_rss: int | None = None
    memory_limit: int | None = None
    core: str | None = None

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

    def __reduce__(self) -> tuple[Any, ...]:
        """A tag that does not pickle must not keep the error that holds this from being pickled."""
        values = [getattr(self, each.name) for each in fields(self)]
        names = [each.name for each in fields(self)]
        values[names.index("tag")] = _plain(self.tag)
        return type(self), tuple(values)

    def summary(self) -> str:
        """One line: how the worker died and why, what it did, for how long."""
        parts = [self.status_text]
        if self.verdict or self.reason:
            parts.append(self.verdict or self.reason or "")
        if self.job is not None:
            parts.append(f"job {self.job_id} {self.call or self.job}, {self._duration()}")
            parts.append(f"attempt {self.attempt}")
        parts.append(f"worker {self.worker} (pid {self.pid}) {self.phase}")
        if self.core:
            parts.append(f"core dump: {self.core}")
        return " ".join("; ".join(parts).split())

    def _duration(self) -> str:
        return "not begun" if self.run_time is None else f"after {self.run_time:.3f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values, fit for JSON."""
        values = asdict(replace(self, tag=None))
        values["tag"] = _plain(self.tag)
        return {
            **values,
            "signal": self.signal,
            "signal_name": self.signal_name,
            "status_text": self.status_text,
        }

    def __str__(self) -> str:
        text = self.summary()
        if self.oom is not None:
            text += f"\nThe evidence: {self.oom}"
        if self.traceback:
            text += "\nThe worker's last words:\n" + self.traceback.rstrip()
        if self.stderr:
            text += "\nIts last output to standard error:\n" + self.stderr.rstrip()
        return text


def _plain(tag: object) -> str | int | float | bool | None:
    """Return a tag as it is where JSON can hold it, and else its shortened repr; never raises."""
    if isinstance(tag, float) and not math.isfinite(tag):
        return repr(tag)
    if isinstance(tag, (str, int, float)) or tag is None:
        return tag
    try:
        return repr(tag)[:200]
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's __repr__ may raise anything)
        return f"<{type(tag).__qualname__}: repr raised {type(error).__qualname__}>"
