"""Processes with a deadline, of which nothing is left afterwards.

Pools start workers, helpers, servers and trackers, some in sessions of their own, and a pool that
hangs or is abandoned leaves them behind. So the caller becomes what the kernel calls a subreaper:
whatever loses its parent below it becomes its own child. All of its descendants are then what it
has started, and only that, and it can end them one by one, by process id.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]

_PR_SET_CHILD_SUBREAPER = 36
_TRACKER_SECONDS = 3.0  # for trackers of resources to remove what the rest has left
_SWEEP_SECONDS = 15.0
_TAIL = 2_000
_CHILDREN = resource.RUSAGE_CHILDREN


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process has ended.

    Attributes:
        output: what it has written to stdout.
        errors: the end of what it and its workers have written to stderr.
        code: its exit code, or None when its time was up.
        others: what part of all processors was used by others meanwhile.
    """

    output: str
    errors: str
    code: int | None
    others: float


def run(command: list[str], seconds: float) -> Ended:
    """Run a command in a session and a temporary folder of its own, no longer than some seconds."""
    _adopt_orphans()
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as output,  # files: a pipe would stay open while any worker lives
        tempfile.TemporaryFile() as errors,
    ):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        before = _Used.now()
        try:
            code = _wait(process, seconds)
        finally:
            process.kill()
            process.wait()
            end_descendants()
        others = before.by_others_until(_Used.now())
        return Ended(_text(output.fileno()), _text(errors.fileno())[-_TAIL:], code, others)


@dataclass(frozen=True, slots=True)
class _Used:
    """Seconds of processors: used by all, used by this process and its descendants, to be had."""

    by_all: float
    own: float
    available: float

    @classmethod
    def now(cls) -> _Used:
        """Return what has been used until now; of descendants, what the ended ones have used."""
        own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(_CHILDREN)
        spent = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
        times = psutil.cpu_times()
        idle = times.idle + times.iowait
        total = sum(times) - times.guest - times.guest_nice  # these are in user and nice already
        return cls(total - idle, spent, total)

    def by_others_until(self, later: _Used) -> float:
        """Return what part of all processors others have used since."""
        others = (later.by_all - self.by_all) - (later.own - self.own)
        return max(0.0, others) / max(0.01, later.available - self.available)


def end_on_sigterm() -> None:
    """Leave in order when told to, so that no child is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _adopt_orphans() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait without waking up, for the measurement has the processors; None when time is up."""
    descriptor = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    return process.wait() if ended else None


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")


def end_descendants() -> None:
    """Kill what is left below this process, trackers of resources last."""
    begun = time.monotonic()
    while left := psutil.Process().children(recursive=True):
        patient = time.monotonic() - begun < _TRACKER_SECONDS
        doomed = [process for process in left if not (patient and _is_tracker(process))]
        for process in doomed:
            _kill(process)
        psutil.wait_procs(doomed or left, 0.5)
        if time.monotonic() - begun > _SWEEP_SECONDS:
            raise RuntimeError(f"processes that cannot be killed: {left}")


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass  # it has ended in the meantime
