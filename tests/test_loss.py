"""What a loss costs whom: jobs that had not begun, jobs ended on purpose, zygotes, signals."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
from typing import Any

import faults
import psutil
import pytest
import work
from helpers import (
    DEADLINE,
    ProcessWatch,
    Stage,
    assert_full_strength,
    assert_gone,
    eventually,
    kill_and_wait,
    lines,
    one_batch,
    only_worker,
    outcome,
    running_script,
    worker_pids,
)

from poolwatch import JobCancelled, Terminated, WorkerLostError, events

pytestmark = pytest.mark.timeout(40)


# -- who pays ---------------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_jobs_that_had_not_begun_move_without_cost(
    make_pool: Any, stage: Stage, tmp_path: Any
) -> None:
    """Jobs sent ahead to a worker that dies run once, elsewhere, and it is their first attempt."""
    path = str(tmp_path / "begun")
    pool = make_pool(1)
    told: list[events.Event] = []
    pool.listen(told.append)
    with one_batch(pool):
        guilty = pool.apply_async(faults.hang, (stage.bell,))
        innocent = [pool.apply_async(work.noted, (path, n)) for n in range(100)]
    kill_and_wait(int(stage.heard()))
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        guilty.get(DEADLINE)
    assert [job.get(DEADLINE) for job in innocent] == list(range(100))
    assert {job.attempts for job in innocent} == {1}
    assert {job.worker_lost for job in innocent} == {None}
    assert sorted(map(int, lines(path))) == list(range(100))
    ids = {job.job_id for job in innocent}

    def some_were_sent_ahead() -> bool:
        moves = [e for e in list(told) if isinstance(e, events.JobMoved) and e.job_id in ids]
        return any(e.old == "SENT" and e.new == "PENDING" for e in moves)

    eventually(some_were_sent_ahead)


@pytest.mark.every_start_method("spawn")
def test_no_side_effect_is_seen_twice_in_a_hail_of_deaths(make_pool: Any, tmp_path: Any) -> None:
    """With every seventh job killing its worker, each of the others runs exactly once."""
    path = str(tmp_path / "begun")
    pool = make_pool(2)
    jobs = [pool.apply_async(faults.die_if, (n, n if n % 7 == 3 else -1, path)) for n in range(50)]
    ends = [outcome(job) for job in jobs]
    for number, end in enumerate(ends):
        assert isinstance(end, WorkerLostError) if number % 7 == 3 else end == number
    assert sorted(map(int, lines(path))) == list(range(50))
    assert_full_strength(pool)


def test_finished_jobs_keep_their_results(make_pool: Any, stage: Stage) -> None:
    """Results that a worker had sent before it died are delivered, and not run again."""
    pool = make_pool(1)
    finished = [pool.apply_async(work.square, (n,)) for n in range(100)]
    guilty = pool.apply_async(faults.hang, (stage.bell,))
    kill_and_wait(int(stage.heard()))
    assert [job.get(DEADLINE) for job in finished] == [n * n for n in range(100)]
    with pytest.raises(WorkerLostError):
        guilty.get(DEADLINE)


def test_map_loses_no_other_chunk(make_pool: Any, tmp_path: Any) -> None:
    """A death in one chunk of a map fails the map, and every item of other chunks runs once."""
    path = str(tmp_path / "begun")
    pool = make_pool(2)
    items = [(n, 5, path) for n in range(40)]
    job = pool.map_async(faults.die_if_of, items, chunksize=4)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        job.get(DEADLINE)
    begun = sorted(map(int, lines(path)))
    others = [n for n in range(40) if not 4 <= n < 8]
    assert [n for n in begun if not 4 <= n < 8] == others
    assert begun.count(5) == 1
    assert_full_strength(pool)


# -- ended on purpose or not ------------------------------------------------------------------


@pytest.mark.every_start_method("spawn")
def test_terminated_job_is_not_shown_as_lost(make_pool: Any, stage: Stage) -> None:
    """terminate_job() ends the job with Terminated, also when it is deaf, and only that job."""
    pool = make_pool(2)
    for func in (faults.hang, faults.hang_deaf, faults.hang_in_sum):
        job = pool.apply_async(func, (stage.bell,))
        pid = int(stage.heard())
        pool.terminate_job(pid)
        with pytest.raises(Terminated):
            job.get(DEADLINE)
        assert job.terminated
    assert_full_strength(pool)


def assert_terminated_or(job: Any, value: object) -> None:
    """A job that was told to end and returns all the same: its result stands, or the order."""
    try:
        assert job.get(DEADLINE) == value
    except Terminated:
        assert job.terminated


def test_terminated_flag_belongs_to_the_job_not_to_the_worker(make_pool: Any, stage: Stage) -> None:
    """A crash after a job that swallowed its termination is a loss, and no termination."""
    pool = make_pool(1)
    survivor = pool.apply_async(faults.swallow_exit, (stage.bell,))
    pool.terminate_job(int(stage.heard()))
    crash = pool.apply_async(faults.kill_self, (signal.SIGSEGV,))
    assert_terminated_or(survivor, "survived")
    with pytest.raises(WorkerLostError, match="SIGSEGV"):
        crash.get(DEADLINE)
    assert not crash.terminated
    assert crash.attempts == 1


def test_kill_that_follows_a_termination_does_not_hit_the_next_job(
    make_pool: Any, stage: Stage
) -> None:
    """The job after one that swallowed its termination outlives the first one's grace."""
    pool = make_pool(1, terminate_grace=0.2)
    survivor = pool.apply_async(faults.swallow_exit, (stage.bell,))
    pool.terminate_job(int(stage.heard()))
    neighbour = pool.apply_async(work.pid_after, (1.5,))
    assert_terminated_or(survivor, "survived")
    assert [neighbour.get(DEADLINE)] == worker_pids(pool)
    assert neighbour.attempts == 1


def test_result_terminate_ends_a_running_job(make_pool: Any, stage: Stage) -> None:
    """ApplyResult.terminate() really stops the job, and its processes."""
    pool = make_pool(2)
    job = pool.apply_async(faults.hang_with_two_children, (stage.bell,))
    children = stage.heard_pids(2)
    job.terminate()
    with pytest.raises(Terminated):
        job.get(DEADLINE)
    assert_gone(*children)
    assert_full_strength(pool)


def test_result_terminate_of_a_waiting_job_hurts_no_worker(make_pool: Any, stage: Stage) -> None:
    """A job that has not begun is taken back; the job before it and the worker go on."""
    pool = make_pool(1)
    running = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    pid = int(stage.heard())
    waiting = pool.apply_async(work.square, (3,))
    waiting.terminate()
    with pytest.raises(Terminated):
        waiting.get(DEADLINE)
    stage.let_go()
    assert running.get(DEADLINE) == pid
    assert only_worker(pool) == pid


def test_cancel_takes_back_what_waits_and_stops_what_runs(make_pool: Any, stage: Stage) -> None:
    """cancel() resolves the handle with JobCancelled; a job that runs is stopped with its tree."""
    pool = make_pool(1)
    running = pool.apply_async(faults.hang_with_child, (stage.bell,))
    child = int(stage.heard())
    waiting = pool.apply_async(work.square, (3,))
    for job in (waiting, running):
        assert job.cancel()
        with pytest.raises(JobCancelled) as caught:
            job.get(DEADLINE)
        assert isinstance(caught.value, concurrent.futures.CancelledError)
    assert_gone(child)
    assert_full_strength(pool)


def test_cancel_of_a_waiting_job_hurts_no_worker(make_pool: Any, stage: Stage) -> None:
    """The job that runs before a cancelled one, and the worker, do not notice."""
    pool = make_pool(1)
    running = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    pid = int(stage.heard())
    assert pool.apply_async(work.square, (3,)).cancel()
    stage.let_go()
    assert running.get(DEADLINE) == pid
    assert not running.cancel()
    assert only_worker(pool) == pid


def test_termination_of_a_finished_job_changes_nothing(make_pool: Any) -> None:
    """A finished job keeps its result, and its worker is not harmed."""
    pool = make_pool(1)
    job = pool.apply_async(work.square, (3,))
    assert job.get(DEADLINE) == 9
    pid = only_worker(pool)
    job.terminate()
    assert job.get(DEADLINE) == 9
    assert only_worker(pool) == pid


# -- signals and kills from outside -----------------------------------------------------------


@pytest.mark.every_start_method("spawn")
def test_signals_to_the_workers_hurt_nobody(make_pool: Any, stage: Stage) -> None:
    """SIGINT and SIGTERM from outside disturb neither busy nor idle workers."""
    pool = make_pool(2)
    assert_full_strength(pool)
    before = worker_pids(pool)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    for pid in before:
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, signum)
    stage.let_go()
    assert job.get(DEADLINE) in before
    assert_full_strength(pool)
    assert worker_pids(pool) == before


@pytest.mark.every_start_method
def test_signals_to_the_whole_group_hurt_nobody(stage: Stage, start_method: str) -> None:
    """Ctrl-C and a group SIGTERM are the parent's to judge: workers finish what they do."""
    script = running_script(
        "group.py", start_method, stage.bell, stage.gate, start_new_session=True
    )
    with script as parent:
        stage.heard_pids(2)
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.killpg(parent.pid, signum)
            assert stage.heard() == f"parent saw {signum:d}"
        stage.let_go(2)
        out, _ = parent.communicate(timeout=DEADLINE)
        assert out.splitlines() == ["same workers", "two results"]
        assert parent.returncode == 0


@pytest.mark.every_start_method("spawn")
@pytest.mark.parametrize(
    "phase",
    [
        pytest.param("idle", marks=pytest.mark.zygote_only),
        pytest.param("running", marks=pytest.mark.zygote_only),
        "receiving",
        "sending",
    ],
)
def test_worker_may_be_killed_in_any_phase(make_pool: Any, stage: Stage, phase: str) -> None:
    """Whatever a worker is doing when it is killed, the pool goes on at full strength."""
    pool = make_pool(2)
    assert_full_strength(pool)
    calls = {
        "running": (faults.hang, (stage.bell,)),
        "receiving": (work.size_of, (faults.HangsWhileLoading(stage.bell),)),
        "sending": (faults.return_hangs_while_pickled, (stage.bell,)),
    }
    if phase == "idle":
        kill_and_wait(worker_pids(pool)[0])
    else:
        job = pool.apply_async(*calls[phase])
        kill_and_wait(int(stage.heard()))
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            job.get(DEADLINE)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(20)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(20)]
    assert_full_strength(pool)


def helpers_of(pool: Any) -> dict[str, list[int]]:
    """Whom to kill: the process that has made the workers, its guardian, or both.

    Only what descends from this test is ever named. The guardian is the zygote's parent, or after
    the death of one its child.
    """
    workers = worker_pids(pool)
    zygote = psutil.Process(workers[0]).parent()
    family = psutil.Process().children(recursive=True)
    near = [zygote.parent(), *zygote.children()]
    guardians = [p.pid for p in near if p.pid not in workers and (p in family or p != near[0])]
    assert os.getpid() not in (zygote.pid, *guardians)
    return {"zygote": [zygote.pid], "guardian": guardians, "both": [*guardians, zygote.pid]}


@pytest.mark.every_start_method("fork")
@pytest.mark.parametrize(
    "helper",
    [
        "zygote",
        pytest.param("guardian", marks=pytest.mark.zygote_only),
        pytest.param("both", marks=pytest.mark.zygote_only),
    ],
)
def test_pool_outlives_its_helpers(make_pool: Any, stage: Stage, helper: str) -> None:
    """With the zygote, jobs that run are lost for that reason; waiting jobs and the pool go on."""
    pool = make_pool(2)
    for _ in range(2):  # what takes over can be killed as well
        # With both gone nobody is left who could find the children of the workers.
        func = faults.hang if helper == "both" else faults.hang_with_child
        running = [pool.apply_async(func, (stage.bell,)) for _ in range(2)]
        children = stage.heard_pids(2)
        eventually(lambda running=running: all(job.pid for job in running))
        waiting = [pool.apply_async(work.square, (n,)) for n in range(20)]
        workers = [job.pid for job in running]
        victims = helpers_of(pool)[helper]
        with ProcessWatch(victims) as watch, ProcessWatch(workers) as workers_watch:
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            watch.assert_gone()
            if helper == "guardian":
                assert workers_watch.alive(0.5) == sorted(workers)
                for job in running:
                    job.terminate()
            workers_watch.assert_gone()
        for job in running:
            with pytest.raises((WorkerLostError, Terminated)) as caught:
                job.get(DEADLINE)
            assert helper == "guardian" or "zygote" in str(caught.value)
        assert [job.get(DEADLINE) for job in waiting] == [n * n for n in range(20)]
        assert {job.attempts for job in waiting} == {1}
        assert_gone(*children)
        assert_full_strength(pool)


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_pool_outlives_a_zygote_of_plain_fork(
    make_pool: Any, stage: Stage, start_method: str
) -> None:
    """There each worker has a zygote of its own: the death of one costs one job."""
    pool = make_pool(2)
    jobs = [pool.apply_async(faults.hang, (stage.bell,)) for _ in range(2)]
    stage.heard_pids(2)
    eventually(lambda: all(job.pid for job in jobs))
    with ProcessWatch([jobs[0].pid]) as watch:
        kill_and_wait(psutil.Process(jobs[0].pid).ppid())
        with pytest.raises(WorkerLostError, match="zygote"):
            jobs[0].get(DEADLINE)
        watch.assert_gone()
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    assert not jobs[1].ready()
    jobs[1].terminate()
    assert_full_strength(pool)


@pytest.mark.every_start_method("spawn")
def test_pool_outlives_an_idle_zygotes_death(make_pool: Any) -> None:
    """With no job running, the death of the zygote costs no job at all."""
    pool = make_pool(2)
    assert_full_strength(pool)
    kill_and_wait(helpers_of(pool)["zygote"][0])
    jobs = [pool.apply_async(work.square, (n,)) for n in range(20)]
    assert [outcome(job) for job in jobs].count(None) == 0
    assert_full_strength(pool)


def test_pool_of_a_script_survives_a_kill_from_a_shell(make_pool: Any, stage: Stage) -> None:
    """The plain case: somebody types kill -9 and the pid of a busy worker."""
    pool = make_pool(2)
    job = pool.apply_async(faults.hang, (stage.bell,))
    pid = stage.heard()
    subprocess.run(["kill", "-9", pid], check=True)
    with pytest.raises(WorkerLostError, match=r"signal 9 \(SIGKILL\)") as caught:
        job.get(DEADLINE)
    assert caught.value.pid == int(pid)
    assert caught.value.postmortem.run_time >= 0
    assert_full_strength(pool)
