"""What errors and log lines say: enough to find the line of the program that is meant."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import threading
import urllib.error
from email.message import Message
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, eventually

from poolwatch import MaybeEncodingError, Pool, ProcessPoolExecutor, WorkerLostError, events
from poolwatch.aio import AsyncPool

pytestmark = pytest.mark.timeout(40)


# -- names of arguments ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("max_workers", "processes"),
        ("n_jobs", "processes"),
        ("mp_context", "context"),
        ("max_tasks", "maxtasksperchild"),
    ],
)
def test_pool_hints_at_its_own_names(given: str, meant: str) -> None:
    """Those of an executor are known, others are compared."""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{given}'") as caught:
        Pool(**{given: 2})
    assert meant in str(caught.value) or given == "max_tasks"
    with pytest.raises(TypeError, match="did you mean 'maxtasksperchild'"):
        Pool(maxtaskperchild=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'processes'"):
        AsyncPool(max_workers=2)  # type: ignore[call-arg]


def test_memory_limit_in_words_is_refused_with_its_unit() -> None:
    """``1G`` is understood by other tools."""
    with pytest.raises(TypeError, match=r"^memory_limit must be a whole number of bytes, not '1G'"):
        Pool(memory_limit="1G")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("processes", "max_workers"),
        ("context", "mp_context"),
        ("maxtasksperchild", "max_tasks_per_child"),
        ("maxworkers", "max_workers"),
        ("n_jobs", "max_workers"),
        ("capture_stder", "capture_stderr"),
    ],
)
def test_executor_hints_at_its_own_names(given: str, meant: str) -> None:
    """Those of a pool, and what is like one of its own or of the options that it passes on."""
    refused = rf"^ProcessPoolExecutor\(\) .* '{given}'; did you mean '{meant}'"
    with pytest.raises(TypeError, match=refused):
        ProcessPoolExecutor(**{given: 2})


def test_calls_hint_at_their_names(make_pool: Any) -> None:
    """Of arguments, and of where a limit is given."""
    pool = make_pool(1)
    for method in (pool.apply_async, pool.apply):
        with pytest.raises(TypeError, match="'kwargs'; did you mean 'kwds'"):
            method(work.square, (1,), kwargs={})
    with pytest.raises(TypeError, match="did you mean 'timeout'"):
        pool.apply_async(work.square, (1,), time_out=3)
    for method in (pool.map, pool.starmap, pool.imap, pool.map_async):
        with pytest.raises(TypeError, match=r"'timeout'; a limit for each item .* Pool\(timeout="):
            method(work.square, [1], timeout=3)
    with pytest.raises(TypeError, match=r"apply_async\(..., timeout=...\) takes it"):
        pool.apply(work.square, (1,), timeout=3)
    assert pool.apply(work.square, (3,)) == 9


# -- coroutine functions ---------------------------------------------------------------------


async def fetch(number: int) -> int:
    return number


async def count() -> Any:
    yield 1


class Site:
    async def fetch(self) -> None:
        """A method may be one as well."""


@pytest.mark.parametrize("func", [fetch, count, functools.partial(fetch, 1), Site().fetch])
def test_coroutine_functions_are_no_jobs(make_pool: Any, func: Any) -> None:
    """All faces say so at the call."""
    pool = make_pool(1)
    executor = ProcessPoolExecutor.from_pool(pool)
    calls = [
        lambda: pool.apply_async(func),
        lambda: pool.apply(func),
        lambda: pool.map(func, [1]),
        lambda: pool.starmap_async(func, [(1,)]),
        lambda: pool.imap(func, [1]),
        lambda: executor.submit(func),
        lambda: executor.map(func, [1]),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="not the coroutine function"):
            call()

    async def in_loop() -> None:
        async_pool = AsyncPool.from_pool(pool)
        for awaitable in (async_pool.apply(func), async_pool.map(func, [1])):
            with pytest.raises(TypeError, match="not the coroutine function"):
                await awaitable
        with pytest.raises(TypeError, match="not the coroutine function"):
            async_pool.imap(func, [1])

    asyncio.run(in_loop())


# -- pickling --------------------------------------------------------------------------------


def said(error: BaseException) -> str:
    """An error's text with its notes, which there are from Python 3.11 on."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def test_what_does_not_pickle_is_named(make_pool: Any) -> None:
    """Function, argument, and of a map the item; the class stays."""
    pool, lock = make_pool(1), threading.Lock()
    executor = ProcessPoolExecutor.from_pool(pool)
    errors = [
        pool.apply_async(work.square, (1, lock)),
        executor.submit(work.square, 1, lock),
    ]
    for error in (errors[0]._job.result()[1], errors[1].exception(DEADLINE)):
        assert type(error) is TypeError
        assert "cannot pickle '_thread.lock' object" in str(error)
        assert "the call of square, for its argument 1, of type lock" in said(error)
    with pytest.raises(TypeError) as caught:
        pool.apply(work.square, (), {"number": lock})
    assert "the call of square, for its number, of type lock" in said(caught.value)
    for size in (1, 2):
        with pytest.raises(TypeError) as caught:
            pool.map(work.square, [1, 2, lock, 4], chunksize=size)
        assert "the call of square, item 2 of its map" in said(caught.value)
    results = pool.imap(work.square, [1, lock])
    assert next(results) == 1
    with pytest.raises(TypeError) as caught:
        next(results)
    assert "item 1 of its map" in said(caught.value)
    if sys.version_info >= (3, 11):
        assert str(caught.value) == "cannot pickle '_thread.lock' object"


def not_found() -> None:
    with open("/dev/null", "rb") as response:
        raise urllib.error.HTTPError("http://localhost/", 404, "Not Found", Message(), response)


def test_exception_that_does_not_pickle_says_why(make_pool: Any) -> None:
    """An HTTPError holds an open response."""
    with pytest.raises(MaybeEncodingError) as caught:
        make_pool(1).apply(not_found)
    text = str(caught.value)
    assert "404" in text
    assert "Reason: the exception cannot be pickled: TypeError(" in text


# -- callbacks -------------------------------------------------------------------------------


class Told:
    """A callback that raises."""

    def fails(self, value: object) -> None:
        raise ZeroDivisionError("in the callback")


@pytest.mark.parametrize(
    ("options", "role"),
    [
        ({"callback": Told().fails}, "callback"),
        ({"error_callback": Told().fails}, "error_callback"),
    ],
)
def test_callback_that_raises_is_named(
    make_pool: Any, caplog: pytest.LogCaptureFixture, options: dict[str, Any], role: str
) -> None:
    """The line in the log names callback and job, and has the traceback; so has the event."""
    pool, seen = make_pool(1), []
    pool.listen(seen.append, events.HookFailed)
    func, args = (work.square, (3,)) if role == "callback" else (int, ("x",))
    with caplog.at_level(logging.ERROR, "poolwatch"):
        job = pool.apply_async(func, args, **options)
        job.wait(DEADLINE)
        eventually(lambda: seen)
    (record,) = [r for r in caplog.records if "ZeroDivisionError" in r.getMessage()]
    line = f"{role} Told.fails of job {job.job_id} {func.__name__} raised ZeroDivisionError"
    assert line in record.getMessage()
    assert record.exc_info is not None
    assert "in fails" in caplog.text
    (event,) = seen
    assert (event.hook, event.callback, event.job_id, event.job) == (
        role,
        "Told.fails",
        job.job_id,
        func.__name__,
    )
    assert record.poolwatch["callback"] == "Told.fails"  # type: ignore[attr-defined]


def test_callback_of_a_map_that_raises_is_named(
    make_pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A map is many jobs."""
    pool = make_pool(1)
    with caplog.at_level(logging.ERROR, "poolwatch"):
        pool.map_async(work.square, [1, 2], callback=Told().fails).wait(DEADLINE)
        pool.map_async(int, ["x"], error_callback=Told().fails).wait(DEADLINE)
        eventually(lambda: len(caplog.records) >= 2)
    assert "poolwatch: callback Told.fails raised" in caplog.text
    assert "poolwatch: error_callback Told.fails raised" in caplog.text


def test_partial_has_the_name_of_its_function(make_pool: Any) -> None:
    """In errors, and for policies that decide by the name."""
    pool = make_pool(1)
    job = pool.apply_async(functools.partial(functools.partial(faults.kill_self), 9))
    with pytest.raises(WorkerLostError, match="kill_self") as caught:
        job.get(DEADLINE)
    assert caught.value.postmortem.job == "kill_self"
