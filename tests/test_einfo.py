"""ExceptionInfo, as programs written for billiard use it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import work
from helpers import DEADLINE

from poolwatch import ExceptionInfo, RemoteTraceback


def handled() -> ExceptionInfo:
    try:
        raise LookupError("gone")
    except LookupError:
        return ExceptionInfo()


def test_it_tells_what_is_being_handled() -> None:
    """Class, exception, traceback and text, without arguments."""
    info = handled()
    assert info.type is LookupError
    assert str(info.exception) == "gone"
    assert "in handled" in info.traceback
    assert str(info) == info.traceback
    assert info.exc_info == (LookupError, info.exception, info.tb)
    assert info.tb is not None
    assert info.internal is False
    assert "gone" in repr(info)


def test_it_pickles() -> None:
    """The text stays, and is the cause of the exception; the traceback object cannot."""
    info = pickle.loads(pickle.dumps(handled()))
    assert "in handled" in str(info)
    assert info.tb is None
    assert isinstance(info.exception, LookupError)
    assert isinstance(info.exception.__cause__, RemoteTraceback)


def test_it_holds_the_workers_traceback(make_pool: Any) -> None:
    """Made of a job's error, its text leads to the job's own code."""
    job = make_pool(1).apply_async(work.fail, ("own",))
    with pytest.raises(ValueError, match="own") as caught:
        job.get(DEADLINE)
    info = ExceptionInfo.of(caught.value, internal=True)
    assert "in fail" in info.traceback
    assert info.internal is True
