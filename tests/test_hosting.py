"""A program's own event loop reads what the workers write, in the supervisor's place.

Whatever the host does, and whatever it leaves undone, every job ends.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

import faults
import interruptions
import psutil
import pytest
import work
from helpers import DEADLINE, Stage, assert_gone, eventually, one_batch
from interruptions import Bench, Interrupter, sample

import poolwatch


class Host:
    """A program that sleeps in a loop of its own, in this thread."""

    def __init__(self, pool: Any) -> None:
        self.hosting = pool._core.supervisor.hosting
        self.read: list[str] = []  # workers whose streams the supervisor has read
        self.front = self.hosting.claim()
        on_readable = pool._core.supervisor.intake.on_readable

        def noted(worker: Any, read: list[str] = self.read) -> bool:
            read.append(worker.name)
            return bool(on_readable(worker))

        pool._core.supervisor.intake.on_readable = noted
        eventually(lambda: len(self.hosting._lent) == pool._core.size)

    def run_until(self, condition: Callable[[], object]) -> None:
        """Loop until it holds."""
        end = time.monotonic() + DEADLINE
        poll = select.poll()
        poll.register(self.front, select.POLLIN)
        while not condition():
            assert time.monotonic() < end
            if poll.poll(10):
                self.hosting.take_in()


@pytest.fixture
def pool(make_pool: Callable[..., Any]) -> Any:
    """Two workers."""
    return make_pool(2)


def test_the_host_does_the_work_alone(pool: Any) -> None:
    """Jobs with and without options, callbacks and acceptances: the supervisor reads nothing."""
    host, told = Host(pool), []
    for number in range(200):
        options: Any = (
            {"callback": told.append, "accept_callback": lambda *_: None, "timeout": 30.0}
            if number % 2
            else {}
        )
        job = pool.apply_async(work.square, (number,), **options)
        host.run_until(job.ready)
        assert job.get(0) == number * number
    eventually(lambda: told == [number * number for number in range(1, 200, 2)])
    assert len(host.read) < 20  # it has looked where the host was slow


def test_a_host_that_stands_still_is_stood_in_for(pool: Any) -> None:
    """Nobody calls the pool from the loop: the supervisor finds that out, and goes on."""
    host = Host(pool)
    jobs = [pool.apply_async(work.square, (number,)) for number in range(100)]
    for job in jobs:
        eventually(job.ready)
    assert [job.get(0) for job in jobs] == [number * number for number in range(100)]
    assert host.read
    later = pool.apply_async(work.square, (7,))
    eventually(later.ready)


def test_great_calls_and_results_go_by_the_supervisor(pool: Any) -> None:
    """More than a ring and more than a socket holds, in both directions."""
    host = Host(pool)
    data = os.urandom(3_000_000)
    jobs = [pool.apply_async(bytes, (data[: 1000 * number],)) for number in (1, 20, 200, 3000) * 3]
    jobs += [pool.apply_async(bytes, (1000 * number,)) for number in (1, 20, 200, 3000)]
    host.run_until(lambda: all(job.ready() for job in jobs))
    assert [len(job.get(0)) for job in jobs] == [1000 * number for number in (1, 20, 200, 3000) * 4]
    again = pool.apply_async(work.square, (3,))
    host.run_until(again.ready)
    eventually(lambda: len(host.hosting._lent) == 2)


def test_a_death_is_dealt_with_by_the_supervisor(pool: Any, stage: Stage) -> None:
    """Whether the host looks or not: the job ends with its loss, and the new stream is lent too."""
    host = Host(pool)
    for looks in (True, False, True):
        job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
        pid = int(stage.heard())
        os.kill(pid, signal.SIGKILL)
        (host.run_until if looks else eventually)(job.ready)
        with pytest.raises(poolwatch.WorkerLostError, match="SIGKILL"):
            job.get(0)
        assert_gone(pid)
        eventually(lambda: len(host.hosting._lent) == 2)
    with one_batch(pool):
        pass


def test_a_stream_that_has_ended_is_not_lent_again(make_pool: Callable[..., Any]) -> None:
    """Its end stays readable: nobody is kept busy with it until the worker's death is reported."""
    pool = make_pool(1)
    host = Host(pool)
    worker = psutil.Process(pool.workers[0].pid)
    zygote = worker.parent()
    assert zygote is not None
    zygote.suspend()
    try:
        job = pool.apply_async(faults.close_every_descriptor_and_hang)
        host.run_until(lambda: worker.status() == psutil.STATUS_ZOMBIE)
        end = time.monotonic() + 0.2
        host.run_until(lambda: time.monotonic() > end)
        assert len(host.read) < 10
    finally:
        zygote.resume()
    host.run_until(job.ready)
    with pytest.raises(poolwatch.WorkerLostError, match="closed its stream"):
        job.get(0)
    eventually(lambda: len(host.hosting._lent) == 1)


def test_workers_that_are_replaced_are_lent(make_pool: Callable[..., Any]) -> None:
    """Each worker does two jobs: farewells go to the supervisor, and nothing is lost."""
    pool = make_pool(2, maxtasksperchild=2)
    host = Host(pool)
    jobs = [pool.apply_async(work.square, (number,)) for number in range(30)]
    host.run_until(lambda: all(job.ready() for job in jobs))
    assert [job.get(0) for job in jobs] == [number * number for number in range(30)]
    assert pool.stats().losses == {}


def test_a_farewell_is_heard_when_the_host_stands_still(make_pool: Callable[..., Any]) -> None:
    """A worker that has said that it leaves is not taken for one that does not answer."""
    pool = make_pool(2)
    host = Host(pool)
    pool.shrink(1)
    pool.close()
    eventually(lambda: not host.hosting._lent)
    pool.join(DEADLINE)
    assert host.read


def test_released_streams_are_read_by_the_supervisor(pool: Any) -> None:
    """Also what came before, and after another claim."""
    host = Host(pool)
    for _ in range(3):
        jobs = [pool.apply_async(work.square, (number,)) for number in range(10)]
        host.hosting.release()
        for job in jobs:
            eventually(job.ready)
        eventually(lambda: not host.hosting._lent)
        assert host.hosting.claim() is host.front
        eventually(lambda: len(host.hosting._lent) == 2)
    assert host.hosting.claim() is host.front


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_pool_may_end_while_its_streams_are_lent(make_pool: Callable[..., Any], end: str) -> None:
    """The host has gone without a word; what was submitted ends, and no descriptor stays."""
    pool = make_pool(2)
    host = Host(pool)
    jobs = [pool.apply_async(work.square, (number,)) for number in range(20)]
    getattr(pool, end)()
    pool.join(DEADLINE)
    assert all(job.ready() for job in jobs)
    assert host.hosting._poller is None
    assert host.hosting.claim() is None
    host.hosting.take_in()
    host.hosting.release()


class HostedBench(Bench):
    """A pool whose streams are lent to this thread."""

    def renew(self) -> None:
        """See ``Bench.renew``."""
        super().renew()
        self.host = Host(self.pool)
        self.accepted: set[int] = set()

    def use(self) -> None:
        """Submit some jobs, and take in until they have ended."""
        self.great = self.pool.apply_async(bytes, (100_000,))  # is handed over
        self.submit(6)
        for job in [self.great, *self.jobs.values()]:
            self.host.run_until(job.ready)

    def submit(self, count: int = 1) -> None:
        """See ``Bench.submit``; of every second one the acceptance is told."""
        accepted = self.accepted
        for _ in range(count):
            self.numbers += 1
            number, options = self.numbers, {}
            if number % 2:
                options["accept_callback"] = lambda pid, when, n=number: accepted.add(n)
            call = work.noted, (self.path, number)
            self.jobs[number] = self.pool.apply_async(*call, **options)

    def check(self) -> None:
        """See ``Bench.check``; and both streams are lent again."""
        eventually(self.great.ready, 6.0)
        eventually(lambda: {number for number in self.jobs if number % 2} <= self.accepted, 6.0)
        super().check()
        self.host.run_until(lambda: len(self.host.hosting._lent) == 2)


class Interruption(Exception):
    """What a signal handler raises."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("raises", [True, False], ids=["raise", "submit"])
def test_a_handler_may_interrupt_the_host(
    make_pool: Callable[..., Any], tmp_path: Any, monkeypatch: Any, raises: bool, thorough: bool
) -> None:
    """At any point of its part in the pool's work; all that was submitted ends, and ran once."""
    folder = os.path.dirname(poolwatch.__file__)
    files = [f"{folder}/{name}.py" for name in ("hosting", "transport/streams")]
    monkeypatch.setattr(interruptions, "_FILES", interruptions._FILES.union(files))
    bench = HostedBench(make_pool, tmp_path / "noted")
    bench.begin()
    found = interruptions.points(bench.use, interruptions.SEED)
    reached = 0
    inside = {"hosting.py", "intake.py", "endings.py", "streams.py"}
    found = [point for point in found if point[0][0] in inside][: sample(thorough)]
    for place, turn in found:
        bench.begin()

        def act() -> None:
            if raises:
                raise Interruption
            bench.submit(2)

        with Interrupter(act, place, turn) as interrupter:
            try:
                bench.use()
            except Interruption:
                pass
        reached += interrupter.done
        try:
            bench.check()
        except AssertionError as error:
            raise AssertionError(f"interrupted at {place}, turn {turn}") from error
    assert reached >= len(found) // 4
