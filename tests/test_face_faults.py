"""Every fault through every face: the guilty job says why, its neighbours and the pool go on."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
import work
from faces import FACES, Call, Face, Outcome, Outcomes, pool_behind
from helpers import (
    DEADLINE,
    Stage,
    assert_full_strength,
    assert_gone,
    bounded,
    eventually,
    kill_and_wait,
    lines,
    worker_pids,
)

from poolwatch import (
    JobDecodingError,
    MaybeEncodingError,
    PoolwatchError,
    RemoteTraceback,
    WorkerLostError,
)
from poolwatch.aio import AsyncPool

pytestmark = pytest.mark.timeout(40)

COUNT = 12  # calls, in three chunks where they travel in chunks
GUILTY = 5  # the second of the middle chunk
BIG = 32 << 20  # bytes; more than any socket or pipe takes at once

every_face = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


@pytest.fixture
def open_face(nothing_left_over: Any, start_method: str) -> Iterator[Callable[..., Any]]:
    """Makes the pools of faces, and terminates them after the test."""
    pools = []

    def open_it(face: Face, processes: int = 2, **options: Any) -> Any:
        key = "context" if face.make.__name__ != "ProcessPoolExecutor" else "mp_context"
        target = face.make(processes, **{key: start_method, **options})
        pools.append(pool_behind(target))
        return target

    yield open_it
    for pool in pools:
        bounded(pool.terminate)
        bounded(pool.join)


# -- how the guilty one ends ------------------------------------------------------------------


Check = Callable[[Outcome], None]


def failed(kind: type[BaseException], text: str) -> Check:
    """It fails with that error, whose text holds that."""

    def check(outcome: Outcome) -> None:
        error = error_in(outcome)
        assert isinstance(error, kind), repr(error)
        assert text in str(error)

    return check


def error_in(outcome: Outcome) -> Any:
    succeeded, error = outcome
    assert not succeeded, f"it has returned {error!r}"
    return error


def lost(exitcode: int, status: str, words: str = "") -> Check:
    """It is lost, and the error says how its worker ended, what it did and what it said last."""

    def check(outcome: Outcome) -> None:
        error = error_in(outcome)
        assert isinstance(error, WorkerLostError), repr(error)
        assert str(error).startswith(f"Worker exited prematurely: {status}")
        assert error.exitcode == error.postmortem.exitcode == exitcode
        assert error.signal == (-exitcode if exitcode < 0 else None)
        assert error.postmortem.status_text == status
        assert error.postmortem.pid == error.pid
        assert error.postmortem.attempt == 1
        assert error.postmortem.job in ("perform", "perform_these")
        assert words in (error.postmortem.traceback or "")

    return check


def lost_or(value: Any) -> Check:
    """It is lost, or had its whole result sent when it was killed."""

    def check(outcome: Outcome) -> None:
        succeeded, end = outcome
        assert end == value if succeeded else end.signal == signal.SIGKILL

    return check


def raised(outcome: Outcome) -> None:
    error = error_in(outcome)
    assert type(error) is ValueError
    assert str(error) == "own"
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__)


def left(outcome: Outcome) -> None:
    """``sys.exit()`` is the job's own error; an event loop would end by it, and gets another."""
    error = error_in(outcome)
    if isinstance(error, RuntimeError):
        error = error.__cause__
    assert isinstance(error, SystemExit)
    assert error.code == 3


def returned_once(outcome: Outcome) -> None:
    succeeded, value = outcome
    assert succeeded
    told, worker = value
    assert told == worker


# -- what happens meanwhile -------------------------------------------------------------------


def nothing(stage: Stage, face: Face) -> None:
    pass


def kill_it(stage: Stage, face: Face) -> None:
    kill_and_wait(int(stage.heard()))


def kill_it_while_it_loads(stage: Stage, face: Face) -> None:
    """A chunk's items do not say which of them hangs; each is loaded alone then."""
    for _ in range(min(face.chunksize, 2)):
        kill_and_wait(int(stage.heard()))


def see_its_processes_go(stage: Stage, face: Face) -> None:
    assert_gone(*stage.heard_pids(3))


# -- the faults -------------------------------------------------------------------------------


class Fault(NamedTuple):
    """Something that goes wrong with one call.

    Attributes:
        call: makes the call.
        check: how it should end.
        meanwhile: happens while the calls are performed.
        worker_lives: no worker may be replaced for it.
    """

    call: Callable[[Stage], Call]
    check: Check
    meanwhile: Callable[[Stage, Face], None] = nothing
    worker_lives: bool = False


def death(name: str) -> Fault:
    func, argument, exitcode, status = faults.DEATHS[name]
    words = "kill_self" if name in ("SIGABRT", "SIGSEGV") else ""
    return Fault(lambda stage: (func, argument), lost(exitcode, status, words))


KILLED = lost(-9, "signal 9 (SIGKILL)")
FAULTS = {
    **{name: death(name) for name in faults.DEATHS},
    "sys.exit": Fault(lambda stage: (faults.sys_exit, 3), left, worker_lives=True),
    "exception": Fault(lambda stage: (work.fail, "own"), raised, worker_lives=True),
    "exception that does not unpickle": Fault(
        lambda stage: (faults.raise_pickles_only,),
        failed(PoolwatchError, "PicklesOnlyError"),
        worker_lives=True,
    ),
    "exception that does not pickle": Fault(
        lambda stage: (faults.raise_refuses_to_pickle,),
        failed(MaybeEncodingError, "RefusesToPickleError"),
        worker_lives=True,
    ),
    "result that does not pickle": Fault(
        lambda stage: (faults.return_refuses_to_pickle,),
        failed(MaybeEncodingError, "refuses to be pickled"),
        worker_lives=True,
    ),
    "result that does not unpickle": Fault(
        lambda stage: (faults.return_refuses_to_load,),
        failed(PoolwatchError, "refuses to load"),
        worker_lives=True,
    ),
    "result that kills while it is pickled": Fault(
        lambda stage: (faults.return_dies_while_pickled, 0), KILLED
    ),
    "killed while its big result is read": Fault(
        lambda stage: (faults.return_big, stage.bell, BIG), lost_or(bytes(BIG)), kill_it
    ),
    "arguments that do not pickle": Fault(
        lambda stage: (work.size_of, faults.RefusesToPickle()),
        failed((TypeError, pickle.PicklingError, PoolwatchError), "refuses to be pickled"),  # type: ignore[arg-type]
        worker_lives=True,
    ),
    "arguments that do not unpickle": Fault(
        lambda stage: (work.size_of, faults.RefusesToLoad()),
        failed(JobDecodingError, "refuses to load"),
        worker_lives=True,
    ),
    "arguments that kill while they load": Fault(
        lambda stage: (work.size_of, faults.DiesWhileLoading()), KILLED
    ),
    "killed while its arguments load": Fault(
        lambda stage: (work.size_of, faults.HangsWhileLoading(stage.bell)),
        KILLED,
        kill_it_while_it_loads,
    ),
    "grandchildren": Fault(
        lambda stage: (faults.fork_then_die, stage.bell), KILLED, see_its_processes_go
    ),
    "fork that returns": Fault(
        lambda stage: (faults.fork_and_return,), returned_once, worker_lives=True
    ),
}


# -- what has to hold -------------------------------------------------------------------------


def neighbours(path: Path) -> list[Call]:
    return [(work.noted, str(path), index) for index in range(COUNT)]


def performed(
    face: Face, target: Any, calls: list[Call], meanwhile: Callable[[], None] = lambda: None
) -> Outcomes:
    with ThreadPoolExecutor(1) as helper:
        happened = helper.submit(meanwhile)
        outcomes = bounded(lambda: face.outcomes(target, calls))
        happened.result(DEADLINE)
    return outcomes


def assert_neighbours_are_well(face: Face, outcomes: Outcomes, path: Path) -> None:
    """All those that the face tells of have their results, and none has run twice."""
    told = {index: outcome for index, outcome in outcomes.items() if index not in (GUILTY, -1)}
    assert told == {index: (True, index) for index in told}
    everyone = [index for index in range(COUNT) if index != GUILTY]
    ended = not face.goes_on and not all(succeeded for succeeded, _ in outcomes.values())
    if set(outcomes) != {-1}:
        assert sorted(told) == (everyone[:GUILTY] if ended else everyone)
    noted = sorted(map(int, lines(path)))
    assert len(noted) == len(set(noted))
    assert set(noted) >= set(everyone[:GUILTY]) if ended else noted == everyone


def assert_goes_on(face: Face, target: Any, path: Path) -> None:
    """The face runs calls at full strength as if nothing had happened."""
    assert_full_strength(pool_behind(target))
    path.unlink(missing_ok=True)
    outcomes = performed(face, target, neighbours(path))
    assert outcomes == {index: (True, index) for index in range(COUNT)}


@every_face
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault(open_face: Any, stage: Stage, tmp_path: Path, face: Face, fault: Fault) -> None:
    """One call among others goes wrong."""
    path = tmp_path / "noted"
    target = open_face(face)
    pool = pool_behind(target)
    assert_full_strength(pool)
    before = worker_pids(pool)
    calls = neighbours(path)
    calls[GUILTY] = fault.call(stage)
    outcomes = performed(face, target, calls, lambda: fault.meanwhile(stage, face))
    fault.check(outcomes[GUILTY if GUILTY in outcomes else -1])
    assert_neighbours_are_well(face, outcomes, path)
    assert_goes_on(face, target, path)
    if fault.worker_lives:
        assert worker_pids(pool) == before
