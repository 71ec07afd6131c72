"""The supervisor through random schedules, without processes: every job ends, exactly once.

A schedule is a list of numbers. Most of them let workers go on, so that a schedule gets somewhere;
the others do harm.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import FakeWorker, World

from poolwatch import FailFast, GracePeriod, JobState, RetryLost
from poolwatch.job import NO_OPTIONS, Job, JobOptions
from poolwatch.policies import LostWorkerPolicy

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

    def __init__(self, workers: int) -> None:
        self.world = World(workers)
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

    def read(self, choice: int) -> None:
        """The supervisor reads what a worker wrote."""
        worker = self.worker(choice)
        if worker is not None:
            self.world.read(worker)

    def submit(self, choice: int) -> None:
        """A few jobs come in, with or without a policy and a limit."""
        timeout = 0.1 if choice % 5 == 4 else None
        options = JobOptions(policy=POLICIES[choice % len(POLICIES)], timeout=timeout)
        for _ in range(1 + choice % 3):
            self.world.submit(NO_OPTIONS if choice % 2 else options)

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


ACTIONS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 19)), min_size=150, max_size=400)


@pytest.mark.timeout(120)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(workers=st.integers(1, 3), actions=ACTIONS)
def test_every_job_ends_once_whatever_happens(workers: int, actions: list[tuple[int, int]]) -> None:
    """Recalls, deaths, limits, terminations and retries in any order leave no job behind."""
    schedule = Schedule(workers)
    schedule.run(actions)
    schedule.check_end()
