"""The futures of ``ProcessPoolExecutor``, and how they are settled.

A future is settled (gets its result) on a thread that the pool has for that, many at a time; or
earlier, by whoever waits for it in ``result()`` or ``exception()``. One that has callbacks is
settled on the delivery thread, which calls them: a callback that blocks holds up none but futures
with callbacks, and none is called in the thread of somebody who only waits. The supervisor's thread
settles none: that would run the user's code.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from poolwatch import checks
from poolwatch.config import name_of
from poolwatch.core import Core
from poolwatch.events import HookFailed
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.outcome import Usage
from poolwatch.watch import Watch

T = TypeVar("T")

_logger = logging.getLogger("concurrent.futures")  # where callbacks' exceptions are looked for


class Future(concurrent.futures.Future[T]):
    """What ``submit`` returns: a ``concurrent.futures.Future`` that knows its job.

    It can be cancelled as long as the job has not begun, also when it has been sent to a worker.
    """

    def __init__(self, settler: Settler) -> None:
        """Make one; called by the executor."""
        super().__init__()
        self._settler = settler
        self._job: Job | None = None

    @property
    def job_id(self) -> int | None:
        """Number of the job in its pool; None when its call did not pickle."""
        return None if self._job is None else self._job.id

    @property
    def usage(self) -> Usage | None:
        """What the job has used, see ``ApplyResult.usage``."""
        return None if self._job is None else self._job.usage

    def running(self) -> bool:
        """Return True while the job runs in a worker."""
        job = self._job
        return (
            not self.done() and job is not None and self._settler.state_of(job) is JobState.RUNNING
        )

    def __repr__(self) -> str:
        text = super().__repr__()
        return text.replace("state=pending", "state=running", 1) if self.running() else text

    def cancel(self) -> bool:
        """Take the job back, if it has not begun; return whether it is cancelled.

        With the executor's ``cancel_running`` a job that runs is stopped as well.
        """
        job = self._job
        if job is not None and not self.done() and not self._settler.take_back(job):
            return False
        cancelled = super().cancel()
        if cancelled:
            self._tell_of_cancellation()
        return cancelled

    def result(self, timeout: float | None = None) -> T:
        """Return the value, or raise the job's exception.

        Args:
            timeout: seconds to wait; None for no bound.

        Raises:
            concurrent.futures.CancelledError: it was cancelled.
            concurrent.futures.TimeoutError: it is not done after that time.
            WorkerLostError: the worker died while it ran the job; no other future fails for it.
            PoolBroken: the pool cannot go on; it is a ``BrokenProcessPool``.
            Exception: what the job raised.
        """
        try:
            return super().result(self._wait_helping(timeout))
        finally:
            del self  # the error's traceback would keep the future alive in a cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the job's exception, or None when it has succeeded; see :meth:`result`."""
        return super().exception(self._wait_helping(timeout))

    def _wait_helping(self, timeout: float | None) -> float | None:
        """Help the pool along, and settle here what has ended; return the seconds that are left."""
        job = self._job
        if job is None or self.done():
            return timeout
        if timeout is not None:
            timeout = checks.seconds("timeout", timeout, negative=True)
        timeout = self._settler.help_until(job, timeout)
        if not self._has_callbacks():
            begun = monotonic()
            if job.wait(timeout):
                self._settle_quietly()
            if timeout is not None:
                timeout = max(0.0, timeout - (monotonic() - begun))
        return timeout

    def _has_callbacks(self) -> bool:
        return bool(self._done_callbacks)  # type: ignore[attr-defined]

    def _settle_quietly(self) -> None:
        """Take over the job's outcome, unless that would call back. Any thread."""
        if not self._has_callbacks():
            self._settle()

    def _settle(self) -> None:
        """Take over the job's outcome; runs callbacks, see :meth:`_invoke_callbacks`.

        Any thread but the supervisor's.
        """
        job = self._job
        if job is None:
            return
        if job.state is JobState.CANCELLED:
            if super().cancel():
                self._tell_of_cancellation()
            return
        succeeded, value = job.result()
        try:
            if succeeded:
                self.set_result(value)
            else:
                self.set_exception(value)
        except concurrent.futures.InvalidStateError:
            pass  # somebody else has settled it, or it was cancelled meanwhile
        finally:
            del value, self  # as in result()

    def _invoke_callbacks(self) -> None:
        """Call back; on the delivery thread whatever they raise, even by ``sys.exit()``.

        There it must not keep others from being called. Elsewhere (in ``cancel()``) it may be a
        signal handler that raises, in the thread that is to be interrupted.
        """
        core = self._settler.core
        if self._has_callbacks() and core.is_settling():  # added in the last moment
            core.deliver(self._invoke_callbacks)
            return
        if not self._has_callbacks() or not core.is_delivering():
            super()._invoke_callbacks()  # type: ignore[misc]
            return
        for callback in self._done_callbacks:  # type: ignore[attr-defined]
            try:
                callback(self)
            except Exception:
                _logger.exception("exception calling callback for %r", self)
            except BaseException as error:  # noqa: BLE001  (reported)
                self._settler.report(error, name_of(callback))

    def _tell_of_cancellation(self) -> None:
        """Wake those who wait for several futures; once."""
        with self._condition:
            if self._state == concurrent.futures._base.CANCELLED:
                self.set_running_or_notify_cancel()


class Settler:
    """Settles the futures of one executor, many at a time."""

    def __init__(self, core: Core, cancel_running: bool) -> None:
        self.core = core
        self._cancel_running = cancel_running
        self._plain = _Batch(core.settle, self._settle_plain)
        self._calling = _Batch(core.deliver, self._settle_one)

    def watch(self, future: Future[Any]) -> Watch:
        """Return what tells of the end of a future's job."""
        return _FutureWatch(self, future)

    def ended(self, future: Future[Any]) -> None:
        """A future's job has ended. The dispatcher's lock is held."""
        (self._calling if future._has_callbacks() else self._plain).add(future)

    def _settle_plain(self, future: Future[Any]) -> None:
        if future._has_callbacks():  # by now
            self._calling.add(future)
        else:
            self._settle_one(future)

    def _settle_one(self, future: Future[Any]) -> None:
        try:
            future._settle()
        except BaseException as error:  # noqa: BLE001  (reported; the others must be settled)
            self.report(error)

    def report(self, error: BaseException, callback: str | None = None) -> None:
        """Tell listeners and the log what a done-callback raised. The delivery thread."""
        bus = self.core.supervisor.bus
        bus.emit_here(HookFailed(bus.pool, "done_callback", error, callback))

    def wait_for_delivery(self) -> None:
        """Return when the futures whose jobs have ended are settled and their callbacks have run.

        On the delivery thread, that is in one of these callbacks, at once.
        """
        core = self.core
        if not core.is_delivering() and not core.is_settling():
            done = threading.Event()
            core.settle(lambda: core.deliver(done.set))
            done.wait()

    def take_back(self, job: Job) -> bool:
        """Cancel a job; False when it runs and may not be stopped, or has ended."""
        orders = self.core.access.orders
        return orders.cancel(job) if self._cancel_running else orders.take_back(job)

    def help_until(self, job: Job, timeout: float | None) -> float | None:
        """Help the pool along until a job has ended; return the seconds that are left."""
        self.core.check_owner()
        return self.core.access.assist.until(job.is_ready, timeout)

    def state_of(self, job: Job) -> JobState:
        """Return where a job is on its way."""
        return self.core.handle_of(job).state


class _Batch:
    """Futures whose jobs have ended, on their way to a thread.

    Args:
        put: has something called on that thread.
        settle: what to do there with each of them.
    """

    def __init__(
        self,
        put: Callable[[Callable[[], object]], None],
        settle: Callable[[Future[Any]], None],
    ) -> None:
        self._put = put
        self._settle = settle
        self._futures: deque[Future[Any]] = deque()
        self._called = False  # the thread will come by

    def add(self, future: Future[Any]) -> None:
        """Have a future settled. Any thread."""
        self._futures.append(future)
        if not self._called:
            self._called = True
            self._put(self._settle_all)

    def _settle_all(self) -> None:
        self._called = False  # first: what is added from here on has it called again
        while self._futures:
            future = self._futures.popleft()
            self._settle(future)
            del future


class _FutureWatch(Watch):
    """Tells a settler of the end of a future's job."""

    __slots__ = ("_future", "_settler")

    def __init__(self, settler: Settler, future: Future[Any]) -> None:
        self.owner = settler
        self.accepted = None
        self.flags = 0
        self._settler = settler
        self._future: Future[Any] | None = future

    def ended(self, job: Job) -> None:
        """See ``Watch``."""
        future = self._future
        if future is not None:
            future._job = job  # perhaps before whoever submits it has been told
            self._settler.ended(future)
            # The future knows its job, which knows this: not a cycle that waits for the collector.
            # Last, as a signal handler may raise before, and then this is called again.
            self._future = None
