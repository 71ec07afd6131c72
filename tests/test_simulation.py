"""The supervisor through random schedules, without processes: every job ends, exactly once.

A schedule is a list of numbers. Most of them let workers go on, so that a schedule gets somewhere;
the others do harm.
"""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import FakeWorker, World

from poolwatch import FailFast, GracePeriod, JobState, RetryLost
from poolwatch.job import NO_OPTIONS, Job, JobOptions
from poolwatch.policies import LostWorkerPolicy
from poolwatch.transport import frames
from poolwatch.workers import WorkerState

POLICIES: tuple[LostWorkerPolicy | None, ...] = (
    None,
    None,
    FailFast(),
    GracePeriod(0.2),
    RetryLost(2),
    RetryLost(3, backoff=0.1),
)
PAUSES = (0.001, 0.004, 0.004, 0.01, 0.06, 0.11, 0.2, 1.0)
EXIT_CODES = (-9, -6, -11, 0, 3)


class Schedule:
    """Carries out a list of numbers on a world."""

    def __init__(self, workers: int, with_priorities: bool = False) -> None:
        self.world = World(workers)
        self.with_priorities = with_priorities
        # As if many short jobs had been run: jobs are sent ahead.
        self.world.supervisor.dispatcher.average = 0.0

    def run(self, actions: list[tuple[int, int]]) -> None:
        """Do what the numbers say; check the books after each."""
        for kind, choice in actions:
            self.act(kind, choice)
            self.check_books()

    def act(self, kind: int, choice: int) -> None:
        """Do one thing: the first number says what, the second with whom or how."""
        world = self.world
        if kind < 40:
            self.work(choice)
        elif kind < 52:
            self.read(choice)
        elif kind < 66:
            self.submit(choice)
        elif kind < 74:
            world.make_worker()
        elif kind < 75:
            world.refuse_worker()
        elif kind < 81:
            world.report_exit()
        elif kind < 84:
            world.deliver_signal(swallow=choice % 2 == 1)
        elif kind < 91:
            world.pass_time(PAUSES[choice % len(PAUSES)])
        elif kind < 94:
            self.kill(choice)
        elif kind < 98:
            self.end_job(choice)
        elif kind < 108:
            self.work_meanwhile(choice)
        elif kind < 112:
            world.help(1 + choice)
        elif kind < 116:
            world.come_by()
        else:
            world.delivery.run()

    def worker(self, choice: int) -> FakeWorker | None:
        """Return one of the living workers."""
        alive = [worker for worker in self.world.workers.values() if worker.alive]
        return alive[choice % len(alive)] if alive else None

    def work(self, choice: int) -> None:
        """A worker goes on for some steps."""
        worker = self.worker(choice)
        for _ in range(1 + choice // 4 if worker else 0):
            worker.step()  # type: ignore[union-attr]

    def work_meanwhile(self, choice: int) -> None:
        """A worker goes on a little, or dies, while the parent is in the middle of something."""
        worker = self.worker(choice)
        if worker is None:
            return
        accesses, turns = choice % 7, 1 + choice // 3

        def go_on() -> None:
            for _ in range(turns):
                worker.step()

        dies = choice == 19 and worker.booted
        self.world.soon(accesses, (lambda: worker.die(-9)) if dies else go_on)

    def read(self, choice: int) -> None:
        """The supervisor reads what a worker wrote, or a host does."""
        worker = self.worker(choice)
        if worker is not None and choice < 10:
            self.world.read(worker)
        elif worker is not None:
            self.world.host(worker)

    def submit(self, choice: int) -> None:
        """A few jobs come in, with or without a policy and a limit."""
        timeout = 0.1 if choice % 5 == 4 else None
        priority = (0, 0, 0, 1, -1, 2, 0)[choice % 7]
        options = JobOptions(
            policy=POLICIES[choice % len(POLICIES)], timeout=timeout, priority=priority
        )
        dispatcher = self.world.supervisor.dispatcher
        for _ in range(1 + choice % 3):
            is_plain = choice % 2 or (priority and not self.with_priorities)
            dispatcher.ranked |= bool(priority and not is_plain)
            self.world.submit(NO_OPTIONS if is_plain else options)
            if priority and not is_plain:
                dispatcher.recalls.urge()

    def kill(self, choice: int) -> None:
        """A worker dies, whatever it does."""
        worker = self.worker(choice)
        if worker is not None and worker.booted:
            worker.die(EXIT_CODES[choice % len(EXIT_CODES)])

    def end_job(self, choice: int) -> None:
        """Somebody ends one of the unfinished jobs on purpose."""
        unfinished = [job for job in self.world.jobs if not job.state.final]
        if unfinished:
            job = unfinished[choice % len(unfinished)]
            orders = self.world.supervisor.orders
            if choice % 2:
                orders.cancel(job)
            else:
                orders.terminate(job, 15)

    def check_books(self) -> None:
        """The count of unfinished jobs is right, and each of them is somewhere."""
        supervisor = self.world.supervisor
        dispatcher = supervisor.dispatcher
        places = [*dispatcher.arrivals, *dispatcher.backlog, *supervisor.aside.jobs]
        for worker in supervisor.crew.workers.values():
            places.extend(worker.jobs.values())
        unfinished = [job for job in self.world.jobs if not job.state.final]
        assert dispatcher.unfinished + len(dispatcher.arrivals) == len(unfinished)
        for job in unfinished:
            assert places.count(job) == 1, (job, places)
        ranks = [-job.options.priority for job in dispatcher.backlog]
        assert ranks == sorted(ranks)

    def check_end(self) -> None:
        """Every job has ended, ran as often as it may, and for the reason it gives."""
        self.world.run_out()
        for job in self.world.jobs:
            assert job.state.final, job
            assert job.ready, job
            self.check_job(job)
        assert not self.world.broken

    def check_job(self, job: Job) -> None:
        """One job's end agrees with what happened to it."""
        starts = len(self.world.started.get(job.id, []))
        policy = job.options.policy
        allowed = policy.max_attempts if isinstance(policy, RetryLost) else 1
        assert starts <= allowed, (job, starts)
        if job.state is JobState.SUCCEEDED:
            assert starts >= 1
            assert job.result() == (True, (str, (job.id,), {}))
        elif job.state is JobState.LOST:
            assert not job.terminated
            assert job.worker_lost is not None
            assert job.id in self.world.taken  # what was never begun moves, and is not lost
            assert job.id not in self.world.written  # what was finished keeps its result
        elif job.state is JobState.TIMED_OUT:
            assert job.limit is not None
            assert job.id in self.world.taken
            assert job.id not in self.world.written
        else:
            assert job.state in (JobState.TERMINATED, JobState.CANCELLED)
            assert job.terminated
            assert job.cancelled == (job.state is JobState.CANCELLED)


class SizedSchedule(Schedule):
    """The number of workers changes too: grow, shrink, restart, and by what there is to do."""

    def __init__(self, workers: int, least: int | None) -> None:
        super().__init__(workers)
        self.least = least
        if least is not None:
            self.world = World(workers, min_processes=least, idle_timeout=0.2)

    def act(self, kind: int, choice: int) -> None:
        if kind <= 118:
            super().act(kind, choice)
        elif kind < 124:
            self.world.grow()
        elif kind < 130:
            self.world.shrink()
        elif kind < 132:
            self.world.restart()
        else:
            self.world.loop.settle()

    def check_books(self) -> None:
        super().check_books()
        supervisor = self.world.supervisor
        if not self.world.loop.soon:  # or the supervisor has not come to it yet
            assert supervisor.crew.present() <= supervisor.sizing.most

    def check_end(self) -> None:
        super().check_end()
        supervisor = self.world.supervisor
        for _ in range(200):
            self.world.go_round()
        workers = list(supervisor.crew.workers.values())
        assert [worker.state for worker in workers] == [WorkerState.UP] * len(workers)
        assert {worker.generation for worker in workers} <= {supervisor.crew.generation}
        if self.least is None:
            assert len(workers) == supervisor.sizing.most
        else:
            assert len(workers) <= min(self.least, supervisor.sizing.most)
            assert len(self.world.loop.timers) == 0  # an idle pool sleeps


ACTIONS = st.lists(st.tuples(st.integers(0, 118), st.integers(0, 19)), min_size=150, max_size=400)


@pytest.mark.timeout(300)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(workers=st.integers(1, 3), actions=ACTIONS)
def test_every_job_ends_once_whatever_happens(workers: int, actions: list[tuple[int, int]]) -> None:
    """Recalls, deaths, limits, terminations and retries in any order leave no job behind."""
    schedule = Schedule(workers)
    schedule.run(actions)
    schedule.check_end()


@pytest.mark.timeout(300)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(workers=st.integers(1, 3), actions=ACTIONS)
def test_every_job_ends_once_with_priorities(workers: int, actions: list[tuple[int, int]]) -> None:
    """The same with priorities; the line is in their order after each action, whatever it was."""
    schedule = Schedule(workers, with_priorities=True)
    schedule.run(actions)
    schedule.check_end()


SIZED = st.lists(st.tuples(st.integers(0, 134), st.integers(0, 19)), min_size=150, max_size=400)


@pytest.mark.timeout(300)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(workers=st.integers(1, 3), least=st.none() | st.integers(0, 1), actions=SIZED)
def test_every_job_ends_once_whatever_the_size(
    workers: int, least: int | None, actions: list[tuple[int, int]]
) -> None:
    """The same while workers come and go; in the end there are as many as there should be."""
    schedule = SizedSchedule(workers, least)
    schedule.run(actions)
    schedule.check_end()


def look(world: World, way: str) -> None:
    """The parent looks at what the worker has written, in one of the ways there are."""
    (worker,) = world.workers.values()
    if way == "read":
        world.read(worker)
    elif way == "host":
        world.host(worker)
    elif way == "help":
        world.help(4)
    elif way == "submit":
        world.submit()
    elif way == "come by":
        world.come_by()
    elif way == "come by, then wait":
        world.come_by()
        world.help(4)
    else:
        record = world.record(worker)
        assert record is not None
        world.supervisor.intake.take_rings([record])


def worker_with_jobs(count: int, steps: int, only_simple: bool = False) -> tuple[World, FakeWorker]:
    """Return a world with one worker that has been sent some jobs and has done some steps."""
    world = World(1)
    world.make_worker()
    (worker,) = world.workers.values()
    worker.step()
    world.read(worker)
    for number in range(count):
        # What has options is left to the supervisor, whoever looks first.
        simple = only_simple or number % 2 == 0
        world.submit(NO_OPTIONS if simple else JobOptions(tag=number))
    dispatcher, record = world.supervisor.dispatcher, world.record(worker)
    assert record is not None
    with dispatcher.lock:
        dispatcher.average = 0.0
        dispatcher.refill(record)
    assert len(record.jobs) == count
    for _ in range(steps):
        worker.step()
    return world, worker


@pytest.mark.parametrize(
    "way", ["read", "host", "help", "submit", "come by", "come by, then wait", "take rings"]
)
@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_no_wake_up_is_lost(way: str, jobs: int, thorough: bool) -> None:
    """Wherever the worker is and whatever it does between two looks of the parent, it is heard.

    All combinations: how far the worker has come when the parent begins to look, before which of
    the parent's accesses the worker goes on, and by how many steps.
    """
    at_once = (1, 2, 3, 4, 6, 9) if thorough or jobs < 3 else (2, 9)
    for steps in range(9 * jobs):
        for access in range(9):
            for more in at_once:
                world, worker = worker_with_jobs(jobs, steps)

                def go_on(worker: FakeWorker = worker, more: int = more) -> None:
                    for _ in range(more):
                        worker.step()

                world.soon(access, go_on)
                look(world, way)
                world.meanwhile.clear()
                world.run_out(60)
                unfinished = [job for job in world.jobs if not job.ready]
                assert not unfinished, (steps, access, more)


def test_result_in_the_ring_comes_before_the_leave_in_the_stream() -> None:
    """A worker that leaves has delivered what it put before: that job does not move on."""
    world, worker = worker_with_jobs(2, 0)
    while not world.written:
        worker.step()
    worker._write(frames.LEAVING, 0)
    world.read(worker)
    assert [job.state for job in world.jobs] == [JobState.SUCCEEDED, JobState.PENDING]
    worker.die(0)
    world.run_out()
    assert [len(runs) for runs in world.started.values()] == [1, 1]


def test_help_ends_in_time_while_results_flow() -> None:
    """A caller that waits a third of a millisecond does not stay for the results of others."""
    world, worker = worker_with_jobs(120, 0, only_simple=True)
    clock = itertools.count(0, 10_000)

    def go_on() -> None:
        for _ in range(4):
            worker.step()
        world.soon(0, go_on)

    go_on()
    with mock.patch("poolwatch.assist.monotonic_ns", side_effect=clock):
        world.supervisor.assist.until(lambda: False, 0.0003)
    assert 300_000 < next(clock) < 350_000
    world.meanwhile.clear()
    assert 0 < world.supervisor.dispatcher.unfinished < 120
    world.run_out()
    assert all(job.ready for job in world.jobs)


def worlds_workers(world: World, count: int) -> list[FakeWorker]:
    """Have so many workers made and up."""
    for _ in range(count):
        world.make_worker()
    workers = list(world.workers.values())
    for worker in workers:
        worker.step()
        world.read(worker)
    return workers


def test_worker_that_has_drained_and_stands_still_is_killed() -> None:
    """While it runs its job it has all the time; once it holds nothing it must leave in seconds."""
    world = World(2)
    workers = worlds_workers(world, 2)
    world.submit()
    world.submit()
    for worker in workers:
        for _ in range(3):
            worker.step()
    world.shrink()
    world.pass_time(60)
    assert not world.signals
    (leaver,) = [w for w in workers if world.record(w).state is WorkerState.LEAVING]
    while leaver.stage != "idle":
        leaver.step()
    world.read(leaver)
    assert world.jobs[workers.index(leaver)].ready or world.jobs[1 - workers.index(leaver)].ready
    world.pass_time(60)
    assert list(world.signals) == [(leaver.token, 9)]


def test_replacement_gets_the_processor_of_whoever_is_still_leaving() -> None:
    """A recycled worker has not gone yet when the one after it is made."""
    for gone in (0, 1):
        world = World(2, cpu_affinity=(4, 7))
        workers = worlds_workers(world, 2)
        processors = [world.record(worker).processor for worker in workers]
        assert processors == [4, 7]
        workers[gone]._write(frames.LEAVING, 0)
        world.read(workers[gone])
        world.loop.settle()
        newest = list(world.supervisor.crew.workers.values())[-1]
        assert newest.token == 3
        assert newest.processor == processors[gone]


def test_nobody_waits_behind_a_long_job_while_a_worker_is_idle() -> None:
    """Jobs that are taken back go to idle workers two at a time, and each of those may be long."""
    world = World(1)
    (first,) = worlds_workers(world, 1)
    dispatcher = world.supervisor.dispatcher
    for _ in range(4):
        world.submit()
    dispatcher.average = 0.0
    with dispatcher.lock:
        dispatcher.refill(world.record(first))
    while first.stage != "running":
        first.step()
    for _ in range(3):
        world.grow()
    world.loop.settle()
    for _ in range(3):
        world.make_worker()
    others = list(world.workers.values())[1:]
    for worker in others:
        worker.step()
        world.read(worker)
    for _ in range(20):
        world.pass_time(0.004)
        for worker in others:
            for _ in range(4):
                if worker.stage != "running":
                    worker.step()
            world.read(worker)
    assert sorted(len(tokens) for tokens in world.started.values()) == [1, 1, 1, 1]
