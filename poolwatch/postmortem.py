"""Collecting what is known about a death, and about the job that the worker was at.

A dead worker is examined once: its exit status, its row, what it wrote before it died, what the
kernel counted. For each job that it held the same record is then told with that job's particulars.

This is done in the supervisor's thread, in the middle of a death. Evidence that cannot be had, for
whatever reason, is left out; it must not cost the pool its life.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from poolwatch.evidence import core_dumps
from poolwatch.evidence.call_text import describe_call
from poolwatch.evidence.oom import OomWatch
from poolwatch.evidence.stacks import read_dump, trim
from poolwatch.evidence.verdicts import c_hint, verdict
from poolwatch.job import Job
from poolwatch.loss import PYTHON_CRASH_SIGNALS, OomEvidence, Postmortem, signal_of
from poolwatch.transport import ledger
from poolwatch.workers import WorkerProcess

logger = logging.getLogger("poolwatch")
T = TypeVar("T")

_SIGKILL = -int(signal.SIGKILL)
_FATAL = "Fatal Python error"


def _had(evidence: Callable[[], T], otherwise: T) -> T:
    """Return a piece of evidence, or something else where it cannot be had."""
    try:
        return evidence()
    except Exception:
        logger.debug("a piece of evidence could not be had", exc_info=True)
        return otherwise


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
        stderr = _had(lambda: _read_stderr(worker), None)
        oom = _had(lambda: self._oom_evidence(worker), None)
        record = Postmortem(
            worker=worker.name,
            pid=worker.pid,
            exitcode=worker.exitcode,
            phase=_had(worker.phase, "unknown"),
            when=time.time(),
            age=max(0.0, now - worker.born),
            jobs_done=worker.done,
            reason=worker.reason,
            traceback=_had(lambda: _last_stacks(worker, stderr), None),
            stderr=stderr,
            out_of_memory=oom is not None,
            oom=oom,
            rss=worker.rss,
            peak_rss=worker.peak_rss or None,
            core=_had(lambda: _core_dump(worker), None),
        )
        return replace(record, verdict=_had(lambda: self._verdict(record, worker), ""))

    def _oom_evidence(self, worker: WorkerProcess) -> OomEvidence | None:
        if worker.exitcode != _SIGKILL or worker.reason is not None:
            return None
        most = max(worker.rss or 0, worker.peak_rss or 0)
        return self._oom.evidence(worker.membership, most)

    def _verdict(self, record: Postmortem, worker: WorkerProcess) -> str:
        memory = self._oom.limit(worker.membership) or _physical_memory()
        since = worker.fields[ledger.STARTED_AT] / 1e9
        hint = None if worker.stderr is None else c_hint(worker.stderr.tail(since))
        return verdict(record, self._oom.can_tell(worker.membership), memory, hint)

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


def _read_stderr(worker: WorkerProcess) -> str | None:
    if worker.stderr is None:
        return None
    worker.stderr.read()
    return worker.stderr.tail()


def _last_stacks(worker: WorkerProcess, stderr: str | None) -> str | None:
    """Return where the worker was when it died, as far as it said so."""
    if worker.struck is not None:
        return trim(read_dump(worker.hands.stack_fd, worker.struck.position)) or None
    if signal_of(worker.exitcode) not in PYTHON_CRASH_SIGNALS:
        return None
    dump = read_dump(worker.hands.crash_fd, 0)
    if not dump and stderr is not None:  # a job has turned faulthandler on for itself
        dump = stderr
    start = dump.rfind(_FATAL)  # what is before it was said by a process that a job forked
    return trim(dump[max(0, start) :], in_job=worker.phase() != "idle") or None


def _core_dump(worker: WorkerProcess) -> str | None:
    signum = signal_of(worker.exitcode)
    if not worker.core_dumped or not worker.pid or not signum:
        return None
    return core_dumps.locate(worker.pid, signum)


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
