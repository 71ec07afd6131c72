"""Collecting what is known about a death, and about the job that the worker was at.

A dead worker is examined once: its exit status, its row, what it wrote before it died, what the
kernel counted. For each job that it held the same record is then told with that job's particulars.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from poolwatch.evidence import core_dumps
from poolwatch.evidence.call_text import describe_call
from poolwatch.evidence.oom import OomWatch
from poolwatch.evidence.stacks import read_dump, trim
from poolwatch.evidence.verdicts import verdict
from poolwatch.job import Job
from poolwatch.loss import PYTHON_CRASH_SIGNALS, Postmortem, signal_of
from poolwatch.transport import ledger
from poolwatch.workers import WorkerProcess

_SIGKILL = -int(signal.SIGKILL)


class Examiner:
    """Writes the records.

    Args:
        oom: the kernel's counters.
        limit_of: returns a job's memory limit in bytes, or None.
    """

    def __init__(self, oom: OomWatch, limit_of: Callable[[Job], int | None]) -> None:
        self._oom = oom
        self._limit_of = limit_of

    def examine(self, worker: WorkerProcess, now: float) -> Postmortem:
        """Return the record of a dead worker; its row and files are still open.

        Args:
            worker: the dead worker.
            now: monotonic seconds.
        """
        if worker.stderr is not None:
            worker.stderr.read()
        unexplained = worker.exitcode == _SIGKILL and worker.reason is None
        most = worker.rss or worker.peak_rss
        oom = self._oom.evidence(worker.membership, most) if unexplained else None
        signum = signal_of(worker.exitcode)
        record = Postmortem(
            worker=worker.name,
            pid=worker.pid,
            exitcode=worker.exitcode,
            phase=worker.phase(),
            when=time.time(),
            age=max(0.0, now - worker.born),
            jobs_done=worker.done,
            reason=worker.reason,
            traceback=_last_stacks(worker),
            stderr=None if worker.stderr is None else worker.stderr.tail(),
            out_of_memory=oom is not None,
            oom=oom,
            rss=worker.rss,
            peak_rss=worker.peak_rss or None,
            core=core_dumps.locate(worker.pid, signum)
            if worker.core_dumped and worker.pid and signum
            else None,
        )
        memory = self._oom.limit(worker.membership) or _physical_memory()
        could_tell = self._oom.can_tell(worker.membership)
        return replace(record, verdict=verdict(record, could_tell, memory))

    def of_job(self, record: Postmortem, worker: WorkerProcess, job: Job, now: float) -> Postmortem:
        """Return a worker's record with the particulars of a job that it held.

        Args:
            record: of the worker.
            worker: the worker; its row is still open.
            job: the job.
            now: monotonic seconds.
        """
        fields, options = worker.fields, job.options
        run_time = item = None
        if fields[ledger.STARTED] == job.serial:
            run_time = max(0.0, now - fields[ledger.STARTED_AT] / 1e9)
            if job.is_chunk and fields[ledger.ITEM] != ledger.NO_ITEM:
                item = fields[ledger.ITEM]
        call = None
        if item is not None or not job.is_chunk:
            call = describe_call(job.name, bool(job.head), job.payload, item)
        return replace(
            record,
            job=job.name,
            job_id=job.id,
            call=call,
            tag=options.tag,
            correlation_id=options.correlation_id,
            attempt=job.attempts,
            run_time=run_time,
            memory_limit=self._limit_of(job),
        )


def _last_stacks(worker: WorkerProcess) -> str | None:
    """Return where the worker was when it died, as far as it said so."""
    if worker.struck is not None:
        dump = read_dump(worker.hands.stack_fd, worker.struck.position)
        return trim(dump) or None
    if signal_of(worker.exitcode) not in PYTHON_CRASH_SIGNALS:
        return None
    return trim(read_dump(worker.hands.crash_fd, 0)) or None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
