"""What jobs leave in their worker dies after their outcome has left, and is not theirs any more."""

from __future__ import annotations

import os
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, Stage, assert_full_strength, assert_gone, eventually, only_worker

from poolwatch import recalls

pytestmark = pytest.mark.timeout(40)


def test_result_does_not_wait_for_finalisers(make_pool: Any, stage: Stage) -> None:
    """Nor do other jobs."""
    pool = make_pool(2)
    last = faults.Finalised(os.getpid(), work.ring_and_wait, stage.bell, stage.gate)
    assert pool.apply_async(faults.take, (last,)).get(DEADLINE) == "done"
    stage.heard()
    assert pool.map(work.square, range(20), 1) == [n * n for n in range(20)]
    stage.let_go()
    assert_full_strength(pool)


def test_finaliser_that_crashes_costs_no_result(make_pool: Any) -> None:
    """Of an argument, or of the result itself."""
    pool = make_pool(1)
    home = os.getpid()
    for _ in range(3):
        last = faults.Finalised(home, os.abort)
        assert pool.apply_async(faults.take, (last,)).get(DEADLINE) == "done"
        result = pool.apply_async(faults.give, (home, os.abort)).get(DEADLINE)
        assert isinstance(result, faults.Finalised)
    assert_full_strength(pool)


def test_finaliser_that_hangs_stops_no_job(
    make_pool: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that was sent with its job, nor one that comes later: another takes over."""
    monkeypatch.setattr(recalls, "_RELEASE_SECONDS", 0.0)
    pool = make_pool(1)
    pid = only_worker(pool)
    for _ in range(200):  # short jobs, so that some are sent ahead
        pool.apply_async(work.square, (2,))
    last = faults.Finalised(os.getpid(), work.ring_and_wait, stage.bell, stage.gate)
    hanging = pool.apply_async(faults.take, (last,))
    behind = [pool.apply_async(work.square, (n,)) for n in range(5)]
    assert hanging.get(DEADLINE) == "done"
    stage.heard()
    assert [job.get(DEADLINE) for job in behind] == [0, 1, 4, 9, 16]
    assert pool.apply_async(os.getpid).get(DEADLINE) != pid
    assert_gone(pid)


def test_finaliser_gets_its_time(
    make_pool: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever frees much memory is slow, not dead."""
    monkeypatch.setattr(recalls, "_ANSWER_SECONDS", 0.02)
    rounds = []
    wait = recalls.Recalls._await_answer

    def count(*args: Any) -> None:
        rounds.append(args)
        wait(*args)

    monkeypatch.setattr(recalls.Recalls, "_await_answer", count)
    pool = make_pool(1)
    pid = only_worker(pool)
    last = faults.Finalised(os.getpid(), work.ring_and_wait, stage.bell, stage.gate)
    pool.apply_async(faults.take, (last,)).get(DEADLINE)
    stage.heard()
    job = pool.apply_async(os.getpid)
    eventually(lambda: len(rounds) > 5)
    stage.let_go()
    assert job.get(DEADLINE) == pid
