"""What ``apply_async`` returns."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from poolwatch.checks import seconds
from poolwatch.exceptions import TimeoutError
from poolwatch.job import Job, Waiter
from poolwatch.job_state import JobState
from poolwatch.outcome import Usage
from poolwatch.transport import ledger

if TYPE_CHECKING:
    from poolwatch.assist import Assist
    from poolwatch.orders import Orders

T = TypeVar("T")


class Access(NamedTuple):
    """What handles may do with their pool."""

    orders: Orders
    assist: Assist


class ApplyResult(Generic[T]):
    """The result of one job, now or later (as ``multiprocessing.pool.AsyncResult``)."""

    __slots__ = ("__weakref__", "_access", "_job")

    def __init__(self, job: Job, access: Access) -> None:
        self._job = job
        self._access = access

    def get(self, timeout: float | None = None) -> T:
        """Return the job's value, or raise its exception.

        The exception is of the job's own class; its ``__cause__`` holds the worker's traceback.

        Args:
            timeout: seconds to wait; None to wait until the job has ended.

        Raises:
            TimeoutError: the job is not ready after that time (it goes on).
            RuntimeError: in a forked child, for a job that has not ended.
            WorkerLostError: the worker died while it ran the job.
            Terminated, TimeLimitExceeded, JobCancelled, PoolBroken: the pool ended the job.
            Exception: what the job raised.
        """
        job = self._job
        if not job.ready and not self._wait(timeout):
            raise TimeoutError(f"job {job.id} {job.name} is not ready after {timeout:g} s")
        succeeded, value = job.result()
        if succeeded:
            result: T = value
            return result
        try:
            raise value
        finally:
            del value, self  # the traceback would keep both alive in a cycle

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the job has ended, no longer than ``timeout`` seconds."""
        self._wait(timeout)

    def _wait(self, timeout: float | None) -> bool:
        job = self._job
        if not job.ready:
            self._access.orders.check_owner()
            if timeout is not None:
                timeout = seconds("timeout", timeout, negative=True)
            timeout = self._access.assist.until(job.is_ready, timeout)
        return job.wait(timeout)

    def ready(self) -> bool:
        """Return True when the job has ended and its callbacks have run."""
        return self._job.ready

    def successful(self) -> bool:
        """Return True when the job returned a value.

        Raises:
            ValueError: the job has not ended (as in multiprocessing).
        """
        if not self._job.ready:
            raise ValueError(f"{self!r} not ready")
        return self._job.succeeded

    def accepted(self) -> bool:
        """Return True when the job has begun (as in billiard)."""
        return self._job.attempts > 0 or self.state is JobState.RUNNING

    def worker_pids(self) -> list[int]:
        """Return the process id of the job's worker in a list, empty before it begins."""
        pid = self.pid
        return [] if pid is None else [pid]

    def discard(self) -> None:
        """Let go of the outcome; the job goes on (from billiard).

        No callback of the job is called any more, and the value or the error is dropped when it
        comes. The handle becomes ready all the same; ``get()`` raises ``JobCancelled`` then, where
        billiard's waits for ever.
        """
        self._access.orders.discard(self._job)

    def terminate(self, signum: int = signal.SIGTERM) -> bool:
        """End the job, running or not; it ends with ``Terminated``.

        Args:
            signum: the signal that a running job gets. SIGTERM raises ``SystemExit`` inside it, and
                SIGUSR1 ``SoftTimeLimitExceeded`` (as in billiard); SIGKILL follows after the pool's
                ``terminate_grace``.

        Returns:
            False when the job has ended already.
        """
        return self._access.orders.terminate(self._job, signum)

    def cancel(self) -> bool:
        """End the job, running or not; it ends with ``JobCancelled``.

        A job that has not begun is taken back and costs nothing. One that runs is stopped as by
        :meth:`terminate`.

        Returns:
            False when the job has ended already, other than by being cancelled.
        """
        return self._access.orders.cancel(self._job)

    def _add_waiter(self, waiter: Waiter) -> None:
        self._job.add_waiter(waiter)

    def _remove_waiter(self, waiter: Waiter) -> None:
        self._job.remove_waiter(waiter)

    def _check_may_wait(self) -> None:
        self._access.assist.check_may_wait()

    @property
    def job_id(self) -> int:
        """Number of the job in its pool."""
        return self._job.id

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs the job or ran it last; None before it begins."""
        worker = self._job.worker
        if worker is None or not (self._job.attempts or self.state is JobState.RUNNING):
            return None
        return worker.pid

    @property
    def state(self) -> JobState:
        """Where the job is on its way."""
        job = self._job
        state = job.state
        worker = job.worker
        if state is JobState.SENT and worker is not None:
            try:
                if worker.fields[ledger.STARTED] >= job.serial > 0:
                    return JobState.RUNNING
            except ValueError:
                pass  # the worker has just been buried, and its row with it
        return job.state

    @property
    def attempts(self) -> int:
        """How often the job has been started."""
        return self._job.attempts + (self.state is JobState.RUNNING)

    @property
    def terminated(self) -> bool:
        """True when somebody asked for this job's end on purpose."""
        return self._job.terminated

    @property
    def worker_lost(self) -> tuple[float, int | None] | None:
        """When (monotonic seconds) and with which exit code its worker died last, or None."""
        return self._job.worker_lost

    @property
    def usage(self) -> Usage | None:
        """What the job has used: wall, user and system seconds, peak of memory.

        None unless the job ended in its worker. What the items of a map used is not told.
        """
        return self._job.usage

    @property
    def tag(self) -> object:
        """The caller's own mark."""
        return self._job.options.tag

    @property
    def correlation_id(self) -> str | None:
        """The caller's own mark, as in billiard."""
        return self._job.options.correlation_id

    def __eq__(self, other: object) -> bool:
        return self._job is other._job if isinstance(other, ApplyResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._job)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._job.id} {self._job.name} {self.state.name}>"


AsyncResult = ApplyResult
