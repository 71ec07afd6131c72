"""Log records of workers, handled by the parent's loggers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import child_work
import pytest
from helpers import DEADLINE, bounded, eventually, outcome

from poolwatch import log_relay
from poolwatch.transport import relay


class Kept(logging.Handler):
    """Keeps the records that it is given; may be told to wait at a gate first."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.gate = threading.Event()
        self.gate.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.gate.wait(DEADLINE)
        self.records.append(record)

    def texts(self) -> list[str]:
        return [each.getMessage() for each in self.records if each.name.startswith("child_work")]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler at the parent's root logger."""
    handler, root = Kept(), logging.getLogger()
    root.addHandler(handler)
    yield handler
    handler.gate.set()
    root.removeHandler(handler)


def ended(pool: Any) -> None:
    """All that workers have logged has been handled when this returns."""
    pool.close()
    bounded(pool.join)


@pytest.mark.every_start_method
def test_records_are_handled_in_the_parent(make_pool: Any, kept: Kept) -> None:
    """Of the initializer and of jobs: names, levels, values, exceptions as text, whose they are."""
    pool = make_pool(1, child_work.log_from_initializer, relay_logs=True)
    pool.apply(child_work.log_all_kinds)
    pid, name = pool.apply(os.getpid), pool.workers[0].name
    ended(pool)
    records = [record for record in kept.records if record.name == child_work.log.name]
    assert [record.getMessage() for record in records] == [
        "from the initializer",
        "plain args of 2",
        "odd <an unpicklable>",
        "an exception",
    ]
    assert {(record.process, record.processName) for record in records} == {(pid, name)}
    _, plain, odd, raised = records
    assert (plain.args, plain.order, plain.rich) == (("args", 2), 7, {1, 2})  # type: ignore[attr-defined]
    assert odd.odd == "<an unpicklable>"  # type: ignore[attr-defined]
    assert raised.exc_info is None
    assert "ValueError: told as text" in (raised.exc_text or "")
    assert "log_all_kinds" in (raised.exc_text or "")


def test_level_decides_what_travels(make_pool: Any, kept: Kept) -> None:
    """From DEBUG on, what the parent lets pass; from ERROR on, nothing below."""
    logger = logging.getLogger("child_work")
    logger.setLevel(logging.DEBUG)
    try:
        low = make_pool(1, relay_logs=logging.DEBUG)
        low.apply(child_work.log_all_kinds)
        ended(low)
        assert kept.texts()[0] == "too low"
        kept.records.clear()
        high = make_pool(1, relay_logs=logging.ERROR)
        high.apply(child_work.log_all_kinds)
        ended(high)
        assert kept.texts() == ["an exception"]
    finally:
        logger.setLevel(logging.NOTSET)


def test_levels_and_filters_of_the_parent_apply(make_pool: Any, kept: Kept) -> None:
    """The logger of the same name decides at the time that the record comes in."""
    pool = make_pool(1, relay_logs=True)
    pool.apply(os.getpid)
    logger = logging.getLogger(child_work.log.name)
    logger.setLevel(logging.ERROR)
    refuse = logging.Filter("nobody")
    logger.addFilter(refuse)
    try:
        pool.apply(child_work.log_all_kinds)  # below the level, or refused
        pool.apply(child_work.log_once, ("child_work.other", "of another logger"))
        ended(pool)
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeFilter(refuse)
    assert kept.texts() == ["of another logger"]


def test_inherited_handlers_do_not_handle_a_record_twice(make_pool: Any, capfd: Any) -> None:
    """A handler that forked workers have inherited writes once, in the parent."""
    logger = logging.getLogger("child_work.own")
    handler = logging.StreamHandler()  # stderr, which parent and workers share
    logger.addHandler(handler)
    logger.propagate = False
    try:
        pool = make_pool(1, relay_logs=True)
        pool.apply(child_work.log_once, ("child_work.own", "only once"))
        ended(pool)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    assert capfd.readouterr().err.count("only once") == 1


def test_loggers_of_workers_do_not_fill_the_parent(make_pool: Any, kept: Kept) -> None:
    """Records of loggers that do not exist here are handled, and no logger is made for them."""
    pool = make_pool(1, relay_logs=True)
    for number in range(5):
        pool.apply(child_work.log_once, (f"child_work.unheard.of{number}", f"text {number}"))
    ended(pool)
    assert kept.texts() == [f"text {number}" for number in range(5)]
    assert not [name for name in logging.Logger.manager.loggerDict if "unheard" in name]


@pytest.mark.every_start_method
def test_last_words_before_a_crash_are_not_lost(make_pool: Any, kept: Kept) -> None:
    """A job logs and is killed at once."""
    pool = make_pool(1, relay_logs=True)
    for _ in range(3):
        outcome(pool.apply_async(child_work.log_and_crash))
    ended(pool)
    assert kept.texts() == ["last words"] * 3


def test_bad_records_cost_only_themselves(make_pool: Any, kept: Kept, capfd: Any) -> None:
    """One that cannot be formatted is told on stderr, one that does not load loses that value."""
    pool = make_pool(1, relay_logs=True)
    assert pool.apply_async(child_work.log_badly).get(DEADLINE) is None
    assert pool.apply_async(child_work.log_unloadable).get(DEADLINE) is None
    assert pool.apply_async(child_work.log_large, (1_000_000,)).get(DEADLINE) is None
    ended(pool)
    bad, unloadable, large = [r for r in kept.records if r.name == child_work.log.name]
    assert (bad.msg, bad.args) == ("%d", ("no number",))  # it is the parent's handlers' to format
    assert "does not unpickle" in unloadable.evil  # type: ignore[attr-defined]
    assert large.getMessage().endswith("x... (cut off)")


def test_handler_that_raises_does_not_stop_the_others(make_pool: Any, kept: Kept) -> None:
    """A filter of the user's that even exits costs one record, and the log says so."""
    logger = logging.getLogger(child_work.log.name)

    def refuse(record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR:
            raise SystemExit("the filter exits")
        return True

    pool = make_pool(1, relay_logs=True)
    pool.apply(os.getpid)  # forked without the filter
    logger.addFilter(refuse)
    try:
        pool.apply(child_work.log_all_kinds)
        pool.apply(child_work.log_once, (child_work.log.name, "afterwards"))
        ended(pool)
    finally:
        logger.removeFilter(refuse)
    assert kept.texts() == ["plain args of 2", "odd <an unpicklable>", "afterwards"]
    assert any("could not be handled" in record.getMessage() for record in kept.records)


def test_threads_may_log_while_results_are_written(make_pool: Any, kept: Kept) -> None:
    """Every record and every result arrives whole."""
    pool = make_pool(2, relay_logs=True)
    jobs = [pool.apply_async(child_work.log_in_threads, (4, 25)) for _ in range(4)]
    assert [job.get(DEADLINE) for job in jobs] == [list(range(200))] * 4
    ended(pool)
    assert len(kept.texts()) + pool._core._relay.dropped == 400


def test_processes_that_a_job_forks_may_log(make_pool: Any, kept: Kept) -> None:
    """Their records come with their own process id."""
    pool = make_pool(1, relay_logs=True)
    child = pool.apply(child_work.log_in_fork)
    ended(pool)
    assert [r.process for r in kept.records if r.name == child_work.log.name] == [child]


def test_flood_is_bounded_and_counted(
    make_pool: Any, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a handler hangs, a job logs on and ends, memory is bounded, what is lost is told."""
    monkeypatch.setattr(log_relay, "_MOST_RECORDS", 100)
    pool = make_pool(1, relay_logs=True)
    kept.gate.clear()
    count = 5_000
    assert pool.apply_async(child_work.log_many, (count,)).get(DEADLINE) == count
    eventually(lambda: pool._core._relay.dropped > 0)
    assert len(pool._core._relay._waiting) <= 100
    assert pool.apply_async(os.getpid).get(DEADLINE)  # results go on meanwhile
    kept.gate.set()
    pool.apply(child_work.log_once, (child_work.log.name, "after the flood"))
    ended(pool)
    handled = [text for text in kept.texts() if text.startswith("one of many")]
    dropped = pool._core._relay.dropped
    assert len(handled) + dropped >= count
    told = [r.args[1] for r in kept.records if "were dropped" in str(r.msg)]  # type: ignore[index,call-overload]
    assert sum(told) == dropped  # type: ignore[arg-type]


def test_without_relaying_nothing_is_touched(make_pool: Any, kept: Kept, capfd: Any) -> None:
    """The default: workers handle their own records."""
    pool = make_pool(1)
    pool.apply(child_work.log_once, (child_work.log.name, "stays there"))
    ended(pool)
    assert kept.texts() == []


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_message_is_never_larger_than_what_is_read(size: int) -> None:
    """Also with texts of the widest characters, everywhere."""
    wide = "\N{PILE OF POO}" * size
    record = logging.LogRecord(wide, 30, wide, 1, wide, (), None, wide, wide)
    record.exc_text = wide
    record.other = wide
    assert len(relay.encode(record, 0)) <= relay.LARGEST
