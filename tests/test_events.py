"""Listeners are told what happens in the pool, in order, and cannot do it harm."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, Stage, assert_full_strength, bounded, eventually, worker_pids

from poolwatch import TimeLimitExceeded, WorkerLostError, events

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def told(make_pool: Any) -> tuple[Any, list[events.Event]]:
    """A pool at full strength, and the list of all that happens in it from then on."""
    pool = make_pool(2)
    assert_full_strength(pool)
    told_so_far = threading.Event()
    pool._core.deliver(told_so_far.set)  # behind what there was to tell of their coming up
    assert told_so_far.wait(DEADLINE)
    heard: list[events.Event] = []
    pool.listen(heard.append)
    return pool, heard


def of_kind(heard: list[events.Event], kind: type) -> list[Any]:
    return [event for event in list(heard) if isinstance(event, kind)]


def test_death_is_told_with_its_consequences(told: tuple[Any, list[events.Event]]) -> None:
    """A worker that dies at work goes down unexpectedly, its job is lost, another comes up."""
    pool, heard = told
    job = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
    with pytest.raises(WorkerLostError) as caught:
        job.get(DEADLINE)
    eventually(lambda: of_kind(heard, events.WorkerUp))
    (down,) = of_kind(heard, events.WorkerDown)
    assert (down.pid, down.exitcode, down.expected) == (caught.value.pid, -9, False)
    (lost,) = of_kind(heard, events.JobLost)
    assert lost.job_id == job.job_id
    assert lost.postmortem == caught.value.postmortem
    (up,) = of_kind(heard, events.WorkerUp)
    assert up.pid in worker_pids(pool)


def test_recycling_is_told_as_expected(make_pool: Any) -> None:
    """A worker that leaves after its jobs goes down as expected, and nothing is lost."""
    pool = make_pool(1, maxtasksperchild=2)
    heard: list[events.Event] = []
    pool.listen(heard.append)
    assert pool.map_async(work.square, range(6), 1).get(DEADLINE) == [0, 1, 4, 9, 16, 25]
    eventually(lambda: len(of_kind(heard, events.WorkerDown)) >= 2)
    assert {event.expected for event in of_kind(heard, events.WorkerDown)} == {True}
    assert of_kind(heard, events.JobLost) == []


def test_limit_is_told(told: tuple[Any, list[events.Event]], stage: Stage) -> None:
    """A hard limit that is hit is an event with the limit and the stack."""
    pool, heard = told
    job = pool.apply_async(faults.hang, (stage.bell,), timeout=0.5)
    with pytest.raises(TimeLimitExceeded):
        job.get(DEADLINE)
    eventually(lambda: of_kind(heard, events.JobTimedOut))
    (event,) = of_kind(heard, events.JobTimedOut)
    assert (event.job_id, event.soft, event.timeout) == (job.job_id, False, 0.5)
    assert "hang" in event.stack


def test_listener_that_raises_hurts_nobody(make_pool: Any) -> None:
    """Other listeners go on being told, and the pool goes on."""
    pool = make_pool(2)
    heard: list[events.Event] = []
    pool.listen(lambda event: 1 // 0)
    pool.listen(heard.append)
    with pytest.raises(WorkerLostError):
        pool.apply_async(faults.kill_self, (signal.SIGKILL,)).get(DEADLINE)
    assert_full_strength(pool)
    eventually(lambda: of_kind(heard, events.JobLost))


def test_hooks_see_workers_come_and_go(make_pool: Any) -> None:
    """on_process_up and on_process_down are called in the parent with the worker concerned."""
    came: list[int] = []
    went: list[int] = []
    pool = make_pool(
        2,
        on_process_up=lambda worker: came.append(worker.pid),
        on_process_down=lambda worker: went.append(worker.pid),
    )
    assert_full_strength(pool)
    before = worker_pids(pool)
    with pytest.raises(WorkerLostError) as caught:
        pool.apply_async(faults.kill_self, (signal.SIGKILL,)).get(DEADLINE)
    assert_full_strength(pool)
    assert caught.value.pid in before
    eventually(lambda: went == [caught.value.pid])
    eventually(lambda: sorted(came) == sorted({*before, *worker_pids(pool)}))


@pytest.mark.every_start_method
@pytest.mark.parametrize("end", ["close", "terminate", "break"])
def test_all_workers_that_came_go_with_their_pool(
    make_pool: Any, stage: Stage, start_method: str, end: str
) -> None:
    """Whatever its end is, each is told of once, and that before join() returns."""
    came: list[int] = []
    went: list[int] = []
    heard: list[events.Event] = []
    pool = make_pool(
        3,
        max_restarts=0,
        on_process_up=lambda worker: came.append(worker.pid),
        on_process_down=lambda worker: went.append(worker.pid),
    )
    pool.listen(heard.append, events.WorkerDown)
    assert_full_strength(pool)
    pids = worker_pids(pool)
    if end == "close":
        pool.close()
    elif end == "terminate":
        pool.apply_async(faults.hang, (stage.bell,))
        stage.heard()
        bounded(pool.terminate)
    else:
        os.kill(pids[0], signal.SIGKILL)
        eventually(lambda: pool._core.is_terminated)
        pool.close()
    bounded(pool.join)
    assert sorted(came) == sorted(went) == pids
    downs = of_kind(heard, events.WorkerDown)
    assert sorted(event.pid for event in downs) == pids
    assert [event.expected for event in downs].count(False) == (end == "break")
    assert {event.exitcode for event in downs} == ({0} if end == "close" else {-signal.SIGKILL})


def test_hook_that_raises_hurts_nobody(make_pool: Any) -> None:
    """Hooks of the user's that raise are reported, and workers come and go all the same."""
    pool = make_pool(2, on_process_up=lambda worker: 1 // 0, on_process_down=lambda worker: 1 // 0)
    with pytest.raises(WorkerLostError):
        pool.apply_async(faults.kill_self, (signal.SIGKILL,)).get(DEADLINE)
    assert_full_strength(pool)
