"""Which of Celery's exceptions a task ends with, and why.

Celery looks at the class, and does what it documents for it: acknowledges, rejects, announces as
revoked. Its classes are billiard's. They are used as they are, with what the pool knows in the text
and as attributes: results that a subclass would be stored with could not be read by a client that
has no poolwatch.
"""

from __future__ import annotations

import signal
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import TaskError, Terminated, TimeLimitExceeded, WorkerLostError

from poolwatch import exceptions
from poolwatch.loss import human_status, signal_name, signal_of


def translated(error: BaseException, limit: float | None) -> BaseException:
    """Return the exception that Celery is to see for an error of the pool or of the task.

    Args:
        error: what the job ended with.
        limit: the task's hard limit in seconds as Celery gave it.
    """
    twin: Any
    match error:
        case exceptions.PoisonJobError():
            # No loss for Celery: with reject_on_worker_lost it would be delivered again, and
            # refused again, without end.
            twin = TaskError(str(error))
        case exceptions.WorkerLostError() | exceptions.MemoryLimitExceeded():
            twin = WorkerLostError(str(error))
        case exceptions.PoolBroken():
            twin = WorkerLostError(f"the worker's pool is broken: {error}")
        case exceptions.TimeLimitExceeded():
            twin = TimeLimitExceeded(limit, str(error))
        case exceptions.Terminated():
            twin = Terminated(signal_of(error.exitcode) or 0)
            twin.reason = str(error)
        case SystemExit() | KeyboardInterrupt():
            # Only newer Celery knows what to do with these. With prefork the process exits.
            twin = WorkerLostError(f"Worker exited prematurely: {_exit_text(error)}")
        case _:
            return error
    twin.postmortem = getattr(error, "postmortem", None)
    twin.exitcode = getattr(error, "exitcode", None)
    twin.__cause__ = error.__cause__
    return twin  # type: ignore[no-any-return]


def _exit_text(error: BaseException) -> str:
    if not isinstance(error, SystemExit):
        return f"the task raised {type(error).__name__}"
    code = error.code
    if code is None:
        code = 0
    text = human_status(code if isinstance(code, int) else 1)
    return f"{text}; the task raised {error!r}, and its process goes on"


def cause_of(error: BaseException) -> str | None:
    """Return in a word why a job was lost: a signal, an exit code, a limit; None for no loss."""
    match error:
        case exceptions.OutOfMemory():
            return "out of memory"
        case exceptions.PoisonJobError():
            return "refused"
        case exceptions.WorkerLostError():
            if error.signal is not None:
                return signal_name(error.signal)
            return human_status(error.exitcode)
        case exceptions.TimeLimitExceeded():
            return "time limit"
        case exceptions.MemoryLimitExceeded():
            return "memory limit"
        case exceptions.PoolBroken():
            return "broken pool"
        case SystemExit() | KeyboardInterrupt():
            return type(error).__name__
        case _:
            return None


def info_of(error: BaseException) -> ExceptionInfo:
    """Return an exception as Celery's callbacks take it."""
    cause = error.__cause__
    try:
        raise error from cause
    except BaseException:  # noqa: BLE001  (it is ours, raised to get a traceback)
        return ExceptionInfo()
    finally:
        # The record has a copy. This one would keep our callers alive, and the error with them.
        error.__traceback__ = None


def signal_number(value: object) -> int:
    """Return the number of a signal that Celery names by its number or its name.

    Raises:
        ValueError: no signal.
    """
    if isinstance(value, str):
        name = value.upper()
        try:
            return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
        except KeyError:
            raise ValueError(f"signal must be a signal, not {value!r}") from None
    if value is None:
        return signal.SIGTERM
    number = int(value)  # type: ignore[call-overload]
    if number not in signal.valid_signals():
        raise ValueError(f"signal must be a signal, not {value!r}")
    return int(number)
