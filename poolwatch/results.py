"""What ``apply_async`` and ``map_async`` return."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from poolwatch.exceptions import TimeoutError
from poolwatch.job import Job, JobState, Usage
from poolwatch.transport import ledger

if TYPE_CHECKING:
    from poolwatch.orders import Orders

T = TypeVar("T")


class ApplyResult(Generic[T]):
    """The result of one job, now or later (as ``multiprocessing.pool.AsyncResult``)."""

    __slots__ = ("__weakref__", "_job", "_orders")

    def __init__(self, job: Job, orders: Orders) -> None:
        self._job = job
        self._orders = orders

    def get(self, timeout: float | None = None) -> T:
        """Return the job's value, or raise its exception.

        The exception is of the job's own class; its ``__cause__`` holds the worker's traceback.

        Args:
            timeout: seconds to wait; None to wait until the job has ended.

        Raises:
            TimeoutError: the job is not ready after that time (it goes on).
            WorkerLostError: the worker died while it ran the job.
            Terminated, TimeLimitExceeded, JobCancelled, PoolBroken: the pool ended the job.
            Exception: what the job raised.
        """
        job = self._job
        if not job.ready and not job.wait(timeout):
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
        self._job.wait(timeout)

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
        """Do not care for the outcome any more; the job goes on (as in billiard)."""

    def terminate(self, signum: int = signal.SIGTERM) -> bool:
        """End the job, running or not; it ends with ``Terminated``.

        Args:
            signum: the signal that a running job gets. SIGTERM raises ``SystemExit`` inside it;
                SIGKILL follows after the pool's ``terminate_grace``.

        Returns:
            False when the job has ended already.
        """
        return self._orders.terminate(self._job, signum)

    def cancel(self) -> bool:
        """End the job, running or not; it ends with ``JobCancelled``.

        A job that has not begun is taken back and costs nothing. One that runs is stopped as by
        :meth:`terminate`.

        Returns:
            False when the job has ended already, other than by being cancelled.
        """
        return self._orders.cancel(self._job)

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
        """What the job has used, in seconds; None unless it ended in its worker."""
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


class MapResult(Generic[T]):
    """The results of a ``map_async``, in input order (as ``multiprocessing.pool.MapResult``).

    It is ready when every item is accounted for.
    """

    def __init__(
        self,
        length: int,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        on_failure: Callable[[str, BaseException], None],
    ) -> None:
        self._values: list[Any] = [None] * length
        self._failed: dict[int, BaseException] = {}
        self._missing = length
        self._callback = callback
        self._error_callback = error_callback
        self._on_failure = on_failure
        self._ready = threading.Event()
        self._lock = threading.Lock()
        if not length:
            self._finish()

    def set_items(self, start: int, outcomes: list[tuple[bool, Any]]) -> None:
        """Take the outcomes of neighbouring items; called by the pool."""
        with self._lock:
            for index, (succeeded, value) in enumerate(outcomes, start):
                if succeeded:
                    self._values[index] = value
                else:
                    self._failed[index] = value
            self._missing -= len(outcomes)
            done = not self._missing
        if done:
            self._finish()

    def _finish(self) -> None:
        error = self._first_error()
        try:
            if error is None and self._callback is not None:
                self._callback(self._values)
            elif error is not None and self._error_callback is not None:
                self._error_callback(error)
        except BaseException as problem:  # noqa: BLE001  (the user's code, even exit(); reported)
            self._on_failure("callback", problem)
        self._ready.set()

    def abort(self, error: BaseException) -> None:
        """Be ready at once with an error: the pool has ended before all items did."""
        if not self._ready.is_set():
            self._failed.setdefault(-1, error)
            self._ready.set()

    def _first_error(self) -> BaseException | None:
        return self._failed[min(self._failed)] if self._failed else None

    def get(self, timeout: float | None = None) -> list[T]:
        """Return the values in input order, or raise the first error in input order.

        Args:
            timeout: seconds to wait; None to wait until all items are accounted for.

        Raises:
            TimeoutError: they are not, after that time.
            Exception: the error of the first item that failed.
        """
        if not self._ready.wait(timeout):
            raise TimeoutError(f"{self._missing} items are not ready after {timeout:g} s")
        error = self._first_error()
        if error is None:
            return self._values
        try:
            raise error
        finally:
            del error, self

    def outcomes(self, timeout: float | None = None) -> list[tuple[bool, Any]]:
        """Return ``(True, value)`` or ``(False, exception)`` for every item, in input order.

        Args:
            timeout: as for :meth:`get`.

        Raises:
            TimeoutError: as for :meth:`get`.
        """
        if not self._ready.wait(timeout):
            raise TimeoutError(f"{self._missing} items are not ready after {timeout:g} s")
        return [
            (False, self._failed[index]) if index in self._failed else (True, value)
            for index, value in enumerate(self._values)
        ]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every item is accounted for, no longer than ``timeout`` seconds."""
        self._ready.wait(timeout)

    def ready(self) -> bool:
        """Return True when every item is accounted for."""
        return self._ready.is_set()

    def successful(self) -> bool:
        """Return True when no item failed.

        Raises:
            ValueError: not every item is accounted for.
        """
        if not self._ready.is_set():
            raise ValueError(f"{self!r} not ready")
        return not self._failed

    def __repr__(self) -> str:
        state = "ready" if self._ready.is_set() else f"{self._missing} missing"
        return f"<{type(self).__name__} {len(self._values)} items, {state}>"
