"""Stalls are told and not guessed; a pool without work is told apart from one that is stuck."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, Stage, assert_full_strength, eventually, idle, only_worker

from poolwatch import BootError, Fail, Job, LostWorkerPolicy, RetryLost, WorkerLostError, events
from poolwatch.job import NO_OPTIONS
from poolwatch.workers import WorkerProcess

pytestmark = pytest.mark.timeout(40)


def messages(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [found for record in caplog.records if text in (found := record.getMessage())]


def test_pool_without_work_is_idle(make_pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing is said of it, however often the watchdog looks."""
    caplog.set_level(logging.INFO, "poolwatch")
    pool = make_pool(2, stall_after=1.0)
    assert_full_strength(pool)
    looks: list[object] = []
    watched = pool._core.supervisor.stall_finder
    find = watched.find
    watched.find = lambda: looks.append(None) or find()
    eventually(lambda: len(looks) > 5)
    health = pool.health()
    assert (health.status, health.ok) == ("idle", True)
    assert (health.workers, health.asked, health.unfinished) == (2, 2, 0)
    assert health.problems == ()
    assert str(health) == "idle: there is nothing to do"
    assert json.dumps(health.as_dict())
    assert messages(caplog, "") == []


def test_pool_at_work_is_working(make_pool: Any, stage: Stage) -> None:
    """With how many jobs run and wait."""
    pool = make_pool(1)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(3)]
    stage.heard()
    health = pool.health()
    assert (health.status, health.unfinished) == ("working", 3)
    assert health.reason == "1 jobs run and 2 wait"
    stage.let_go(3)
    for job in jobs:
        job.get(DEADLINE)
    eventually(lambda: pool.health().status == "idle")


def test_job_that_hangs_is_named(
    make_pool: Any, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in the log, with its stack, and in the health until it has ended."""
    caplog.set_level(logging.INFO, "poolwatch")
    pool = make_pool(2, stall_after=0.3)
    idle(pool, 2)  # to come up may take longer than that
    heard: list[events.JobStalled] = []
    pool.listen(heard.append, events.JobStalled)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    eventually(lambda: heard, 0.3 + 2.0)
    (event,) = heard
    assert (event.job_id, event.job, event.pid) == (job.job_id, "hang", job.pid)
    assert event.seconds >= 0.3
    assert "in hang" in (event.stack or "")
    (record,) = [entry for entry in caplog.records if "has been running" in entry.getMessage()]
    assert record.levelno == logging.WARNING
    assert "in hang" in (record.stack_info or "")
    health = pool.health()
    assert health.status == "degraded"
    assert f"job {job.job_id} hang has been running for" in health.reason
    second = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    eventually(lambda: pool.health().status == "stalled")
    assert not pool.health().ok
    assert pool.health().reason.endswith("(and 1 more)")
    eventually(lambda: len(heard) == 2)
    job.terminate()
    second.terminate()
    eventually(lambda: pool.health().status == "idle")
    assert len(messages(caplog, "has been running")) == 2


def test_items_of_a_chunk_have_a_time_each(make_pool: Any, tmp_path: Any) -> None:
    """Many short items in one long chunk are no stall."""
    pool = make_pool(1, stall_after=0.5)
    heard: list[events.JobStalled] = []
    pool.listen(heard.append, events.JobStalled)
    pool.map(work.pid_after, [0.05] * 30, 30)
    assert heard == []


@pytest.mark.parametrize("busy", [True, False])
def test_stopped_worker_is_named(
    make_pool: Any, stage: Stage, caplog: pytest.LogCaptureFixture, busy: bool
) -> None:
    """Whether it runs a job or waits for one; in the health at once, in the log in time."""
    caplog.set_level(logging.INFO, "poolwatch")
    pool = make_pool(1, stall_after=0.4)
    pid = only_worker(pool)
    if busy:
        pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
        stage.heard()
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: pool.health().status == ("stalled" if busy else "degraded"))
        assert f"(pid {pid}) is stopped by a signal or a debugger" in pool.health().reason
        eventually(lambda: messages(caplog, "is stopped by a signal"), 0.4 + 2.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    stage.let_go()
    eventually(lambda: pool.health().status == "idle")
    assert len(messages(caplog, "is stopped by a signal")) == 1


def test_broken_initializer_is_named(
    make_pool: Any, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With what it raised, while the pool still tries, and when it has given up."""
    caplog.set_level(logging.INFO, "poolwatch")
    path = str(tmp_path / "boots")
    pool = make_pool(1, faults.initializer_raises, (path,), max_boot_failures=60)
    job = pool.apply_async(work.square, (3,))
    eventually(lambda: pool.health().problems)
    health = pool.health()
    assert health.status == "stalled"
    assert "in a row did not boot; the last:" in health.reason
    assert "LookupError('no such configuration')" in health.reason
    eventually(lambda: messages(caplog, "did not boot"))
    with pytest.raises(BootError):
        job.get(DEADLINE * 2)
    health = pool.health()
    assert (health.status, health.ok) == ("broken", False)
    assert "BootError" in health.reason


def test_initializer_that_hangs_is_named(
    make_pool: Any, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that does not come up within stall_after."""
    caplog.set_level(logging.INFO, "poolwatch")
    pool = make_pool(1, faults.hang, (stage.bell,), stall_after=0.3)
    pool.apply_async(work.square, (3,))
    stage.heard()
    eventually(lambda: messages(caplog, "has been booting for"), 0.3 + 2.0)
    assert pool.health().status == "stalled"
    assert "has been booting for" in pool.health().reason


def test_supervisor_that_is_held_up_is_named(make_pool: Any) -> None:
    """A policy of the user's that blocks stops everything, and the health says so."""
    entered, leave = threading.Event(), threading.Event()

    class Blocking(LostWorkerPolicy):
        def on_lost(self, job: Any, postmortem: Any) -> Fail:
            entered.set()
            leave.wait(DEADLINE)
            return Fail()

    pool = make_pool(1, lost_worker_policy=Blocking())
    job = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
    assert entered.wait(DEADLINE)
    health = pool.health(timeout=0.2)
    assert (health.status, health.ok) == ("stalled", False)
    assert health.reason == "the supervisor has not answered within 0.2 s"
    leave.set()
    with pytest.raises(WorkerLostError):
        job.get(DEADLINE)


def test_blocked_callback_is_named(make_pool: Any) -> None:
    """Jobs with callbacks wait for it: the pool is degraded."""
    entered, leave = threading.Event(), threading.Event()

    def block(value: object) -> None:
        entered.set()
        leave.wait(DEADLINE)

    pool = make_pool(1, stall_after=0.2)
    pool.apply_async(work.square, (3,), callback=block)
    assert entered.wait(DEADLINE)
    eventually(lambda: pool.health().status == "degraded")
    assert "a callback, hook or listener has been running for" in pool.health().reason
    leave.set()
    eventually(lambda: pool.health().status == "idle")


def test_one_slow_callback_is_no_stall(make_pool: Any) -> None:
    """While jobs flow, also in workers that are replaced after each."""
    entered, leave = threading.Event(), threading.Event()

    def block(value: object) -> None:
        entered.set()
        leave.wait(DEADLINE)

    pool = make_pool(1, maxtasksperchild=1, stall_after=1.0)
    pool.apply_async(work.square, (3,), callback=block)
    assert entered.wait(DEADLINE)
    eventually(lambda: pool.health().status == "degraded")
    found = set()
    for _ in range(15):
        job = pool.apply_async(work.square, (3,))
        while not job.ready():
            found.add(pool.health().status)
    leave.set()
    assert found <= {"degraded"}


def test_worker_that_comes_while_the_pool_is_looked_at(
    make_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor hires and takes leave whoever looks at its workers just then."""
    pool = make_pool(1)
    assert_full_strength(pool)
    workers = pool._core.supervisor.crew.workers
    has_ended = WorkerProcess.has_ended
    asked = []

    def one_more(self: WorkerProcess) -> bool:
        workers[-1 - len(asked)] = self
        asked.append(self)
        return has_ended(self)

    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "has_ended", one_more)
        try:
            assert pool.health().status == "idle"
            assert asked
        finally:
            for token in [token for token in workers if token < 0]:
                del workers[token]


def test_log_handler_that_raises_silences_nobody(make_pool: Any) -> None:
    """Listeners hear, callbacks run."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left on device")

    handler, log = Broken(), logging.getLogger("poolwatch")
    log.addHandler(handler)
    try:
        pool = make_pool(1)
        heard: list[events.JobLost] = []
        pool.listen(heard.append, events.JobLost)
        with pytest.raises(WorkerLostError):
            pool.apply_async(faults.kill_self, (signal.SIGKILL,)).get(DEADLINE)
        eventually(lambda: heard)
        done: list[int] = []
        assert pool.apply_async(work.square, (3,), callback=done.append).get(DEADLINE) == 9
        assert done == [9]
        assert pool.health().ok
    finally:
        log.removeHandler(handler)


def test_hiccup_of_the_initializer_is_forgotten(make_pool: Any, tmp_path: Any) -> None:
    """Once all workers are up the pool is well, whether or not it has had work since."""
    path = str(tmp_path / "boots")
    pool = make_pool(2, faults.initializer_raises_at_first, (path, 1))
    eventually(lambda: pool.health().workers == 2)
    eventually(lambda: pool.health().status == "idle")


def test_job_that_waits_for_another_attempt_waits(make_pool: Any) -> None:
    """It does not run."""
    pool = make_pool(1, lost_worker_policy=RetryLost(2, backoff=30.0))
    job = pool.apply_async(faults.kill_self, (signal.SIGKILL,))
    eventually(lambda: pool.stats().retried == 1)
    assert pool.stats().waiting == 1
    waiting = "1 jobs wait for workers that are coming up"
    assert pool.health().reason in ("0 jobs run and 1 wait", waiting)
    job.terminate()


def test_job_is_reported_once_also_when_it_is_stopped_meanwhile(
    make_pool: Any, stage: Stage
) -> None:
    """A debugger that looks at it makes no news of it."""
    pool = make_pool(1, stall_after=0.2)
    heard: list[events.JobStalled] = []
    stopped: list[events.WorkerStalled] = []
    pool.listen(heard.append, events.JobStalled)
    pool.listen(stopped.append, events.WorkerStalled)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    eventually(lambda: heard)
    os.kill(job.pid, signal.SIGSTOP)
    eventually(lambda: stopped)
    os.kill(job.pid, signal.SIGCONT)
    looks: list[object] = []
    finder = pool._core.supervisor.stall_finder
    find = finder.find
    finder.find = lambda: looks.append(None) or find()
    eventually(lambda: len(looks) > 5)
    assert len(heard) == 1
    job.terminate()


def test_jobs_that_wait_beside_idle_workers_are_our_bug(
    make_pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said as such, and put right."""
    pool = make_pool(1, stall_after=0.2)
    assert_full_strength(pool)
    dispatcher = pool._core.dispatcher
    eventually(
        lambda: not (dispatcher.recalls.looking or dispatcher.recalls.expecting)
    )  # they would find it
    call = pool._core.snapshot.encode(work.square, (3,), {})
    job = Job(1000, "square", *call[:2], NO_OPTIONS, pool)
    with dispatcher.lock:
        dispatcher.backlog.append(job)  # nobody has been told
        dispatcher.unfinished += 1
    eventually(lambda: messages(caplog, "that is a bug of poolwatch"))
    eventually(lambda: job.ready)
    assert job.result() == (True, 9)


def test_pool_that_has_ended_is_broken(make_pool: Any) -> None:
    """Terminated, or closed and done."""
    pool = make_pool(1)
    pool.close()
    pool.join(DEADLINE)
    assert pool.health().status == "broken"
    assert pool.health().reason == "the pool has been closed or terminated"


def test_health_may_be_asked_anywhere(make_pool: Any) -> None:
    """In a callback, where one must not wait for the pool."""
    pool = make_pool(1)
    found: list[Any] = []
    job = pool.apply_async(work.square, (3,), callback=lambda value: found.append(pool.health()))
    job.get(DEADLINE)
    assert found[0].ok


@pytest.mark.parametrize(("value", "error"), [("1", TypeError), (0, ValueError), (-1, ValueError)])
def test_wrong_bounds_are_refused(make_pool: Any, value: Any, error: type[Exception]) -> None:
    """By name, at the call."""
    with pytest.raises(error, match="stall_after"):
        make_pool(1, stall_after=value)
    with pytest.raises(error, match="timeout"):
        make_pool(1).health(value)
