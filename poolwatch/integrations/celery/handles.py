"""The way of one task through the pool, as Celery is told of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger

from poolwatch import config, exceptions
from poolwatch.integrations.celery.errors import info_of, signal_number, translated
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.results import ApplyResult

if TYPE_CHECKING:
    from poolwatch.integrations.celery.pool import TaskPool

logger = get_logger("celery.pool")


class TaskHandle:
    """What ``apply_async`` returns to Celery, which keeps it by a weak reference only.

    Everything but :meth:`terminate` happens in one thread, see the package's drawing. There the
    order is: accepted, perhaps soft limit, ended. Where nobody has told of the acceptance (the
    process was killed just before it could) it is made up for first.

    Attributes:
        name: the task's name and id.
        pid: process id of the worker that has accepted the task, once that is known.
        ended: Celery has been told how it ended.
        job: the pool's own record, from when it is there until it has ended.
    """

    __slots__ = (
        "__weakref__",
        "_accept_callback",
        "_callback",
        "_error_callback",
        "_ordered",
        "_pool",
        "_propagate",
        "_timeout_callback",
        "correlation_id",
        "ended",
        "job",
        "limit",
        "name",
        "pid",
        "soft_limit",
    )

    def __init__(
        self,
        pool: TaskPool,
        name: str,
        callback: Callable[..., object] | None,
        error_callback: Callable[..., object] | None,
        accept_callback: Callable[..., object] | None,
        timeout_callback: Callable[..., object] | None,
        soft_limit: float | None,
        limit: float | None,
        propagate: tuple[type[BaseException], ...],
        correlation_id: str | None,
    ) -> None:
        self._pool = pool
        self.name = name
        self._callback = callback
        self._error_callback = error_callback
        self._accept_callback = accept_callback
        self._timeout_callback = timeout_callback
        self.soft_limit = soft_limit
        self.limit = limit
        self._propagate = propagate
        self.correlation_id = correlation_id
        self.pid: int | None = None
        self.ended = False
        self.job: Job | None = None
        self._ordered: int | None = None  # the last signal, also from before there was a job

    # -- what Celery does with it --------------------------------------------------------------

    def terminate(self, signum: Any = None) -> bool:
        """End the task, running or not; it ends with ``Terminated``. Any thread.

        Celery asks twice, by the process and by this handle, with work of its own in between. The
        same signal is not sent again: it would interrupt what the task does about the first one.

        Returns:
            False when it has ended already.

        Raises:
            ValueError: no signal.
        """
        number = signal_number(signum)
        if self.ended:
            return False
        repeated, self._ordered = self._ordered == number, number
        job = self.job  # read last: submitted() writes it first, and one of the two sees the other
        if job is None:
            return True
        if repeated:
            return not job.state.final
        return self._pool.stop_job(job, number)

    def ready(self) -> bool:
        """Return True when Celery has been told how the task ended."""
        return self.ended

    @property
    def result(self) -> ApplyResult[Any] | None:
        """The pool's own handle; None before there is a job, and after its end."""
        return None if self.job is None else self._pool.result_of(self.job)

    def submitted(self, job: Job) -> None:
        """There is a job now. It may have ended, or somebody may have asked for that, already."""
        if self.ended:
            return
        self.job = job
        if self._ordered is not None:
            self._pool.stop_job(job, self._ordered)

    # -- what the pool says of it --------------------------------------------------------------

    def accept(self, pid: int, when: float) -> None:
        """A worker has begun the task.

        Args:
            pid: its process id.
            when: its monotonic clock, in seconds.
        """
        if self.ended or self.pid == pid:
            return
        self._pool.note_process(self, pid)
        self.pid = pid
        self._call("accept", self._accept_callback, pid, when)

    def end_unnoticed(self) -> None:
        """Celery goes, and has ended all tasks of whose acceptance it was told: end this as well.

        If this is not one of those, Celery hears no more of it, and acknowledges nothing: the
        broker delivers it again. Unless it has succeeded already, which Celery is told still.
        """
        succeeded = self.job is not None and self.job.state is JobState.SUCCEEDED
        if self.pid is None and not succeeded:
            self._accept_callback = self._callback = None
            self._error_callback = self._timeout_callback = None
        self.terminate()

    def soft_limit_hit(self) -> None:
        """The soft limit has passed, and the task has been told."""
        if not self.ended:
            self._call("timeout", self._timeout_callback, soft=True, timeout=self.soft_limit)

    def fail(self, error: BaseException) -> None:
        """The task could not be handed to the pool at all."""
        if self.ended:
            return
        try:
            self._make_up_for_acceptance(os.getpid(), 0.0)
        finally:
            self._end(lambda: self._failed(error))

    def settle(self, job: Job) -> None:
        """The job has ended; may be told twice."""
        if self.ended:
            return
        succeeded, value = job.result()
        if not succeeded and self._is_to_be_dropped(job, value):
            self._end(lambda: None)
            return
        try:
            if succeeded or _has_begun(job):
                record = getattr(value, "postmortem", None) if not succeeded else None
                run_time = getattr(record, "run_time", None) or (job.wall or 0) / 1e9
                self._make_up_for_acceptance(_pid_of(job, record), run_time)
            elif self.pid is None and not isinstance(value, exceptions.Terminated):
                # Refused, say. Celery acknowledges most messages when they are accepted only.
                self._make_up_for_acceptance(os.getpid(), 0.0)
        finally:
            if succeeded:
                self._end(lambda: self._call("success", self._callback, value))
            else:
                self._end(lambda: self._failed(value))

    def _is_to_be_dropped(self, job: Job, error: BaseException) -> bool:
        """True where nobody is to hear of it: the broker will deliver the message again.

        That is what ``flush`` has dropped, and what a pool that broke had not begun.
        """
        if isinstance(error, exceptions.JobCancelled):
            return True
        return isinstance(error, exceptions.PoolBroken) and not _has_begun(job) and not self.pid

    def _make_up_for_acceptance(self, pid: int, run_time: float) -> None:
        if self.pid != pid:
            self.accept(pid, monotonic() - run_time)

    def _end(self, tell: Callable[[], object]) -> None:
        """Tell Celery of the end, and hand over the next task."""
        if self.ended:  # by a signal handler that has interrupted the acceptance
            return
        self.ended = True
        self.job = None  # which holds this handle: a cycle for each task
        try:
            self._pool.forget(self)
        finally:
            tell()

    def _failed(self, error: BaseException) -> None:
        self._pool.account.add(self.name, error)
        self._call("error", self._error_callback, info_of(translated(error, self.limit)))
        if isinstance(error, exceptions.TimeLimitExceeded):
            self._call("timeout", self._timeout_callback, soft=False, timeout=self.limit)
        if isinstance(error, exceptions.PoolBroken):
            self._pool.give_up(error)

    def _call(
        self, name: str, callback: Callable[..., object] | None, *args: Any, **kwds: Any
    ) -> None:
        """Call Celery back; what it raises is logged, as with prefork, but for what must get out.

        Raises:
            MemoryError: Celery stops the worker with it.
            BaseException: what the pool was told to propagate, and what is no ``Exception``.
        """
        if callback is None or self._pool.silent:
            return
        try:
            callback(*args, **kwds)
        except Exception as error:
            if isinstance(error, (MemoryError, *self._propagate)):
                raise
            logger.error(
                "Pool callback raised exception: %r (%s callback of %s)",
                error,
                name,
                self.name,
                exc_info=True,
            )

    def __repr__(self) -> str:
        state = "ended" if self.ended else "waiting" if self.pid is None else f"in {self.pid}"
        return f"<TaskHandle {self.name} {state}>"


def _has_begun(job: Job) -> bool:
    return job.attempts > 0 or job.state is JobState.RUNNING


def _pid_of(job: Job, record: Any) -> int:
    pid = getattr(record, "pid", None)
    if pid is None and job.worker is not None:
        pid = job.worker.pid
    return pid or os.getpid()


def name_of(target: Callable[..., Any], args: tuple[Any, ...], task_id: str | None) -> str:
    """Return what a task is called in errors and events: its own name, not that of its tracer."""
    if args and task_id is not None and isinstance(args[0], str):
        return f"{args[0]}[{task_id}]"
    return config.name_of(target)
