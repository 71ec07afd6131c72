"""max_pending: how many jobs may be unfinished, who waits, and what ends a wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, kill_and_wait, only_worker

from poolwatch import (
    JobCancelled,
    PoolBroken,
    PoolFull,
    RetryLost,
    Terminated,
    WorkerLostError,
)
from poolwatch.job import NO_OPTIONS

pytestmark = pytest.mark.timeout(30)


def hold(pool: Any, stage: Stage) -> Any:
    """A job that runs until it is let go."""
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    return job


def in_line(pool: Any) -> int:
    return len(pool._core.slots._line)


class Submitter:
    """A thread that submits one job, and what came of it."""

    def __init__(self, pool: Any, order: list[Any], name: Any, **options: Any) -> None:
        self.error: BaseException | None = None
        self.job: Any = None

        def run() -> None:
            try:
                self.job = pool.apply_async(work.square, (2,), **options)
                order.append(name)
            except BaseException as error:  # noqa: BLE001  (looked at by the test)
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def join(self) -> None:
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()


def test_full_pool_refuses_who_may_not_wait(make_pool: Any, stage: Stage) -> None:
    """block=False, and waitforslot=False, raise PoolFull; what is refused takes no slot."""
    pool = make_pool(1, max_pending=2, block=False)
    first = hold(pool, stage)
    second = pool.apply_async(work.square, (3,))
    for options in ({}, {"waitforslot": False}):
        with pytest.raises(PoolFull, match="2 jobs"):
            pool.apply_async(work.square, (4,), **options)
    stage.let_go()
    assert second.get(DEADLINE) == 9
    first.get(DEADLINE)
    assert pool.apply_async(work.square, (4,)).get(DEADLINE) == 16


def test_waitforslot_overrules_the_pool(make_pool: Any, stage: Stage) -> None:
    """True waits in a pool that does not block, False does not in one that does."""
    pool = make_pool(1, max_pending=1, block=False)
    hold(pool, stage)
    waiting = Submitter(pool, [], 0, waitforslot=True)
    eventually(lambda: in_line(pool) == 1)
    stage.let_go()
    waiting.join()
    assert waiting.job.get(DEADLINE) == 4
    blocking = make_pool(1, max_pending=1)
    hold(blocking, stage)
    with pytest.raises(PoolFull):
        blocking.apply_async(work.square, (1,), waitforslot=False)
    stage.let_go()


def test_submissions_are_let_in_in_order_of_arrival(make_pool: Any, stage: Stage) -> None:
    """Five threads wait for the one slot; the ends of jobs let them in, first come first served."""
    pool = make_pool(1, max_pending=1)
    hold(pool, stage)
    order: list[int] = []
    waiting = []
    for number in range(5):
        waiting.append(Submitter(pool, order, number))
        eventually(lambda number=number: in_line(pool) == number + 1)
    stage.let_go()
    for submitter in waiting:
        submitter.join()
    assert order == sorted(order)
    assert len(order) == 5
    assert in_line(pool) == 0


def _die(pool: Any, job: Any) -> None:
    kill_and_wait(job.pid)


def _lose_and_retry(pool: Any, job: Any) -> None:
    kill_and_wait(job.pid)
    eventually(lambda: job.attempts == 2)
    job.terminate(signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (_die, WorkerLostError),
        (lambda pool, job: job.terminate(), Terminated),
        (lambda pool, job: job.cancel(), JobCancelled),
        (_lose_and_retry, Terminated),
    ],
    ids=["death", "terminate", "cancel", "retry"],
)
def test_every_end_of_a_job_gives_its_slot_back_once(
    make_pool: Any, stage: Stage, end: Callable[[Any, Any], None], error: type[Exception]
) -> None:
    """After any end there is one slot, no more and no less, and who waited has got it."""
    policy = RetryLost(3) if end is _lose_and_retry else None
    pool = make_pool(1, max_pending=1)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate), lost_worker_policy=policy)
    stage.heard()
    waiting = Submitter(pool, [], 0)
    eventually(lambda: in_line(pool) == 1)
    end(pool, job)
    with pytest.raises(error):
        job.get(DEADLINE)
    waiting.join()
    assert waiting.job.get(DEADLINE) == 4
    eventually(pool._core.slots.has_room)
    last = hold(pool, stage) if end is not _lose_and_retry else None
    if last is not None:
        with pytest.raises(PoolFull):
            pool.apply_async(work.square, (1,), waitforslot=False)
        stage.let_go()


def test_flush_gives_slots_back(make_pool: Any, stage: Stage) -> None:
    """What flush() drops makes room for who waits."""
    pool = make_pool(1, max_pending=3)
    hold(pool, stage)
    dropped = [pool.apply_async(work.square, (n,)) for n in range(2)]
    waiting = Submitter(pool, [], 0)
    eventually(lambda: in_line(pool) == 1)
    assert pool.flush() == 2
    waiting.join()
    for job in dropped:
        with pytest.raises(JobCancelled):
            job.get(DEADLINE)
    stage.let_go()
    assert waiting.job.get(DEADLINE) == 4


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_end_of_the_pool_ends_a_wait(make_pool: Any, stage: Stage, end: str) -> None:
    """A submission that waits raises what one on a closed pool raises."""
    pool = make_pool(1, max_pending=1)
    hold(pool, stage)
    waiting = [Submitter(pool, [], n) for n in range(3)]
    eventually(lambda: in_line(pool) == 3)
    getattr(pool, end)()
    for submitter in waiting:
        submitter.join()
        assert isinstance(submitter.error, ValueError)
    stage.let_go()


def test_callback_never_waits(make_pool: Any, stage: Stage) -> None:
    """In a callback, which would have to return first, a submission to a full pool is refused."""
    pool = make_pool(2, max_pending=1)
    caught: list[BaseException] = []
    told = threading.Event()

    def submit(pid: int, when: float) -> None:
        try:
            pool.apply_async(work.square, (1,))
        except BaseException as error:  # noqa: BLE001  (looked at below)
            caught.append(error)
        told.set()

    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate), accept_callback=submit)
    assert told.wait(DEADLINE)
    assert [type(error) for error in caught] == [PoolFull]
    stage.let_go()
    job.get(DEADLINE)


def test_signal_handler_never_waits_behind_its_own_thread(make_pool: Any, stage: Stage) -> None:
    """A handler that interrupts a waiting submission is refused; the submission goes on."""
    pool = make_pool(1, max_pending=1)
    hold(pool, stage)
    caught: list[BaseException] = []

    def handler(signum: int, frame: object) -> None:
        try:
            pool.apply_async(work.square, (1,))
        except PoolFull as error:
            caught.append(error)
        stage.let_go()

    def interrupt() -> None:
        eventually(lambda: in_line(pool) == 1)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=interrupt)
    try:
        thread.start()
        assert pool.apply_async(work.square, (5,)).get(DEADLINE) == 25
    finally:
        thread.join(DEADLINE)
        signal.signal(signal.SIGUSR1, before)
    assert len(caught) == 1


def test_ctrl_c_ends_a_wait_and_loses_nothing(make_pool: Any, stage: Stage) -> None:
    """KeyboardInterrupt leaves the line in order: the next one is let in, and no job is left."""
    pool = make_pool(1, max_pending=1)
    first = hold(pool, stage)
    order: list[Any] = []
    second: list[Submitter] = []

    def interrupt() -> None:
        eventually(lambda: in_line(pool) == 1)
        second.append(Submitter(pool, order, "second"))
        eventually(lambda: in_line(pool) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pool.apply_async(work.fail, ("not to be run",))
    thread.join(DEADLINE)
    assert in_line(pool) == 1
    stage.let_go()
    first.get(DEADLINE)
    second[0].join()
    assert second[0].job.get(DEADLINE) == 4
    assert not pool._core.dispatcher.unfinished


def test_maps_do_not_wait_and_take_no_slots(make_pool: Any, stage: Stage) -> None:
    """A full pool takes maps, which end; an endless imap leaves the slots to others."""
    pool = make_pool(2, max_pending=1)
    hold(pool, stage)
    assert bounded(lambda: pool.map(work.square, range(20), 1)) == [n * n for n in range(20)]
    with pool._core.dispatcher.lock:
        pass
    numbers = iter(int, 1)
    results = pool.imap(work.square, numbers)
    stage.let_go()
    assert next(results) == 0
    assert bounded(lambda: pool.apply(work.square, (6,))) == 36


def test_many_threads_through_few_slots(make_pool: Any) -> None:
    """Four threads submit short jobs into three slots: all come back, never more than three."""
    pool = make_pool(2, max_pending=3)
    most: list[int] = []
    jobs: list[Any] = []

    def submit() -> None:
        for number in range(300):
            jobs.append((number, pool.apply_async(work.square, (number,))))
            most.append(len(pool._core.slots._holders))

    threads = [threading.Thread(target=submit, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert all(job.get(DEADLINE) == number * number for number, job in jobs)
    assert len(jobs) == 1200
    assert max(most) <= 3
    assert not pool._core.slots._holders


def test_putlocks_bounds_by_the_number_of_workers(make_pool: Any, stage: Stage) -> None:
    """putlocks=True: as many unfinished jobs as there are workers to be, whatever that is now."""
    pool = make_pool(2, putlocks=True, block=False)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(2)]
    with pytest.raises(PoolFull, match="2 jobs"):
        pool.apply_async(work.square, (1,))
    pool.grow(1)
    more = pool.apply_async(work.square, (1,))
    stage.let_go(2)
    assert [type(job.get(DEADLINE)) for job in (*jobs, more)] == [int, int, int]


def test_unbounded_pool_has_no_slots(make_pool: Any) -> None:
    """Without max_pending nothing of it exists."""
    pool = make_pool(1)
    only_worker(pool)
    assert pool._core._slots is None
    assert type(pool._core).__name__ == "Core"


def test_job_that_slips_in_after_the_end_ends_too(make_pool: Any) -> None:
    """A submission that had passed the check when the pool broke, and found a worker idle."""
    pool = make_pool(1)
    only_worker(pool)
    core = pool._core
    eventually(lambda: core.dispatcher.idle)
    call = core.snapshot.encode(work.square, (2,), {})
    job = core.part_job("late", call, None, NO_OPTIONS, None)

    def break_and_submit() -> None:
        core._end_all(PoolBroken("broken"))
        core.dispatcher.submit(job)
        core._running = False

    core.call_soon(break_and_submit)
    assert bounded(lambda: job.wait(DEADLINE))
    assert isinstance(job.result()[1], PoolBroken)
