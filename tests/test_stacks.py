"""Where workers are can be asked at any time, and does not disturb them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import death_work
import faults
import pytest
import work
from helpers import DEADLINE, Stage, eventually, only_worker

from poolwatch import TimeLimitExceeded
from poolwatch.evidence import stacks

pytestmark = pytest.mark.timeout(40)


def test_job_that_holds_the_interpreter_is_seen_while_it_runs(make_pool: Any, stage: Stage) -> None:
    """A loop in C that never lets go of the lock: its stack is there within a second."""
    pool = make_pool(1)  # another one might not have come up yet, and would be waited for
    job = pool.apply_async(death_work.hold_the_interpreter, (stage.bell,))
    stage.heard()
    began = time.monotonic()
    stacks = pool.dump_stacks()
    assert time.monotonic() - began < 2.0  # milliseconds where the machine is not busy
    (busy,) = [stack for stack in stacks if stack.job is not None]
    assert busy.pid == job.pid
    assert (busy.job, busy.phase) == ("hold_the_interpreter", "running")
    assert "in hold_the_interpreter" in (busy.stack or "")
    assert "hold_the_interpreter" in str(busy)
    job.terminate()


@pytest.mark.every_start_method
def test_limit_says_where_a_loop_in_c_is(make_pool: Any, stage: Stage) -> None:
    """The stack of the stuck job is in the error, its innermost frame in the first line."""
    pool = make_pool(1)
    job = pool.apply_async(death_work.hold_the_interpreter, (stage.bell,), timeout=0.5)
    with pytest.raises(TimeLimitExceeded) as caught:
        job.get(DEADLINE)
    assert "in hold_the_interpreter" in (caught.value.stack or "")
    first = str(caught.value).splitlines()[0]
    assert "tests/death_work.py:" in first
    assert first.endswith("in hold_the_interpreter")


def test_call_in_c_does_not_return_at_the_limit(make_pool: Any, tmp_path: Path) -> None:
    """What interrupts it must not let the job run on, and end as if nothing had been."""
    path = tmp_path / "notes"
    pool = make_pool(1)
    for _ in range(5):
        with pytest.raises(TimeLimitExceeded, match="in sleep_in_c"):
            pool.apply_async(death_work.sleep_in_c, (str(path),), timeout=0.2).get(DEADLINE)
    assert not path.exists()


def test_idle_workers_say_so(make_pool: Any) -> None:
    """Nothing but that they wait; and their frames are not shown."""
    pool = make_pool(2)
    pool.map(work.square, range(4))
    eventually(lambda: len([s for s in pool.dump_stacks() if s.phase == "idle"]) == 2)
    assert {stack.stack for stack in pool.dump_stacks()} == {""}
    assert all("it waits for a job" in str(stack) for stack in pool.dump_stacks())


def test_all_threads_are_shown(make_pool: Any, stage: Stage) -> None:
    """A thread that a job has left behind, too."""
    pool = make_pool(1)
    pool.apply(faults.leave_a_thread)
    (stack,) = pool.dump_stacks()
    assert stack.stack
    assert "Thread 0x" in stack.stack


def test_stopped_worker_does_not_hold_the_others_up(make_pool: Any, stage: Stage) -> None:
    """It has no stack; the others have theirs, after the time that was given."""
    pool = make_pool(2)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    eventually(lambda: len(pool.workers) == 2)
    other = next(worker.pid for worker in pool.workers if worker.pid != job.pid)
    os.kill(other, signal.SIGSTOP)
    try:
        found = {stack.pid: stack.stack for stack in pool.dump_stacks(timeout=0.3)}
    finally:
        os.kill(other, signal.SIGCONT)
    assert found[other] is None
    assert "in hang" in (found[job.pid] or "")


def test_initializer_that_hangs_is_seen(make_pool: Any, stage: Stage) -> None:
    """Workers that boot are asked as well."""
    pool = make_pool(1, faults.hang, (stage.bell,))
    stage.heard()
    # That there is a process is reported by the zygote, which may come later than the bell.
    eventually(lambda: any("in hang" in (each.stack or "") for each in pool.dump_stacks()))
    assert pool.dump_stacks()[0].phase == "booting"


def test_many_may_ask_at_a_time(make_pool: Any, stage: Stage) -> None:
    """Everybody gets an answer, and the files of dumps do not grow for ever."""
    pool = make_pool(1)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    answers: list[str | None] = []

    def ask() -> None:
        answers.extend(pool.dump_stacks()[0].stack for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(answers) == 80
    assert all("in hang" in (answer or "") for answer in answers)
    job.terminate()


def test_dumps_go_on_when_their_file_has_been_emptied(
    make_pool: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there have been, and wherever the worker was writing when it was emptied."""
    monkeypatch.setattr(stacks, "_FULL", 2000)
    pool = make_pool(1)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    worker = next(iter(pool._core.supervisor.crew.workers.values()))
    for _ in range(30):
        assert "in hang" in (pool.dump_stacks()[0].stack or "")
        # As a write leaves it that was under way.
        os.lseek(worker.hands.stack_fd, 50_000, os.SEEK_SET)
    assert stacks.size_of_dumps(worker) < 10_000
    job.terminate()


def test_pool_that_has_ended_has_no_stacks(make_pool: Any) -> None:
    """An empty answer, at once."""
    pool = make_pool(1)
    pid = only_worker(pool)
    pool.terminate()
    pool.join(DEADLINE)
    assert pool.dump_stacks() == []
    assert pid


@pytest.mark.parametrize(("timeout", "error"), [("1", TypeError), (0, ValueError)])
def test_wrong_timeouts_are_refused(make_pool: Any, timeout: Any, error: Any) -> None:
    """By name, at the call."""
    with pytest.raises(error, match="timeout"):
        make_pool(1).dump_stacks(timeout)
