"""What happens in a pool, as frozen records, for listeners and for the log.

Listeners are called on the delivery thread, in order; the supervisor never waits for them. The
queue to them is bounded, and what does not fit is counted in ``Bus.dropped``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields

from poolwatch.delivery import Delivery
from poolwatch.loss import Postmortem

logger = logging.getLogger("poolwatch")

_BOUND = 10_000  # events that may wait for slow listeners


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events.

    Attributes:
        pool: name of the pool.
    """

    pool: str


@dataclass(frozen=True, slots=True)
class JobMoved(Event):
    """A job went from one state to another (see ``JobState``)."""

    job_id: int
    job: str
    old: str
    new: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class JobProcessDown(Event):
    """The process that held a job has ended; what that means for the job comes next."""

    job_id: int
    job: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class JobLost(Event):
    """A worker died while it ran a job, and the job has ended for it."""

    job_id: int
    job: str
    postmortem: Postmortem


@dataclass(frozen=True, slots=True)
class JobRetried(Event):
    """A worker died while it ran a job, and the policy has the job started again."""

    job_id: int
    job: str
    after: float
    postmortem: Postmortem


@dataclass(frozen=True, slots=True)
class JobTimedOut(Event):
    """A limit was hit: the hard one (the worker was killed) or the soft one."""

    job_id: int
    job: str
    soft: bool
    timeout: float
    stack: str | None = None


@dataclass(frozen=True, slots=True)
class JobsRecalled(Event):
    """Jobs that a worker held and had not begun were given to others."""

    worker: str
    count: int


@dataclass(frozen=True, slots=True)
class WorkerUp(Event):
    """A worker has booted and takes jobs."""

    worker: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class WorkerDown(Event):
    """A worker process has ended.

    Attributes:
        expected: it was recycled or told to leave.
    """

    worker: str
    pid: int | None
    exitcode: int | None
    expected: bool


@dataclass(frozen=True, slots=True)
class BootFailed(Event):
    """A worker died, or its initializer raised, before it could take a job."""

    worker: str
    pid: int | None
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class Trouble(Event):
    """Something is wrong that the pool deals with by itself: fork fails, replacements are paced."""

    text: str


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """A callback, hook, listener or policy of the user's raised."""

    hook: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class PoolBroke(Event):
    """The pool cannot go on."""

    error: BaseException


_LEVELS: dict[type[Event], int] = {
    JobLost: logging.ERROR,
    JobRetried: logging.WARNING,
    JobTimedOut: logging.WARNING,
    WorkerUp: logging.DEBUG,
    WorkerDown: logging.INFO,
    BootFailed: logging.ERROR,
    Trouble: logging.WARNING,
    HookFailed: logging.ERROR,
    PoolBroke: logging.CRITICAL,
}


class Bus:
    """Takes events from the heart to the log and to listeners.

    Attributes:
        listening: somebody listens; events that nobody logs are not even made otherwise.
        dropped: events that did not fit the queue to the listeners.
    """

    def __init__(self, pool: str, delivery: Delivery) -> None:
        self.pool = pool
        self.listening = False
        self.dropped = 0
        self._delivery = delivery
        self._listeners: list[Callable[[Event], object]] = []
        self._waiting = 0

    def listen(self, callback: Callable[[Event], object]) -> None:
        """Call back with every event from now on."""
        self._listeners = [*self._listeners, callback]
        self.listening = True

    def emit(self, event: Event) -> None:
        """Log an event and hand it to the listeners; never blocks on them.

        Logging itself happens on the delivery thread too: a handler's lock may be held by anybody.
        """
        if not self.listening and type(event) not in _LEVELS:
            return
        if self._waiting >= _BOUND:
            self.dropped += 1
            return
        self._waiting += 1
        self._delivery.put(lambda: self._deliver(event))

    def emit_here(self, event: Event) -> None:
        """Do what :meth:`emit` does, at once; on the delivery thread only."""
        self._waiting += 1
        self._deliver(event)

    def _deliver(self, event: Event) -> None:
        self._waiting -= 1
        level = _LEVELS.get(type(event))
        if level is not None and logger.isEnabledFor(level):
            extra = {name: value for name, value in _values(event).items() if name != "pool"}
            logger.log(level, "%s: %s", event.pool, describe(event), extra={"poolwatch": extra})
        for listener in self._listeners:
            try:
                listener(event)
            except BaseException:
                logger.exception("%s: a listener raised", self.pool)


def _values(event: Event) -> dict[str, object]:
    return {field.name: getattr(event, field.name) for field in fields(event)}


def describe(event: Event) -> str:
    """Put an event into words, one line (a postmortem may add more)."""
    match event:
        case JobLost(_, job_id, job, postmortem):
            return f"job {job_id} {job} lost: {postmortem}"
        case JobRetried(_, job_id, job, after, postmortem):
            return f"job {job_id} {job} lost, again in {after:g} s: {postmortem}"
        case JobTimedOut(_, job_id, job, soft, timeout, stack):
            kind = "soft" if soft else "hard"
            text = f"job {job_id} {job} hit its {kind} limit of {timeout:g} s"
            return f"{text}; it was at:\n{stack}" if stack else text
        case WorkerUp(_, worker, pid):
            return f"worker {worker} (pid {pid}) is up"
        case WorkerDown(_, worker, pid, exitcode, expected):
            how = "left" if expected else "died"
            return f"worker {worker} (pid {pid}) {how}, exit code {exitcode}"
        case BootFailed(_, worker, pid, failures, reason):
            return f"worker {worker} (pid {pid}) did not boot ({failures} in a row): {reason}"
        case Trouble(_, text):
            return text
        case HookFailed(_, hook, error):
            return f"{hook} raised {error!r}"
        case PoolBroke(_, error):
            return f"the pool is broken: {error!r}"
        case _:
            return repr(event)
