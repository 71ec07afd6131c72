"""Limits, kills from outside, ends of pools and failing initializers, through every face."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import psutil
import pytest
import work
from face_checks import (
    COUNT,
    GUILTY,
    assert_goes_on,
    assert_neighbours_are_well,
    errors_in,
    every_face,
    neighbours,
    performed,
)
from faces import FACES, Face, Outcomes, pool_behind, settled
from helpers import (
    DEADLINE,
    ProcessWatch,
    Stage,
    assert_full_strength,
    assert_gone,
    bounded,
    chain,
    eventually,
    kill_and_wait,
    lines,
    running_script,
    worker_pids,
)

from poolwatch import (
    BootError,
    PoolBroken,
    ProcessPoolExecutor,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

pytestmark = pytest.mark.timeout(40)
PROMPTLY = 5.0  # seconds for what should take well under one
BIG = 32 << 20  # bytes


# -- limits -----------------------------------------------------------------------------------


@every_face
def test_limit_of_the_pool(open_face: Any, stage: Stage, tmp_path: Path, face: Face) -> None:
    """Loops in C, jobs with processes and stopped workers end at the limit, all that is theirs too.

    The others have their results.
    """
    limit = 2.0  # within which those that are guilty have to ring, on a busy machine too
    guilty = {
        1: (faults.hang_in_sum, stage.bell),
        GUILTY: (faults.hang_with_two_children, stage.bell),
        9: (faults.stop_self, stage.bell),
    }
    target = open_face(face, 3, timeout=limit)
    calls = [guilty.get(index, call) for index, call in enumerate(neighbours(tmp_path / "noted"))]
    begun = time.monotonic()
    with ProcessWatch([]) as watch:
        outcomes = performed(face, target, calls, lambda: watch.add(stage.heard_pids(4)))
        assert time.monotonic() - begun < limit + PROMPTLY
        watch.assert_gone(limit + PROMPTLY)
    errors = errors_in(outcomes)
    assert len(errors) == (3 if len(outcomes) == COUNT else 1)
    for error in errors:
        assert type(error) is TimeLimitExceeded
        assert error.timeout == limit
        # A stopped worker cannot say where it is, one that has no turn for long not in time.
        assert error.stack is None or "faults.py" in error.stack
    assert_neighbours_are_well(face, outcomes, tmp_path / "noted", *guilty)
    eventually(lambda: len(worker_pids(pool_behind(target))) == 3)  # the limit is short for that
    assert_goes_on(face, target, tmp_path / "after")


@every_face
def test_limit_while_arguments_load(
    open_face: Any, stage: Stage, tmp_path: Path, face: Face
) -> None:
    """The time that arguments take counts, and costs none of the items that travel with them."""
    limit = 0.5
    target = open_face(face, timeout=limit)
    calls = neighbours(tmp_path / "noted")
    calls[GUILTY] = (work.size_of, faults.HangsWhileLoading(stage.bell))
    outcomes = performed(face, target, calls)
    (error,) = errors_in(outcomes)
    assert type(error) is TimeLimitExceeded
    assert error.timeout == limit
    assert_neighbours_are_well(face, outcomes, tmp_path / "noted", GUILTY)
    eventually(lambda: len(worker_pids(pool_behind(target))) == 2)


@pytest.mark.parametrize("name", ["map", "map in chunks", "imap", "submit", "async apply"])
def test_soft_limit_is_raised_once(open_face: Any, stage: Stage, name: str) -> None:
    """A job may catch it, and is not disturbed again however long it cleans up."""
    limit = 0.3
    face = FACES[name]
    target = open_face(face, 2, soft_timeout=limit)
    pool = pool_behind(target)
    eventually(lambda: len(worker_pids(pool)) == 2)
    pids = worker_pids(pool)
    calls = [(faults.count_soft, stage.bell, 3 * limit), (faults.hang, stage.bell)]
    outcomes = performed(face, target, calls)
    (error,) = errors_in(outcomes)
    assert type(error) is SoftTimeLimitExceeded
    if len(outcomes) == len(calls):
        assert outcomes[0] == (True, "disturbed 1")
    assert worker_pids(pool) == pids


# -- what comes from outside ------------------------------------------------------------------


@every_face
def test_idle_workers_are_killed(open_face: Any, tmp_path: Path, face: Face) -> None:
    """All of them, and at once there are calls: nobody notices."""
    target = open_face(face)
    pool = pool_behind(target)
    assert_full_strength(pool)
    for pid in worker_pids(pool):
        os.kill(pid, signal.SIGKILL)
    outcomes = performed(face, target, neighbours(tmp_path / "noted"))
    assert not errors_in(outcomes)
    assert_neighbours_are_well(face, outcomes, tmp_path / "noted")
    assert_goes_on(face, target, tmp_path / "after")


@every_face
def test_workers_are_killed_before_they_take_big_arguments(
    open_face: Any, tmp_path: Path, face: Face
) -> None:
    """What was sent to stopped workers blocks nobody, and moves on when they are killed."""
    target = open_face(face)
    pool = pool_behind(target)
    assert_full_strength(pool)
    pids = worker_pids(pool)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    calls = neighbours(tmp_path / "noted")
    calls[GUILTY] = (work.noted_with, str(tmp_path / "noted"), GUILTY, bytes(BIG))

    def kill() -> None:
        for pid in pids:
            kill_and_wait(pid)

    outcomes = performed(face, target, calls, kill)
    assert not errors_in(outcomes)
    assert_neighbours_are_well(face, outcomes, tmp_path / "noted")
    assert_goes_on(face, target, tmp_path / "after")


@every_face
def test_stopped_idle_worker(open_face: Any, tmp_path: Path, face: Face) -> None:
    """What was sent to it goes to the other one."""
    target = open_face(face)
    pool = pool_behind(target)
    assert_full_strength(pool)
    stopped = worker_pids(pool)[0]
    os.kill(stopped, signal.SIGSTOP)
    outcomes = performed(face, target, neighbours(tmp_path / "noted"))
    assert not errors_in(outcomes)
    assert_neighbours_are_well(face, outcomes, tmp_path / "noted")
    os.kill(stopped, signal.SIGCONT)
    assert_goes_on(face, target, tmp_path / "after")


@contextlib.contextmanager
def blocked_callback(pool: Any) -> Iterator[None]:
    """The pool's thread for callbacks is held up by one that blocks."""
    entered, leave = threading.Event(), threading.Event()

    def block(_: object) -> None:
        entered.set()
        leave.wait(DEADLINE * 2)

    pool.apply_async(work.square, (3,), callback=block)
    assert entered.wait(DEADLINE)
    try:
        yield
    finally:
        leave.set()


@contextlib.contextmanager
def held_logging_lock() -> Iterator[None]:
    """Another thread holds the lock that every log record needs."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with logging._lock:  # type: ignore[attr-defined]
            taken.set()
            release.wait(DEADLINE * 2)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(DEADLINE)
    try:
        yield
    finally:
        release.set()
        holder.join()


@every_face
def test_death_while_a_callback_blocks_and_a_lock_is_held(
    open_face: Any, tmp_path: Path, face: Face
) -> None:
    """Neither keeps a loss and its neighbours' results from whoever waits for them."""
    target = open_face(face)
    pool = pool_behind(target)
    assert_goes_on(face, target, tmp_path / "before")  # an event loop logs when first made
    calls = neighbours(tmp_path / "noted")
    calls[GUILTY] = (faults.kill_self, signal.SIGKILL)
    with blocked_callback(pool), held_logging_lock():
        outcomes = performed(face, target, calls)
        (error,) = errors_in(outcomes)
        assert type(error) is WorkerLostError
        assert_neighbours_are_well(face, outcomes, tmp_path / "noted", GUILTY)
    assert_goes_on(face, target, tmp_path / "after")


# -- the end ----------------------------------------------------------------------------------


def ended(face: Face, target: Any, calls: Any) -> Outcomes:
    """How the calls end, where they may be refused at once."""
    succeeded, value = settled(lambda: face.outcomes(target, calls))
    return value if succeeded else {-1: (False, value)}


@every_face
def test_terminate_while_busy(open_face: Any, stage: Stage, tmp_path: Path, face: Face) -> None:
    """Whoever waits is told at once, for what runs and for what has not begun."""
    target = open_face(face)
    calls = neighbours(tmp_path / "noted")
    calls[0] = (faults.hang_deaf, stage.bell)
    calls[4] = (faults.hang_in_sum, stage.bell)
    told: list[float] = []

    def end_it() -> None:
        pids = stage.heard_pids(2)
        told.append(time.monotonic())
        if isinstance(target, ProcessPoolExecutor):
            target.kill_workers()
        else:
            pool_behind(target).terminate()
        assert_gone(*pids, timeout=PROMPTLY)

    outcomes = performed(face, target, calls, end_it)
    assert time.monotonic() - told[0] < PROMPTLY
    errors = errors_in(outcomes)
    assert errors
    assert {type(error) for error in errors} <= {Terminated, cf.CancelledError}
    assert type(errors[0]) is Terminated
    if len(outcomes) == COUNT:
        assert {0, 4} <= {index for index in outcomes if not outcomes[index][0]} or -1 in outcomes
    bounded(pool_behind(target).join)


@every_face
def test_close_with_deaths_and_recycling(
    open_face: Any, stage: Stage, tmp_path: Path, face: Face
) -> None:
    """What was submitted runs to its end, although workers come and go."""
    path = tmp_path / "noted"
    target = (
        open_face(face, maxtasksperchild=3)
        if not is_executor(face)
        else open_face(face, max_tasks_per_child=3)
    )
    calls = neighbours(path)
    calls[0] = (work.noted_at_gate, str(path), 0, stage.bell, stage.gate)
    calls[GUILTY] = (faults.kill_self, signal.SIGKILL)

    def close() -> None:
        stage.heard()
        pool_behind(target).close()
        stage.let_go()
        bounded(pool_behind(target).join)

    outcomes = performed(face, target, calls, close)
    (error,) = errors_in(outcomes)
    assert type(error) is WorkerLostError
    assert_neighbours_are_well(face, outcomes, path, GUILTY)


def is_executor(face: Face) -> bool:
    return face.make.__name__ == "make_executor"


@every_face
@pytest.mark.parametrize("way", ["raises", "dies"])
def test_initializer_fails(open_face: Any, tmp_path: Path, face: Face, way: str) -> None:
    """Every call ends with the initializer's error as the cause, and attempts are bounded."""
    path = tmp_path / "boots"
    initializer = faults.initializer_raises if way == "raises" else faults.initializer_dies
    target = open_face(face, initializer=initializer, initargs=(str(path),), max_boot_failures=3)
    outcomes = bounded(lambda: ended(face, target, neighbours(tmp_path / "noted")))
    errors = errors_in(outcomes)
    assert len(errors) == len(outcomes)
    for error in errors:
        assert isinstance(error, (BootError, PoolBroken))
        cause = "no such configuration" if way == "raises" else "SIGKILL"
        assert any(cause in str(link) for link in chain(error))
    assert 3 <= len(lines(path)) <= 3 + 2
    assert not lines(tmp_path / "noted")
    again = bounded(lambda: ended(face, target, neighbours(tmp_path / "noted")))
    assert isinstance(errors_in(again)[0], (BootError, PoolBroken))


@pytest.mark.parametrize(
    "name",
    ["map", "imap_unordered in chunks", "submit", "executor map", "async apply", "async imap"],
)
def test_parent_is_killed(stage: Stage, name: str) -> None:
    """Nothing survives it: workers, jobs' processes, helpers."""
    with running_script("parent_of_face.py", name, stage.bell) as parent:
        children = stage.heard_pids(4)
        family = {process.pid for process in psutil.Process(parent.pid).children(recursive=True)}
        assert {*children} < family
        with ProcessWatch(family) as watch:
            parent.kill()
            parent.wait(DEADLINE)
            watch.assert_gone()
