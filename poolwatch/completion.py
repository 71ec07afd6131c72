"""Waiting for several results at a time: ``as_completed`` and ``wait``.

Each result gets a *bell*, which whoever ends the job rings in the place of the lock of a thread
that waits for that one result. All bells of a call belong to one *desk*, where the thread sleeps.
So there is no thread per result, and nothing looks again and again.
"""

from __future__ import annotations

import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from typing import Any, NamedTuple

from poolwatch import checks
from poolwatch.exceptions import TimeoutError
from poolwatch.map_results import MapResult
from poolwatch.results import ApplyResult
from poolwatch.sleep import acquire

Result = ApplyResult[Any] | MapResult[Any]


class Done(NamedTuple):
    """What :func:`wait` returns (as ``concurrent.futures.wait``).

    Attributes:
        done: the results that have ended.
        not_done: the others.
    """

    done: set[Result]
    not_done: set[Result]


class _Desk:
    """Where one thread waits for the bells of many results."""

    def __init__(self) -> None:
        self.rung: deque[Result] = deque()
        self._sleep = allocate_lock()
        self._sleep.acquire()

    def ring(self, result: Result) -> None:
        """A result has ended. Any thread, the supervisor's too: takes no lock."""
        self.rung.append(result)
        try:
            self._sleep.release()
        except RuntimeError:
            pass  # it is awake already

    def wait(self, timeout: float | None) -> None:
        """Sleep until a bell rings; in vain wake-ups are possible."""
        acquire(self._sleep, timeout)


class _Bell:
    """A ``job.Waiter`` for one result."""

    __slots__ = ("_desk", "_result", "_waiting")

    def __init__(self, desk: _Desk, result: Result) -> None:
        self._desk = desk
        self._result = result
        self._waiting = True

    def locked(self) -> bool:
        """Return True until it has been rung."""
        return self._waiting

    def release(self) -> None:
        """The result has ended."""
        self._waiting = False
        self._desk.ring(self._result)


def as_completed(results: Iterable[Result], timeout: float | None = None) -> Iterator[Result]:
    """Return an iterator that yields each result when it has ended.

    As ``concurrent.futures.as_completed``: a result that is given twice is yielded once, and those
    that have ended already come first. The results may belong to several pools. A job counts as
    ended when its callbacks have run.

    Args:
        results: what ``apply_async``, ``map_async`` and ``starmap_async`` returned.
        timeout: seconds from this call on; None to wait until all have ended.

    Raises:
        TypeError: something else among the results, at the call.
        TimeoutError: not all have ended by then; raised by the iterator (as ``get(timeout)``).
        RuntimeError: a result that has not ended belongs to a pool of the parent process.
    """
    unique = _unique(results)
    deadline = None if timeout is None else time.monotonic() + _seconds(timeout)
    return _as_completed(unique, deadline, timeout)


def _as_completed(
    pending: dict[Result, None], deadline: float | None, timeout: float | None
) -> Iterator[Result]:
    total = len(pending)
    desk = _Desk()
    bells = _hang_up(desk, pending)
    try:
        while pending:
            while desk.rung:
                result = desk.rung.popleft()
                del pending[result]
                yield result
                del result  # not kept while the next one is waited for
            if pending:
                rest = _rest(deadline)
                if rest == 0.0 and not desk.rung:
                    raise TimeoutError(
                        f"{len(pending)} (of {total}) results have not ended after {timeout:g} s"
                    )
                desk.wait(rest)
    finally:
        _take_down(bells)


def wait(
    results: Iterable[Result], timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> Done:
    """Wait for several results (as ``concurrent.futures.wait``).

    Args:
        results: as for :func:`as_completed`.
        timeout: seconds; None to wait as long as it takes.
        return_when: ``concurrent.futures.FIRST_COMPLETED``, ``FIRST_EXCEPTION`` (which includes
            losses and results that do not unpickle) or ``ALL_COMPLETED``.

    Returns:
        The results that have ended, and the others; no error when the time is up.

    Raises:
        TypeError: something else among the results.
        ValueError: ``return_when`` is none of the three.
        RuntimeError: as for :func:`as_completed`.
    """
    if return_when not in (FIRST_COMPLETED, FIRST_EXCEPTION, ALL_COMPLETED):
        raise ValueError(f"return_when must be one of concurrent.futures', not {return_when!r}")
    pending = _unique(results)
    done: set[Result] = set()
    desk = _Desk()
    deadline = None if timeout is None else time.monotonic() + _seconds(timeout)
    bells = _hang_up(desk, pending)
    try:
        while pending:
            failed = False
            while desk.rung:
                result = desk.rung.popleft()
                del pending[result]
                done.add(result)
                failed |= return_when == FIRST_EXCEPTION and not result.successful()
            rest = _rest(deadline)
            if failed or (done and return_when == FIRST_COMPLETED) or not pending or rest == 0.0:
                break
            desk.wait(rest)
    finally:
        _take_down(bells)
    return Done(done, set(pending))


def _unique(results: Iterable[Result]) -> dict[Result, None]:
    unique = dict.fromkeys(results)
    for result in unique:
        if not isinstance(result, (ApplyResult, MapResult)):
            raise TypeError(
                f"results must hold results of apply_async or map_async, not {result!r}"
            )
    return unique


def _seconds(timeout: float) -> float:
    return checks.seconds("timeout", timeout, negative=True)


def _rest(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _hang_up(desk: _Desk, results: dict[Result, None]) -> dict[Result, _Bell]:
    """Give each result a bell; those that have ended ring at once."""
    for result in results:
        if not result.ready():
            result._check_may_wait()
    bells = {result: _Bell(desk, result) for result in results}
    for result, bell in bells.items():
        result._add_waiter(bell)
    return bells


def _take_down(bells: dict[Result, _Bell]) -> None:
    for result, bell in bells.items():
        if bell.locked():
            result._remove_waiter(bell)
