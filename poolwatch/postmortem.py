"""Collecting what is known about a death, and about where a job was."""

from __future__ import annotations

import os

from poolwatch.job import Job
from poolwatch.loss import PYTHON_CRASH_SIGNALS, Postmortem, signal_of
from poolwatch.transport import ledger
from poolwatch.worker import main as worker_main
from poolwatch.workers import WorkerProcess

_MOST = 64 * 1024  # bytes of a dump that are read; faulthandler's own bound is lower
_WORKER_FILE = worker_main.__file__
_LAST_FRAME = "in serve"  # the worker loop's own frame: the user's frames are all above it


def collect(worker: WorkerProcess, job: Job | None, now: float) -> Postmortem:
    """Return the record of a dead worker, and of the job it ran if it ran one.

    Args:
        worker: the dead worker; its row and files are still open.
        job: the job that it had begun, or None.
        now: monotonic seconds.
    """
    run_time = None
    if job is not None and worker.fields[ledger.STARTED] == job.serial:
        run_time = max(0.0, now - worker.fields[ledger.STARTED_AT] / 1e9)
    return Postmortem(
        worker=worker.name,
        pid=worker.pid,
        exitcode=worker.exitcode,
        phase=worker.phase(),
        jobs_done=worker.done,
        job=None if job is None else job.name,
        job_id=None if job is None else job.id,
        attempt=0 if job is None else job.attempts,
        run_time=run_time,
        reason=worker.reason,
        traceback=_crash_traceback(worker),
        peak_rss=worker.peak_rss,
    )


def _crash_traceback(worker: WorkerProcess) -> str | None:
    if signal_of(worker.exitcode) not in PYTHON_CRASH_SIGNALS:
        return None
    return trim(read_dump(worker.hands.crash_fd, 0)) or None


def dump_size(worker: WorkerProcess) -> int:
    """Return how much the worker has written into its stack file so far, in bytes."""
    return os.fstat(worker.hands.stack_fd).st_size


def read_dump(fd: int, position: int) -> str:
    """Return what faulthandler wrote into a file from a position on."""
    return os.pread(fd, _MOST, position).decode("utf-8", "replace")


def is_complete(dump: str) -> bool:
    """True when a dump has come as far as the worker loop's own frame."""
    end = dump.rfind(_WORKER_FILE)
    return end >= 0 and _LAST_FRAME in dump[end:]


def trim(dump: str) -> str:
    """Leave out the worker's own frames, and those of the parent below which it was forked."""
    kept: list[str] = []
    own = False
    for line in dump.splitlines():
        if not line.startswith("  File "):
            own = False
        elif _WORKER_FILE in line:
            own = True
        if not own:
            kept.append(line)
    text = "\n".join(kept).strip("\n")
    if text and "  File " not in text:
        text += "\n  in the job's function itself, which is not Python code"
    return text
