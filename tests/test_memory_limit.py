"""Memory: jobs that grow beyond their limit, and what the kernel does when there is none left."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import death_work
import pytest
import work
from helpers import DEADLINE, Stage, assert_full_strength, eventually, only_worker

from poolwatch import MemoryLimitExceeded, OutOfMemory, WorkerLostError, events

pytestmark = pytest.mark.timeout(60)

MIB = 2**20


@pytest.mark.every_start_method
def test_job_that_grows_is_killed(make_pool: Any) -> None:
    """The error has limit, samples, stack and record; the neighbour and the pool go on."""
    pool = make_pool(2)
    heard: list[events.JobOutgrew] = []
    pool.listen(heard.append, events.JobOutgrew)
    job = pool.apply_async(death_work.grow_for_ever, memory_limit=300 * MIB)
    with pytest.raises(MemoryLimitExceeded, match="memory limit of 300 MiB") as caught:
        job.get(DEADLINE)
    error = caught.value
    assert error.limit == 300 * MIB
    assert error.rss is not None
    assert error.rss > 300 * MIB
    assert error.samples[-1][1] == error.rss
    seconds = [when for when, _ in error.samples]
    assert seconds == sorted(seconds)
    assert "grow_for_ever" in (error.stack or "")
    record = error.postmortem
    assert record is not None
    assert record.verdict.startswith("killed by this pool: job 1 grow_for_ever grew beyond")
    assert (record.memory_limit, record.rss) == (300 * MIB, error.rss)
    eventually(lambda: heard)
    assert (heard[0].limit, heard[0].rss) == (300 * MIB, error.rss)
    assert_full_strength(pool)


def test_limit_of_the_pool_holds_for_every_job(make_pool: Any) -> None:
    """Jobs without a limit of their own have the pool's; their own has precedence."""
    pool = make_pool(1, memory_limit=200 * MIB)
    with pytest.raises(MemoryLimitExceeded):
        pool.apply_async(death_work.grow_for_ever).get(DEADLINE)
    assert pool.apply(work.square, (3,)) == 9
    with pytest.raises(MemoryLimitExceeded) as caught:
        pool.apply_async(death_work.grow_for_ever, memory_limit=300 * MIB).get(DEADLINE)
    assert caught.value.limit == 300 * MIB


def test_memory_of_children_counts(make_pool: Any) -> None:
    """A job whose child has the memory is killed with it."""
    pool = make_pool(1)
    job = pool.apply_async(death_work.hold_memory_in_child, (300,), memory_limit=250 * MIB)
    with pytest.raises(MemoryLimitExceeded):
        job.get(DEADLINE)
    assert_full_strength(pool)


def test_below_the_limit_nothing_happens(make_pool: Any, stage: Stage) -> None:
    """A job that stays below is sampled, and left alone."""
    pool = make_pool(1)
    job = pool.apply_async(
        death_work.hold_memory, (64, stage.bell, stage.gate), memory_limit=1024 * MIB
    )
    stage.heard()
    worker = next(iter(pool._core.supervisor.crew.workers.values()))
    eventually(lambda: (worker.rss or 0) > 64 * MIB)
    stage.let_go()
    assert job.get(DEADLINE) == 64 * MIB


def test_only_the_guilty_item_of_a_map_pays(make_pool: Any) -> None:
    """The item that grows is killed; the items behind it run elsewhere."""
    pool = make_pool(2, memory_limit=300 * MIB)
    outcomes = pool.map_async(death_work.grow_if, range(8), 8).outcomes(DEADLINE)
    assert [value for ok, value in outcomes[3:]] == [3, 4, 5, 6, 7]
    failed = [value for ok, value in outcomes if not ok]
    assert failed
    assert {type(error) for error in failed} == {MemoryLimitExceeded}


def test_nothing_is_sampled_without_work(make_pool: Any) -> None:
    """Once no job runs, nobody looks any more."""
    pool = make_pool(1, memory_limit=1024 * MIB)
    pool.apply(work.square, (3,))
    eventually(lambda: not pool._core.supervisor.memory._watching)
    assert pool.apply(work.square, (4,)) == 16
    eventually(lambda: not pool._core.supervisor.memory._watching)


@pytest.mark.parametrize(
    ("value", "error"), [("1G", TypeError), (1.5, TypeError), (0, ValueError), (512, ValueError)]
)
def test_wrong_limits_are_refused(make_pool: Any, value: Any, error: type[Exception]) -> None:
    """At the call, by name; also a number that can only be meant in other units."""
    pool = make_pool(1)
    with pytest.raises(error, match="memory_limit"):
        pool.apply_async(work.square, (1,), memory_limit=value)
    with pytest.raises(error, match="memory_limit"):
        make_pool(1, memory_limit=value)
    assert pool.apply(work.square, (2,)) == 4


def test_address_space_that_is_used_up(make_pool: Any) -> None:
    """With RLIMIT_AS a job that grows gets its own MemoryError; nobody dies for it."""
    pool = make_pool(1, death_work.limit_address_space, (1024,))
    pid = only_worker(pool)
    with pytest.raises(MemoryError):
        pool.apply_async(death_work.grow_for_ever).get(3 * DEADLINE)
    assert only_worker(pool) == pid


# -- the kernel's own ------------------------------------------------------------------------------


@pytest.fixture
def small_group() -> Iterator[str]:
    """A control group for 64 MiB of memory, where the machine lets us make one."""
    name = f"poolwatch-test-{uuid.uuid4().hex[:8]}"
    memberships = Path("/proc/self/cgroup").read_text().splitlines()
    places = []
    for line in memberships:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            places += [("/sys/fs/cgroup/memory" + path, "memory.limit_in_bytes")]
            places += [("/sys/fs/cgroup/memory", "memory.limit_in_bytes")]
        elif number == "0":
            places += [("/sys/fs/cgroup" + path, "memory.max"), ("/sys/fs/cgroup", "memory.max")]
    for parent, limit in places:
        group = os.path.join(parent, name)
        try:
            os.mkdir(group)
        except OSError:
            continue
        try:
            Path(group, limit).write_text(str(64 * MIB))
            swap = Path(group, "memory.swap.max")
            if swap.exists():
                swap.write_text("0")
        except OSError:
            os.rmdir(group)
            continue
        yield group
        eventually(lambda members=Path(group, "cgroup.procs"): not members.read_text())  # type: ignore[misc]
        os.rmdir(group)
        return
    pytest.skip("no control group for memory may be made here")


def test_out_of_memory_kill_is_called_one(make_pool: Any, small_group: str) -> None:
    """A real kill by the kernel for memory: its own class, and the counter as evidence."""
    pool = make_pool(1, death_work.enter_group, (small_group,))
    with pytest.raises(OutOfMemory) as caught:
        pool.apply_async(death_work.grow_for_ever).get(3 * DEADLINE)
    record = caught.value.postmortem
    assert record is not None
    assert record.out_of_memory
    assert record.oom is not None
    assert record.oom.kills_after > record.oom.kills_before
    assert record.oom.limit == 64 * MIB
    assert os.path.basename(small_group) in record.oom.group
    start = "killed by the kernel's out-of-memory killer: cgroup limit 64 MiB, worker at "
    assert record.verdict.startswith(start)
    assert "oom_kill of control group" in str(caught.value)
    assert pool.stats().losses == {"out of memory": 1}
    pool.terminate()
    pool.join(DEADLINE)


def test_out_of_memory_kill_after_a_job_that_was_sampled(
    make_pool: Any, small_group: str, stage: Stage
) -> None:
    """What an earlier job had is not held against the evidence."""
    pool = make_pool(1, death_work.enter_group, (small_group,))
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate), memory_limit=1024 * MIB)
    stage.heard()
    worker = next(iter(pool._core.supervisor.crew.workers.values()))
    eventually(lambda: worker.rss)
    stage.let_go()
    job.get(DEADLINE)
    with pytest.raises(OutOfMemory):
        pool.apply_async(death_work.grow_for_ever).get(3 * DEADLINE)
    pool.terminate()
    pool.join(DEADLINE)


def test_kill_of_a_child_is_not_held_against_the_worker(
    make_pool: Any, small_group: str, stage: Stage
) -> None:
    """The kernel killed a job's child, and has been seen to; the worker's own end is another."""
    pool = make_pool(1, death_work.enter_group, (small_group,))
    with pytest.raises(AssertionError):
        pool.apply(death_work.hold_memory_in_child, (200,))
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    oom = pool._core.supervisor.oom
    (watched,) = oom._groups()
    eventually(lambda: watched.kills > 0)
    eventually(lambda: watched.unused == deque())
    os.kill(job.pid, 9)
    with pytest.raises(WorkerLostError) as caught:
        job.get(DEADLINE)
    assert type(caught.value) is WorkerLostError
    pool.terminate()
    pool.join(DEADLINE)


def test_kill_from_outside_in_a_small_group_is_not_called_one(
    make_pool: Any, small_group: str, stage: Stage
) -> None:
    """The same group, a SIGKILL from outside: the counter has not gone up."""
    pool = make_pool(1, death_work.enter_group, (small_group,))
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    os.kill(job.pid, 9)
    with pytest.raises(WorkerLostError) as caught:
        job.get(DEADLINE)
    assert type(caught.value) is WorkerLostError
    assert caught.value.postmortem is not None
    assert caught.value.postmortem.verdict == "killed by SIGKILL from outside (not by this pool)"
    pool.terminate()
    pool.join(DEADLINE)
