"""Every error of poolwatch, and whose fault each one is.

::

    PoolwatchError
      WorkerLostError          the job's worker died under it
        OutOfMemory            ... the kernel killed it for memory, with evidence
        PoisonJobError         ... refused: this call has killed too many workers (Quarantine)
      Terminated               on purpose: terminate_job(), result.terminate(), pool.terminate()
      TimeLimitExceeded        the hard limit; the worker was killed, .stack says where the job was
      SoftTimeLimitExceeded    the soft limit; raised inside the job, which may catch it
      MemoryLimitExceeded      the job's worker grew beyond memory_limit
      MaybeEncodingError       a result or an exception could not be pickled, or not be unpickled
      JobDecodingError         the arguments could not be unpickled in the worker
      JobCancelled             cancel() or flush() took the job back before it began
      PoolFull                 max_pending reached and the caller did not want to wait
      PoolBroken               the pool cannot go on; every unfinished job ends with it
        RestartFreqExceeded    ... more restarts than the caller allowed
        BootError              ... workers die or fail before they take a job

``TimeoutError`` is :class:`multiprocessing.TimeoutError`, raised by ``get(timeout)`` and
``join(timeout)`` when the wait, not the job, has run out.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.pool import MaybeEncodingError as _MaybeEncodingError  # type: ignore[attr-defined]
from multiprocessing.pool import RemoteTraceback as _RemoteTraceback  # type: ignore[attr-defined]

from poolwatch.loss import Postmortem, signal_of

TimeoutError = multiprocessing.TimeoutError  # noqa: A001  (the name multiprocessing gives it)


class PoolwatchError(Exception):
    """The root of all errors that poolwatch raises for reasons of its own."""


class WorkerLostError(PoolwatchError):
    """The worker process died while it ran this job (name and text as in billiard).

    Attributes:
        exitcode: the exit code, negative for a signal, as ``multiprocessing.Process.exitcode``;
            None where it is not known.
        signal: the number of the signal that killed the worker, or None.
        pid: the process id of the dead worker, or None.
        postmortem: everything that is known about the death, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        exitcode: int | None = None,
        pid: int | None = None,
        postmortem: Postmortem | None = None,
    ) -> None:
        super().__init__(message)
        self.exitcode = exitcode
        self.pid = pid
        self.postmortem = postmortem

    @property
    def signal(self) -> int | None:
        """The number of the signal that killed the worker, or None."""
        return signal_of(self.exitcode)


class OutOfMemory(WorkerLostError):
    """The kernel's out-of-memory killer took the worker; the postmortem holds the evidence."""


class PoisonJobError(WorkerLostError):
    """The call was refused because it has killed too many workers before (see ``Quarantine``)."""


class Terminated(PoolwatchError):
    """The job was ended on purpose (name as in billiard).

    Attributes:
        exitcode: exit code of the killed worker, negative for a signal; None when the job had
            not begun, so that no process had to die for it.
    """

    def __init__(self, message: str = "", *, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


class TimeLimitExceeded(PoolwatchError):
    """The job ran longer than its hard limit and its worker was killed (name as in billiard).

    Attributes:
        timeout: the limit, in seconds.
        stack: where the job was just before the kill (Python stack of all threads), or None.
        postmortem: everything that is known about the killed worker, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        timeout: float | None = None,
        stack: str | None = None,
        postmortem: Postmortem | None = None,
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.stack = stack
        self.postmortem = postmortem


class SoftTimeLimitExceeded(PoolwatchError):
    """Raised inside the job when its soft limit has passed; the job may catch it (as billiard)."""


class MemoryLimitExceeded(PoolwatchError):
    """The job's worker and its children grew beyond ``memory_limit`` and were killed.

    Attributes:
        limit: in bytes.
        rss: resident sets of the worker and its children when that was seen, in bytes.
        samples: the last looks at them, each ``(seconds, rss)``: since the job began, and bytes.
        stack: where the job was just before the kill (Python stack of all threads), or None.
        postmortem: everything that is known about the killed worker, or None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        limit: int | None = None,
        rss: int | None = None,
        samples: tuple[tuple[float, int], ...] = (),
        stack: str | None = None,
        postmortem: Postmortem | None = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.rss = rss
        self.samples = samples
        self.stack = stack
        self.postmortem = postmortem


class MaybeEncodingError(PoolwatchError, _MaybeEncodingError):  # type: ignore[misc]
    """A result or an exception could not be pickled in the worker, or unpickled here.

    Also a ``multiprocessing.pool.MaybeEncodingError``, so that existing handlers catch it.

    Attributes:
        exc: text of the error that pickling raised.
        value: shortened repr of what could not be pickled.
    """

    def __init__(self, exc: object, value: object) -> None:
        self.exc = exc if isinstance(exc, str) else repr(exc)
        self.value = value if isinstance(value, str) else repr(value)
        Exception.__init__(self, self.exc, self.value)

    def __str__(self) -> str:
        return f"Error sending result: {self.value}. Reason: {self.exc}"


class JobDecodingError(PoolwatchError):
    """The job's arguments could not be unpickled in the worker; the job did not run."""


class JobCancelled(PoolwatchError, concurrent.futures.CancelledError):
    """The job was taken back before it began; also a ``concurrent.futures.CancelledError``."""


class PoolFull(PoolwatchError):
    """The pool has ``max_pending`` unfinished jobs and the caller did not want to wait."""


class PoolBroken(PoolwatchError, BrokenProcessPool):
    """The pool cannot go on; ``__cause__`` is the reason. Unfinished jobs end with it.

    Also a ``concurrent.futures.process.BrokenProcessPool``, so that existing handlers catch it.
    """


class RestartFreqExceeded(PoolBroken):
    """Workers died more often than ``max_restarts`` in ``max_restart_freq`` seconds."""


class BootError(PoolBroken):
    """Worker after worker failed before it took a job; ``__cause__`` is the last reason."""


class RemoteTraceback(_RemoteTraceback):  # type: ignore[misc]
    """The traceback text of the worker, as ``__cause__`` of the job's own exception.

    Also a ``multiprocessing.pool.RemoteTraceback``.

    Attributes:
        tb: the text.
    """

    def __init__(self, tb: str) -> None:
        Exception.__init__(self, tb)
        self.tb = tb

    def __str__(self) -> str:
        return self.tb
