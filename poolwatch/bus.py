"""Takes events from the heart to the log and to listeners.

Listeners are called on the delivery thread, in order; the supervisor never waits for them. The
queue to them is bounded, and what does not fit is counted.

An event for which there is neither a line in the log nor a listener is not even made. Those that
come with every job are told apart from the others: a listener that does not ask for them costs the
jobs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from poolwatch import events
from poolwatch.delivery import Delivery
from poolwatch.events import Event
from poolwatch.loss import human_status
from poolwatch.transport.codec import safe_repr

logger = logging.getLogger("poolwatch")

_BOUND = 10_000  # events that may wait for slow listeners, of either sort
_ROUTINE = (events.JobMoved, events.JobProcessDown)

Listener = Callable[[Any], object]
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_LEVELS: dict[type[Event], int] = {
    events.JobLost: logging.ERROR,
    events.JobRetried: logging.WARNING,
    events.JobTimedOut: logging.WARNING,
    events.JobOutgrew: logging.WARNING,
    events.JobStalled: logging.WARNING,
    events.WorkerStalled: logging.WARNING,
    events.PoolStalled: logging.ERROR,
    events.WorkerUp: logging.DEBUG,
    events.WorkerRecycled: logging.INFO,
    events.WorkerDown: logging.INFO,
    events.BootFailed: logging.ERROR,
    events.Trouble: logging.WARNING,
    events.HookFailed: logging.ERROR,
    events.PoolBroke: logging.CRITICAL,
}


@dataclass(frozen=True, slots=True, eq=False)
class _Registration:
    callback: Listener
    kinds: tuple[type[Event], ...]


class Bus:
    """Takes events from the heart to the log and to listeners.

    Attributes:
        pool: name of the pool.
        follows_jobs: somebody listens to what comes with every job.
        wants_starts: somebody wants to hear of each job that it has begun.
        dropped: events that did not fit the queue to the listeners.
    """

    def __init__(self, pool: str, delivery: Delivery) -> None:
        self.pool = pool
        self.follows_jobs = False
        self.wants_starts = False
        self.dropped = 0
        self._delivery = delivery
        self._listeners: tuple[_Registration, ...] = ()
        self._waiting = [0, 0]  # events that happen rarely, and those that come with every job

    def listen(self, callback: Listener, *kinds: type[Event]) -> Callable[[], None]:
        """Call back with events from now on; see ``Pool.listen``."""
        registration = _Registration(callback, kinds or (Event,))

        def stop() -> None:
            self._listeners = tuple(own for own in self._listeners if own is not registration)
            self._look_who_listens()

        self._listeners = (*self._listeners, registration)
        self._look_who_listens()
        return stop

    def _look_who_listens(self) -> None:
        kinds = [kind for listener in self._listeners for kind in listener.kinds]
        self.follows_jobs = any(
            issubclass(kind, events.JobMoved) or issubclass(events.JobMoved, kind) for kind in kinds
        )
        self.wants_starts = any(issubclass(events.JobStarted, kind) for kind in kinds)

    def is_heard(self, kind: type[Event]) -> bool:
        """Return True when an event of this kind is of any use."""
        return kind in _LEVELS or any(
            issubclass(kind, listener.kinds) for listener in self._listeners
        )

    def emit(self, event: Event) -> None:
        """Log an event and hand it to the listeners; never blocks on them.

        Logging itself happens on the delivery thread too: a handler's lock may be held by anybody.
        """
        if not self.is_heard(type(event)):
            return
        # Apart: what comes with every job must not push out what happens rarely.
        is_routine = isinstance(event, _ROUTINE)
        if self._waiting[is_routine] >= _BOUND:
            self.dropped += 1
            return
        self._waiting[is_routine] += 1
        self._delivery.put(lambda: self._deliver(event))

    def emit_here(self, event: Event) -> None:
        """Do what :meth:`emit` does, at once; on the delivery thread only."""
        self._waiting[isinstance(event, _ROUTINE)] += 1
        self._deliver(event)

    def _deliver(self, event: Event) -> None:
        self._waiting[isinstance(event, _ROUTINE)] -= 1
        try:
            _log(event)
        except BaseException:  # noqa: BLE001  (the user's handlers and filters)
            pass  # there is no other log to tell of that; the listeners must hear all the same
        for listener in self._listeners:
            if not isinstance(event, listener.kinds):
                continue
            try:
                listener.callback(event)
            except BaseException:  # noqa: BLE001  (the user's; reported)
                self._complain()

    def _complain(self) -> None:
        try:
            logger.exception("%s: a listener raised", self.pool)
        except BaseException:  # noqa: BLE001  (the user's handlers and filters)
            pass


def _log(event: Event) -> None:
    """Log an event: one line, its fields in ``extra``, a stack where a stack belongs."""
    level = _LEVELS.get(type(event))
    if level is None or not logger.isEnabledFor(level):
        return
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    values["event"] = type(event).__name__
    extra = {"poolwatch": values}
    stack = values.get("stack")
    record_of_death = values.get("postmortem")
    if record_of_death is not None:
        stack = record_of_death.traceback
        extra["postmortem"] = record_of_death
    record = logger.makeRecord(
        logger.name,
        level,
        __file__,
        0,
        "%s: %s",
        (event.pool, describe(event)),
        _exc_info(event),
        _log.__name__,
        extra,
        str(stack) if stack else None,
    )
    logger.handle(record)


def _exc_info(event: Event) -> _ExcInfo | None:
    if not isinstance(event, events.HookFailed):
        return None
    return type(event.error), event.error, event.error.__traceback__


def describe(event: Event) -> str:
    """Put an event into words, one line."""
    match event:
        case events.JobMoved(_, job_id, job, old, new):
            return f"job {job_id} {job}: {old} -> {new}"
        case events.JobLost(_, job_id, job, postmortem):
            return f"job {job_id} {job} lost: {postmortem.summary()}"
        case events.JobRetried(_, job_id, job, after, postmortem):
            return f"job {job_id} {job} lost, again in {after:g} s: {postmortem.summary()}"
        case events.JobTimedOut(_, job_id, job, soft, timeout):
            kind = "soft" if soft else "hard"
            return f"job {job_id} {job} hit its {kind} limit of {timeout:g} s"
        case events.JobOutgrew(_, job_id, job, limit, rss):
            mib = f"{rss / 2**20:.0f} MiB, limit {limit / 2**20:.0f} MiB"
            return f"job {job_id} {job} grew beyond its memory limit: {mib}"
        case events.Stalled(_, text):
            return text
        case events.WorkerUp(_, worker, pid):
            return f"worker {worker} (pid {pid}) is up"
        case events.WorkerRecycled(_, worker, pid):
            return f"worker {worker} (pid {pid}) has left"
        case events.WorkerDown(_, worker, pid, exitcode, _, verdict):
            return f"worker {worker} (pid {pid}) died: {human_status(exitcode)}; {verdict}"
        case events.BootFailed(_, worker, pid, failures, reason):
            return f"worker {worker} (pid {pid}) did not boot ({failures} in a row): {reason}"
        case events.Trouble(_, text):
            return text
        case events.HookFailed(_, hook, error, callback, job_id, job):
            named = hook if callback is None else f"{hook} {callback}"
            of_job = "" if job_id is None else f" of job {job_id} {job}"
            return f"{named}{of_job} raised {safe_repr(error)}"
        case events.PoolBroke(_, error):
            return f"the pool is broken: {safe_repr(error)}"
        case _:
            return repr(event)
