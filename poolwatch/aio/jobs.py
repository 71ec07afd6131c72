"""What ``AsyncPool.submit`` returns, and how outcomes come into the event loop.

A wake-up of the loop costs more than a short job. So whoever ends a job (the supervisor, or a
caller that helps) puts it into the loop's mailbox and wakes the loop only if it has not been woken
since the mailbox was emptied last.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from poolwatch.core import Core
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.map_results import MapResult
from poolwatch.outcome import Usage
from poolwatch.results import ApplyResult
from poolwatch.watch import Watch

T = TypeVar("T")

TURN_SECONDS = 0.005
"""Outcomes are unpickled so long before others in the loop have their turn."""

# What these do to whoever lets them through is not the job's business: they end the loop, a task,
# a coroutine or an iteration.
_ACTING = (
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
)


class JobFuture(asyncio.Future[T]):
    """The outcome of one job, to be awaited in the event loop that submitted it.

    It is an ``asyncio.Future``: ``gather``, ``wait``, ``wait_for``, ``timeout`` and task groups
    know what to do with it. Cancelling it, or the task that awaits it, ends the job: one that has
    not begun is taken back and costs nothing, one that runs is stopped with all that it has started
    (SIGTERM, and SIGKILL after the pool's ``terminate_grace``), and its worker is replaced. The
    awaiting task goes on at once.
    """

    _handle: ApplyResult[T] | None = None

    @property
    def handle(self) -> ApplyResult[T]:
        """The job's handle, as ``Pool.apply_async`` returns it.

        Raises:
            ValueError: the call could not be pickled, so there is no job.
        """
        if self._handle is None:
            raise ValueError("the call could not be pickled, so there is no job")
        return self._handle

    @property
    def job_id(self) -> int | None:
        """Number of the job in its pool; None when its call did not pickle."""
        return None if self._handle is None else self._handle.job_id

    @property
    def job_state(self) -> JobState:
        """Where the job is on its way."""
        return JobState.FAILED if self._handle is None else self._handle.state

    @property
    def usage(self) -> Usage | None:
        """What the job has used, see ``ApplyResult.usage``."""
        return None if self._handle is None else self._handle.usage

    def cancel(self, msg: Any | None = None) -> bool:
        """End the job, running or not; return False when its outcome is there already."""
        if self.done():
            return False
        if self._handle is not None:
            self._handle.cancel()
        return super().cancel(msg)

    def _settle(self, job: Job) -> None:
        """Take over the outcome; in the loop's thread.

        Raises:
            KeyboardInterrupt: it interrupted the unpickling; the future is settled all the same.
        """
        if self.done():
            return
        try:
            succeeded, value = job.result()
        except BaseException as error:  # the user's code; whoever awaits it must not wait for ever
            self.set_exception(without_effect(error))
            if isinstance(error, KeyboardInterrupt):
                raise
            return
        if succeeded:
            self.set_result(value)
        else:
            self.set_exception(without_effect(value))


class Mailbox:
    """Where outcomes wait for one event loop.

    It lives as long as jobs are on their way to it: the pool does not keep loops that are closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ended: deque[tuple[JobFuture[Any], Job]] = deque()
        self._woken = False  # the loop will come by

    def watch(self, future: JobFuture[Any]) -> Watch:
        """Return what tells of the end of a future's job."""

        def ended(job: Job) -> None:
            self._ended.append((future, job))
            if not self._woken:
                self._woken = True
                call_soon(self.loop, self._empty)

        return Watch(self, ended)

    def _empty(self) -> None:
        """Settle what has ended; after a while others have their turn in between."""
        self._woken = False  # first: what is added from here on wakes the loop again
        deadline = monotonic() + TURN_SECONDS
        try:
            while self._ended:
                future, job = self._ended.popleft()
                future._settle(job)
                if monotonic() > deadline:
                    break
        finally:
            if self._ended and not self._woken:
                self._woken = True
                self.loop.call_soon(self._empty)


class Mailboxes:
    """The mailboxes of one pool, by event loop."""

    def __init__(self) -> None:
        # A mailbox holds its loop and would keep it here, were it not weak as well.
        self._all: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[Mailbox]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, loop: asyncio.AbstractEventLoop) -> Mailbox:
        """Return a loop's mailbox; called in that loop's thread."""
        reference = self._all.get(loop)
        mailbox = None if reference is None else reference()
        if mailbox is None:
            mailbox = Mailbox(loop)
            self._all[loop] = weakref.ref(mailbox)
        return mailbox


class AwaitedMap(MapResult[T]):
    """The results of a map that a task awaits.

    Attributes:
        done: every item is accounted for.
    """

    def __init__(self, length: int, core: Core, on_failure: Callable[..., None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        super().__init__(length, None, None, core.deliver, on_failure)

    def _first_error(self) -> BaseException | None:
        error = super()._first_error()
        return None if error is None else without_effect(error)

    def _complete(self) -> None:
        super()._complete()
        call_soon(self._loop, self._tell)

    def abort(self, error: BaseException) -> None:
        """Be ready at once: the pool has ended."""
        super().abort(error)
        call_soon(self._loop, self._tell)

    def _tell(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


def call_soon(loop: asyncio.AbstractEventLoop, callback: Any) -> bool:
    """Call back in a loop's thread; False when the loop is closed, and nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


def without_effect(error: BaseException) -> BaseException:
    """Return a job's error as it can be raised in an event loop: as it is, with few exceptions.

    An ``exit()`` in a job would end the loop here, and a ``CancelledError`` the task: these come as
    a ``RuntimeError`` with the job's own error as its cause, as Python does with a
    ``StopIteration`` that leaves a coroutine.
    """
    if not isinstance(error, _ACTING):
        return error
    problem = RuntimeError(f"the job raised {error!r}")
    problem.__cause__ = error
    return problem


async def in_thread(call: Callable[[], T]) -> T:
    """Have something that waits called in a thread of its own, and return what it returns.

    Not in the loop's executor: its threads may all be busy, and a loop does not end before they do.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(without_effect(error))

    def run() -> None:
        try:
            value, problem = call(), None
        except BaseException as error:  # noqa: BLE001  (raised where it is awaited)
            value, problem = None, error
        call_soon(loop, lambda: settle(value, problem))

    threading.Thread(target=run, name="poolwatch-aio", daemon=True).start()
    return await done


def cancel_all(core: Core, owner: object) -> None:
    """End all jobs of one owner, those that run too. Any thread."""
    for job in core.unfinished_jobs(owner):
        core.access.orders.cancel(job)
