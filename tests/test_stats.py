"""Counters, gauges and histograms are always on, and add up."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, Stage, assert_full_strength, eventually

from poolwatch import Histogram, WorkerLostError, bus, events

pytestmark = pytest.mark.timeout(40)


def test_every_job_is_counted_by_its_end(make_pool: Any, stage: Stage) -> None:
    """Submitted is the sum of all ends and of what is unfinished."""
    pool = make_pool(2)
    good = [pool.apply_async(work.square, (n,)) for n in range(50)]
    bad = [pool.apply_async(work.fail, ("no",)) for _ in range(7)]
    lost = [pool.apply_async(faults.kill_self, (signal.SIGKILL,)) for _ in range(2)]
    lost += [pool.apply_async(faults.exit_at_once, (3,))]
    late = pool.apply_async(faults.hang, (stage.bell,), timeout=0.2)
    for job in [*good, *bad, *lost, late]:
        job.wait(DEADLINE)
    stage.heard()
    hanging = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    hanging.terminate()
    hanging.wait(DEADLINE)
    cancelled = pool.apply_async(faults.hang, (stage.bell,))
    cancelled.cancel()
    cancelled.wait(DEADLINE)
    running = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stats = pool.stats()
    assert (stats.succeeded, stats.failed, stats.lost) == (50, 7, 3)
    assert (stats.timed_out, stats.terminated, stats.cancelled) == (1, 1, 1)
    assert (stats.unfinished, stats.submitted) == (1, 64)
    assert stats.losses == {"SIGKILL": 2, "exitcode 3": 1}
    assert stats.workers_died >= 4
    assert stats.workers_started >= stats.workers_died
    assert stats.run_time.count == 57
    assert json.dumps(stats.as_dict())
    stage.let_go()
    running.get(DEADLINE)
    assert_full_strength(pool)
    eventually(lambda: pool.stats().idle == 2)
    assert pool.stats().workers == 2


def test_retries_and_recycling_are_counted(make_pool: Any, tmp_path: Any) -> None:
    """A job that was lost and run again is no loss; a worker that left is no death."""
    from poolwatch import RetryLost

    pool = make_pool(1, maxtasksperchild=2, lost_worker_policy=RetryLost(3))
    path = str(tmp_path / "begun")
    assert pool.apply(faults.die_until, (path, 2)) == 3
    pool.map(work.square, range(6), 1)
    eventually(lambda: pool.stats().workers_recycled >= 3)
    stats = pool.stats()
    assert (stats.retried, stats.lost, stats.succeeded) == (2, 0, 7)
    assert stats.workers_died == 2


def test_run_times_are_in_the_right_buckets(make_pool: Any) -> None:
    """Bounds double; sum and count are those of the jobs; a quantile is a bound."""
    pool = make_pool(2)
    for job in [pool.apply_async(work.pid_after, (0.1,)) for _ in range(6)]:
        job.get(DEADLINE)
    run = pool.stats().run_time
    assert run.count == 6
    assert run.sum == pytest.approx(sum(run.counts) * 0.1, rel=2.0)
    assert run.sum >= 0.6
    median = run.quantile(0.5)
    assert median is not None
    assert 0.1 <= median <= 0.4
    assert all(b == pytest.approx(2 * a) for a, b in zip(run.bounds, run.bounds[1:], strict=False))
    assert len(run.counts) == len(run.bounds) + 1
    wait = pool.stats().wait_time
    assert wait.count == 6
    assert wait.sum >= 0.2  # two at a time


def test_empty_histogram() -> None:
    """Has no quantiles; wrong ones are refused."""
    empty = Histogram((0.1, 0.2), (0, 0, 0), 0, 0.0)
    assert empty.quantile(0.5) is None
    with pytest.raises(ValueError, match="part"):
        empty.quantile(1.5)


def test_listener_hears_only_what_it_asked_for(make_pool: Any) -> None:
    """Classes of events, with those derived from them; and no more once it has been ended."""
    pool = make_pool(1)
    assert_full_strength(pool)
    done: list[events.JobDone] = []
    moves: list[events.JobMoved] = []
    stop = pool.listen(done.append, events.JobDone)
    stop_too = pool.listen(moves.append, events.JobMoved)
    pool.apply(work.square, (3,))
    with pytest.raises(ValueError, match="no"):
        pool.apply(work.fail, ("no",))
    eventually(lambda: len(done) == 2)
    assert [event.new for event in done] == ["SUCCEEDED", "FAILED"]
    assert all(event.run_time is not None and event.run_time > 0 for event in done)
    eventually(lambda: len(moves) == 6)
    assert [type(event).__name__ for event in moves] == ["JobSent", "JobStarted", "JobDone"] * 2
    stop()
    stop_too()
    assert not pool._core.supervisor.bus.follows_jobs
    pool.apply(work.square, (4,))
    assert len(done) == 2


def test_listener_to_rare_events_costs_jobs_nothing(make_pool: Any) -> None:
    """Jobs stay on the short way as long as nobody listens to them."""
    pool = make_pool(1)
    pool.listen(print, events.JobLost, events.Stalled)
    bus = pool._core.supervisor.bus
    assert not bus.follows_jobs
    assert not bus.wants_starts
    pool.listen(lambda event: None)
    assert bus.follows_jobs
    assert bus.wants_starts


@pytest.mark.parametrize("kind", [int, "JobLost", events.JobLost("", 1, "", None)])  # type: ignore[arg-type]
def test_wrong_kinds_are_refused(make_pool: Any, kind: Any) -> None:
    """By name, at the call."""
    with pytest.raises(TypeError, match="kinds"):
        make_pool(1).listen(print, kind)


def test_routine_does_not_push_out_what_is_rare(make_pool: Any, monkeypatch: Any) -> None:
    """A slow listener to every job keeps nobody from hearing of a loss."""
    monkeypatch.setattr(bus, "_BOUND", 50)
    pool = make_pool(1)
    entered, leave = threading.Event(), threading.Event()

    def slow(event: object) -> None:
        entered.set()
        leave.wait(DEADLINE)

    lost: list[events.JobLost] = []
    pool.listen(slow, events.JobMoved)
    pool.listen(lost.append, events.JobLost)
    pool.map(work.square, range(200), 1)
    assert entered.wait(DEADLINE)
    with pytest.raises(WorkerLostError):
        pool.apply_async(faults.kill_self, (signal.SIGKILL,)).get(DEADLINE)
    leave.set()
    eventually(lambda: lost)


def test_what_slow_listeners_miss_is_counted(make_pool: Any, monkeypatch: Any) -> None:
    """The queue is bounded; the supervisor never waits."""
    monkeypatch.setattr(bus, "_BOUND", 10)
    pool = make_pool(1)
    entered, leave = threading.Event(), threading.Event()

    def slow(event: object) -> None:
        entered.set()
        leave.wait(DEADLINE)

    pool.listen(slow)
    assert pool.map(work.square, range(100), 1) == [n * n for n in range(100)]
    assert entered.wait(DEADLINE)
    assert pool.stats().events_dropped > 100
    leave.set()
