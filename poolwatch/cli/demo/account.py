"""The books of a crawl.

Every page is booked twice, independently: when it is found, and when its job ends. The account adds
up if the two sides agree, in number and, page by page, in how the job ended.
"""

from __future__ import annotations

import enum
import multiprocessing.pool
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from poolwatch.cli.demo.faults import Fault, PlannedError
from poolwatch.cli.demo.pages import ErrorPageError, FetchError, FetchTimeoutError, Page
from poolwatch.cli.demo.records import Ended
from poolwatch.exceptions import (
    MaybeEncodingError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)


class Cause(enum.Enum):
    """Why a page was not parsed."""

    SIGABRT = "worker lost: SIGABRT"
    SIGSEGV = "worker lost: SIGSEGV"
    SIGKILL = "worker lost: SIGKILL"
    LOST = "worker lost: otherwise"
    TIME_LIMIT = "hard time limit"
    RAISED = "planned exception"
    UNPICKLABLE = "result not picklable"
    FETCH_TIMEOUT = "fetch timed out"
    FETCH_FAILED = "fetch failed"
    ERROR_PAGE = "server cannot show it"
    STOPPED = "stopped with the pool"
    OTHER = "another error"


_EXPECTED = {
    Fault.ABORT: Cause.SIGABRT,
    Fault.SEGFAULT: Cause.SIGSEGV,
    Fault.KILL: Cause.SIGKILL,
    Fault.HANG: Cause.TIME_LIMIT,
    Fault.RAISE: Cause.RAISED,
    Fault.UNPICKLABLE: Cause.UNPICKLABLE,
}
_LOST_BY_SIGNAL: dict[int | None, Cause] = {
    signal.SIGABRT: Cause.SIGABRT,
    signal.SIGSEGV: Cause.SIGSEGV,
    signal.SIGKILL: Cause.SIGKILL,
}
_BY_CLASS: tuple[tuple[type[BaseException], Cause], ...] = (
    (TimeLimitExceeded, Cause.TIME_LIMIT),
    (Terminated, Cause.STOPPED),
    (MaybeEncodingError, Cause.UNPICKLABLE),
    # typeshed does not know the class
    (multiprocessing.pool.MaybeEncodingError, Cause.UNPICKLABLE),  # type: ignore[attr-defined]
    (PlannedError, Cause.RAISED),
    (FetchTimeoutError, Cause.FETCH_TIMEOUT),
    (FetchError, Cause.FETCH_FAILED),
    (ErrorPageError, Cause.ERROR_PAGE),
)
# A fetch that fails comes before the fault that was planned for the handler, and takes its place.
_BEFORE_THE_FAULT = frozenset({Cause.FETCH_TIMEOUT, Cause.FETCH_FAILED})
_ORDINARY = _BEFORE_THE_FAULT | {Cause.ERROR_PAGE}


def cause_of(error: BaseException) -> Cause:
    """Return the cause that a job's error is booked under."""
    if isinstance(error, WorkerLostError):
        return _LOST_BY_SIGNAL.get(error.signal, Cause.LOST)
    for kind, cause in _BY_CLASS:
        if isinstance(error, kind):
            return cause
    return Cause.OTHER


@dataclass(slots=True)
class FaultLine:
    """One kind of planned fault: what was planned, and what came of it.

    Attributes:
        fault: The kind.
        cause: What it should be booked under.
        planned: Pages found whose handler was to commit it.
        observed: Those that ended with ``cause``.
        forestalled: Those whose fetch failed, so that the handler never got so far.
    """

    fault: Fault
    cause: Cause
    planned: int = 0
    observed: int = 0
    forestalled: int = 0

    @property
    def adds_up(self) -> bool:
        """Whether every planned fault is accounted for."""
        return self.planned == self.observed + self.forestalled


@dataclass(slots=True)
class Account:
    """What a crawl has found, and how it ended.

    Attributes:
        workers_asked: Workers that the pool was asked for.
        workers_alive: Workers alive after the crawl, before the pool was stopped.
        site_exit: How the server has ended before it was told to; None if it has not.
        left_behind: Processes still alive after the cleaning up.
        beyond: Further pages that were seen when the bound on pages had been reached.
        parsed: Pages parsed.
        characters: Their length together.
        failed: Pages failed, by cause.
        lines: One line for each kind of planned fault.
        losses: The errors of lost workers.
        surprises: One sentence for each end that was neither planned nor ordinary.
    """

    workers_asked: int
    workers_alive: int = 0
    site_exit: int | None = None
    left_behind: list[int] = field(default_factory=list)
    beyond: int = 0
    parsed: int = 0
    characters: int = 0
    failed: Counter[Cause] = field(default_factory=Counter)
    lines: dict[Fault, FaultLine] = field(
        default_factory=lambda: {fault: FaultLine(fault, _EXPECTED[fault]) for fault in Fault}
    )
    losses: list[WorkerLostError] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    _found: dict[str, Fault | None] = field(default_factory=dict)
    _unended: dict[str, Fault | None] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """Pages found, within the bound."""
        return len(self._found)

    @property
    def ended(self) -> int:
        """Jobs that have ended, well or not."""
        return self.parsed + self.failed.total()

    @property
    def unended(self) -> int:
        """Pages found whose job has not ended."""
        return len(self._unended)

    def unended_pages(self) -> Iterator[tuple[str, Fault | None]]:
        """Yield those pages, each with the fault planned for it."""
        yield from self._unended.items()

    def find(self, path: str, fault: Fault | None) -> None:
        """Book a page that is found, with the fault planned for it."""
        self._found[path] = self._unended[path] = fault
        if fault is not None:
            self.lines[fault].planned += 1

    def end(self, event: Ended) -> None:
        """Book the end of a page's job."""
        if event.path not in self._unended:
            self.surprises.append(f"{event.path} ended, but it was not under way")
        self._unended.pop(event.path, None)
        if event.error is not None:
            self._fail(event.path, event.error)
        else:
            self._parse(event.path, event.result)

    def problems(self) -> Iterator[str]:
        """Yield one sentence for everything that does not add up."""
        if self.unended:
            yield f"{self.unended} pages never ended; the pool did not say why"
        elif self.found != self.ended:
            yield f"{self.found} pages found, but {self.ended} ended"
        if not self.parsed:
            yield "not one page was parsed"
        for line in self.lines.values():
            if not line.adds_up:
                yield f"{line.planned} x {line.fault.value} planned, {line.observed} observed"
        yield from self.surprises
        if self.workers_alive != self.workers_asked:
            yield f"{self.workers_asked} workers asked for, {self.workers_alive} alive"
        if self.site_exit is not None:
            yield f"the documentation server ended by itself, with status {self.site_exit}"
        if self.left_behind:
            yield f"processes left behind: {', '.join(map(str, self.left_behind))}"

    def _parse(self, path: str, result: object) -> None:
        self.parsed += 1
        fault = self._found.get(path)
        if not isinstance(result, Page):
            self.surprises.append(f"{path} returned {type(result).__name__}")
        elif fault is not None:
            self.surprises.append(f"{path} was parsed, but its handler was to {fault.value}")
        else:
            self.characters += result.size

    def _fail(self, path: str, error: BaseException) -> None:
        cause = cause_of(error)
        self.failed[cause] += 1
        if isinstance(error, WorkerLostError):
            self.losses.append(error)
        fault = self._found.get(path)
        if fault is None:
            if cause not in _ORDINARY:
                self.surprises.append(f"{path} failed unplanned: {describe(error)}")
        elif cause is _EXPECTED[fault]:
            self.lines[fault].observed += 1
        elif cause in _BEFORE_THE_FAULT:
            self.lines[fault].forestalled += 1
        else:
            self.surprises.append(f"{path} was to {fault.value}, but: {describe(error)}")


def by_cause(failed: Counter[Cause]) -> Iterator[tuple[Cause, int]]:
    """Yield the causes that have occurred, always in the same order, each with its pages."""
    return ((cause, failed[cause]) for cause in Cause if failed[cause])


def describe(error: BaseException) -> str:
    """Return an error's class and the first line of its text."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
