"""Every fault through every face: the guilty job says why, its neighbours and the pool go on."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
import work
from face_checks import (
    GUILTY,
    assert_goes_on,
    assert_neighbours_are_well,
    error_in,
    every_face,
    neighbours,
    performed,
)
from faces import FACES, Call, Face, Outcome, pool_behind
from helpers import Stage, assert_full_strength, assert_gone, kill_and_wait, worker_pids

from poolwatch import (
    JobDecodingError,
    MaybeEncodingError,
    PoolwatchError,
    RemoteTraceback,
    WorkerLostError,
)

pytestmark = pytest.mark.timeout(40)

BIG = 32 << 20  # bytes; more than any socket or pipe takes at once
Check = Callable[[Outcome], None]


# -- how the guilty one ends ------------------------------------------------------------------


def failed(kind: type[BaseException] | tuple[type[BaseException], ...], text: str) -> Check:
    """It fails with that error, whose text holds that."""

    def check(outcome: Outcome) -> None:
        error = error_in(outcome)
        assert isinstance(error, kind), repr(error)
        assert text in str(error)

    return check


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
    """

    call: Callable[[Stage], Call]
    check: Check
    meanwhile: Callable[[Stage, Face], None] = nothing


def death(name: str) -> Fault:
    func, argument, exitcode, status = faults.DEATHS[name]
    words = "kill_self" if name in ("SIGABRT", "SIGSEGV") else ""
    return Fault(lambda stage: (func, argument), lost(exitcode, status, words))


KILLED = lost(-9, "signal 9 (SIGKILL)")
NOT_PICKLED = (TypeError, pickle.PicklingError, PoolwatchError)

DEADLY = {
    **{name: death(name) for name in faults.DEATHS},
    "leaves processes": Fault(
        lambda stage: (faults.fork_then_die, stage.bell), KILLED, see_its_processes_go
    ),
    "result kills while it is pickled": Fault(
        lambda stage: (faults.return_dies_while_pickled, 0), KILLED
    ),
    "killed while its big result is read": Fault(
        lambda stage: (faults.return_big, stage.bell, BIG), lost_or(bytes(BIG)), kill_it
    ),
    "arguments kill while they load": Fault(
        lambda stage: (work.size_of, faults.DiesWhileLoading()), KILLED
    ),
    "killed while its arguments load": Fault(
        lambda stage: (work.size_of, faults.HangsWhileLoading(stage.bell)),
        KILLED,
        kill_it_while_it_loads,
    ),
}
"""These cost a worker."""

HARMLESS = {
    "raises": Fault(lambda stage: (work.fail, "own"), raised),
    "leaves by sys.exit()": Fault(lambda stage: (faults.sys_exit, 3), left),
    "forks, and both return": Fault(lambda stage: (faults.fork_and_return,), returned_once),
    "exception does not unpickle": Fault(
        lambda stage: (faults.raise_pickles_only,), failed(PoolwatchError, "PicklesOnlyError")
    ),
    "exception does not pickle": Fault(
        lambda stage: (faults.raise_refuses_to_pickle,),
        failed(MaybeEncodingError, "RefusesToPickleError"),
    ),
    "result does not pickle": Fault(
        lambda stage: (faults.return_refuses_to_pickle,),
        failed(MaybeEncodingError, "refuses to be pickled"),
    ),
    "result does not unpickle": Fault(
        lambda stage: (faults.return_refuses_to_load,), failed(PoolwatchError, "refuses to load")
    ),
    "arguments do not pickle": Fault(
        lambda stage: (work.size_of, faults.RefusesToPickle()),
        failed(NOT_PICKLED, "refuses to be pickled"),
    ),
    "arguments do not unpickle": Fault(
        lambda stage: (work.size_of, faults.RefusesToLoad()),
        failed(JobDecodingError, "refuses to load"),
    ),
}
"""These cost no worker."""


def assert_only_it_fails(face: Face, target: Any, fault: Fault, stage: Stage, path: Path) -> None:
    """One call among others goes wrong."""
    calls = neighbours(path)
    calls[GUILTY] = fault.call(stage)
    outcomes = performed(face, target, calls, lambda: fault.meanwhile(stage, face))
    fault.check(outcomes[GUILTY if GUILTY in outcomes else -1])
    assert_neighbours_are_well(face, outcomes, path, GUILTY)


@every_face
@pytest.mark.parametrize("fault", DEADLY.values(), ids=DEADLY)
def test_call_that_costs_its_worker(
    open_face: Any, stage: Stage, tmp_path: Path, face: Face, fault: Fault
) -> None:
    """It fails with the cause; the worker is replaced."""
    target = open_face(face)
    assert_only_it_fails(face, target, fault, stage, tmp_path / "noted")
    assert_goes_on(face, target, tmp_path / "noted after")


@every_face
def test_calls_that_cost_no_worker(
    open_face: Any, stage: Stage, tmp_path: Path, face: Face
) -> None:
    """Each of them fails with the cause, one after the other, and the workers remain the same."""
    target = open_face(face)
    pool = pool_behind(target)
    assert_full_strength(pool)
    before = worker_pids(pool)
    for name, fault in HARMLESS.items():
        print(name)  # what was at work when this fails
        assert_only_it_fails(face, target, fault, stage, tmp_path / name)
    assert_goes_on(face, target, tmp_path / "after")
    assert worker_pids(pool) == before


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"], indirect=True)
@pytest.mark.parametrize("fault", ["SIGKILL", "arguments kill while they load"])
def test_faces_of_one_pool(make_pool: Any, stage: Stage, tmp_path: Path, fault: str) -> None:
    """Faces share a pool, whose workers are made in another way than by the zygote."""
    pool = make_pool(2)
    for name in ("map in chunks", "imap", "submit", "executor map", "async apply", "async imap"):
        print(name)  # what was at work when this fails
        face = FACES[name]
        assert_only_it_fails(face, face.share(pool), DEADLY[fault], stage, tmp_path / name)
    assert_goes_on(face, face.share(pool), tmp_path / "after")
