"""A job's record; where it is on its way is in ``job_state``.

``Job.terminated`` is the explicit flag: set when somebody asked for this job's end on purpose. It
decides whether the death of the worker reads ``Terminated`` or ``WorkerLostError``, and it belongs
to the job: the same worker's later death in another job is a loss again.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from poolwatch.exceptions import (
    JobCancelled,
    MemoryLimitExceeded,
    TimeLimitExceeded,
)
from poolwatch.job_state import JobState
from poolwatch.outcome import Outcome, Usage
from poolwatch.sleep import acquire
from poolwatch.transport import codec, frames
from poolwatch.transport.usage import user_and_system

if TYPE_CHECKING:
    from poolwatch.chunks import Part
    from poolwatch.policies import LostWorkerPolicy
    from poolwatch.workers import WorkerProcess


@dataclass(slots=True)
class JobOptions:
    """What a caller asked for one job beyond the call itself; most jobs have none.

    Attributes:
        callback: called with the value on success.
        error_callback: called with the exception otherwise.
        accept_callback: called as ``(pid, time)`` when the job has begun.
        timeout_callback: called as ``(soft=..., timeout=...)`` when a limit was hit.
        soft_timeout: seconds, or None.
        timeout: seconds, or None.
        policy: what to do when the worker is lost, or None for the pool's.
        tag: the caller's own mark.
        correlation_id: the caller's own mark, as in billiard.
        priority: jobs of a higher one go first; 0 for most.
        env: variables that are added to the worker's environment while the job runs, or None.
        cwd: the worker's working directory while the job runs, or None.
        settings: those two and the submitter's context variables on their way to the worker, see
            ``transport.settings``; empty for most.
        memory_limit: bytes, or None for the pool's.
    """

    callback: Callable[[Any], object] | None = None
    error_callback: Callable[[BaseException], object] | None = None
    accept_callback: Callable[[int, float], object] | None = None
    timeout_callback: Callable[..., object] | None = None
    soft_timeout: float | None = None
    timeout: float | None = None
    policy: LostWorkerPolicy | None = None
    tag: object = None
    correlation_id: str | None = None
    priority: int = 0
    env: dict[str, str] | None = None
    cwd: str | None = None
    settings: bytes = b""
    memory_limit: int | None = None


NO_OPTIONS = JobOptions()


_new_outcome = tuple.__new__  # Outcome(...) takes twice as long
_NONE = Outcome(frames.RESULT, codec.PICKLED_NONE, None)
_waiters_lock = threading.RLock()  # held for a list append only
_DECODING_MASK = 63
_decoding_locks = tuple(threading.RLock() for _ in range(_DECODING_MASK + 1))


def release_all(waiters: list[Waiter]) -> None:
    """Release each waiter, and take it out; the lock that guards them is held."""
    while waiters:
        waiter = waiters[-1]
        if waiter.locked():
            waiter.release()
        waiters.pop()


class Waiter(Protocol):
    """What is released when a job has ended: a lock, or something like one."""

    def locked(self) -> bool:
        """Return True until it has been released."""

    def release(self) -> None:
        """The job has ended."""


class Job:
    """One call on its way through the pool.

    The dispatcher's lock guards everything here except waiting and decoding.

    Attributes:
        id: number of the job in its pool.
        submitted: when that was, monotonic nanoseconds; 0 where it is not counted, see ``tally``.
        name: qualified name of the function.
        head: the function's own pickle, see ``transport.calls``; empty when the payload holds it.
        payload: the pickled arguments, or the whole call; dropped when the job has ended.
        options: what the caller asked for.
        state: see :class:`JobState`.
        worker: the worker that has the job, or had it last.
        serial: number of this sending, see ``transport.ledger``.
        attempts: how often the job has been started and has ended, or was lost.
        by_value: the payload holds the function itself, not its name.
        chunk: the part of a map that this job runs, or None.
        moves: how often a worker died while it was receiving this job.
        terminated: somebody asked for this job's end on purpose.
        cancelled: they asked with cancel(), so the end reads so.
        worker_lost: when (monotonic seconds) and with which exit code its worker died, or None.
        limit: the error of a limit that the job has hit, while the worker is being killed.
        ready: the outcome is there for everybody, and callbacks have run.
        wall: nanoseconds that the job ran, once it has ended in its worker.
        cpu: processor time that it used, likewise; see ``transport.usage``.
        peak: bytes of memory at most; there only where it was measured.
        keepalive: the pool, which must not be collected while the job is unfinished.
    """

    __slots__ = (
        "_error",
        "_outcome",
        "_value",
        "_waiters",
        "attempts",
        "by_value",
        "cancelled",
        "chunk",
        "cpu",
        "head",
        "id",
        "keepalive",
        "limit",
        "moves",
        "name",
        "options",
        "payload",
        "peak",
        "ready",
        "serial",
        "state",
        "submitted",
        "terminated",
        "wall",
        "worker",
        "worker_lost",
    )

    peak: int

    def __init__(
        self,
        number: int,
        name: str,
        head: bytes,
        payload: codec.Payload | None,
        options: JobOptions,
        keepalive: object,
    ) -> None:
        self.id = number
        self.submitted = 0
        self.name = name
        self.head = head
        self.payload: codec.Payload | None = payload
        self.options = options
        self.state = JobState.PENDING
        self.worker: WorkerProcess | None = None
        self.serial = 0
        self.attempts = 0
        self.moves = 0
        self.by_value = False
        self.chunk: Part | None = None
        self.terminated = False
        self.cancelled = False
        self.worker_lost: tuple[float, int | None] | None = None
        self.limit: TimeLimitExceeded | MemoryLimitExceeded | None = None
        self.ready = False
        self.wall: int | None = None
        self.cpu = 0
        self.keepalive = keepalive
        self._outcome: Outcome | None = None
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiters: list[Waiter] | None = None

    def move(self, state: JobState) -> None:
        """Change the state; the one place where that happens.

        Raises:
            RuntimeError: no such arrow in the drawing (a bug of poolwatch).
        """
        if not self.state.successors & state.bit:
            raise RuntimeError(f"job {self.id} cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def is_chunk(self) -> bool:
        """True when several items of a map travel in this job, each with a clock of its own."""
        return self.chunk is not None and bool(self.chunk.flags & frames.CHUNK)

    @property
    def usage(self) -> Usage | None:
        """What the job has used; None unless it has ended in its worker."""
        if self.wall is None:
            return None
        return Usage(self.wall / 1e9, *user_and_system(self.cpu), getattr(self, "peak", 0) or None)

    def take_outcome(self) -> Outcome | BaseException:
        """Return how the job has ended, still pickled where it came from the worker."""
        return self._outcome or self._error or _NONE

    # -- the end ------------------------------------------------------------------------------

    def finish(self, kind: int, payload: bytes, wall: int, cpu: int) -> None:
        """End as the worker says, in the common case: a small outcome, nobody to be told of it.

        May be done again after an interruption by a signal handler.
        """
        self.state = JobState.SUCCEEDED if kind == frames.RESULT else JobState.FAILED
        self.attempts += 1
        self.wall = wall
        self.cpu = cpu
        if payload != codec.PICKLED_NONE:
            self._outcome = _new_outcome(Outcome, (kind, payload, None))
        self.payload = None

    def set_outcome(self, outcome: Outcome) -> None:
        """Keep what the worker sent; :meth:`result` unpickles it."""
        self._outcome = outcome
        self._release()

    def set_error(self, error: BaseException) -> None:
        """Keep an error that came from the pool itself."""
        self._error = error
        self._release()

    def _release(self) -> None:
        # Dropped, not closed: a frame with its descriptor may still wait in a stream.
        self.payload = None

    def set_ready(self) -> None:
        """Let everybody who waits see the outcome."""
        self.keepalive = None
        self.ready = True
        # A waiter that is added from now on sees ``ready`` after it has been added.
        if self._waiters is not None:
            # Two threads may end a job, and one may do it twice: each waiter is released once.
            with _waiters_lock:
                release_all(self._waiters)

    def is_ready(self) -> bool:
        """Return True when the outcome is there for everybody, and callbacks have run."""
        return self.ready

    def add_waiter(self, waiter: Waiter) -> None:
        """Have something released when the job is ready, at once if it is.

        Args:
            waiter: its ``release`` is called once while it is ``locked``, in whatever thread ends
                the job: it must be quick, run nothing of the user's and take no lock that is held
                while the pool is used.
        """
        with _waiters_lock:
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
        if self.ready:
            self.set_ready()

    def remove_waiter(self, waiter: Waiter) -> None:
        """Take back :meth:`add_waiter`; nothing happens when it has been released."""
        with _waiters_lock:
            if self._waiters is not None and waiter in self._waiters:
                self._waiters.remove(waiter)

    def silence(self) -> None:
        """Call nobody back any more. The dispatcher's lock is held."""
        if self.options is not NO_OPTIONS:
            self.options = replace(
                self.options,
                callback=None,
                error_callback=None,
                accept_callback=None,
                timeout_callback=None,
            )
        if self.chunk is not None:
            self.chunk.silence()

    def drop_outcome(self) -> None:
        """Nobody cares for the outcome: let go of it. The dispatcher's lock is held."""
        text = f"the outcome of job {self.id} {self.name} was discarded"
        self._error, self._outcome, self._value = JobCancelled(text), None, None

    def wait(self, timeout: float | None) -> bool:
        """Wait until the job is ready, no longer than so many seconds; return whether it is."""
        if self.ready:
            return True
        waiter = allocate_lock()
        waiter.acquire()
        with _waiters_lock:
            if self._waiters is None:
                self._waiters = []
            waiters = self._waiters
            waiters.append(waiter)
        if self.ready:
            return True
        if acquire(waiter, timeout):
            return True
        with _waiters_lock:
            if waiter in waiters:
                waiters.remove(waiter)
        return self.ready

    @property
    def succeeded(self) -> bool:
        """True when the job returned a value that could be unpickled."""
        return self.result()[0]

    def result(self) -> tuple[bool, Any]:
        """Return ``(True, value)`` or ``(False, exception)``; the first caller unpickles."""
        if self._outcome is not None:
            with _decoding_locks[self.id & _DECODING_MASK]:
                outcome = self._outcome
                if outcome is not None:
                    succeeded, value = outcome.result(self.name)
                    if succeeded:
                        self._value = value
                    else:
                        self._error = value
                    self._outcome = None  # not when Ctrl-C came in between: then once more
        return (True, self._value) if self._error is None else (False, self._error)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name} {self.state.name}>"
