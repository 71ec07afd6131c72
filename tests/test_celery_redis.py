"""A Celery worker over Redis, whose event loop has one thread: how tasks end, and who steers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery_rig import Client, Redis, RedisBroker, Worker, client_of, redis_program, running_worker
from helpers import Stage, assert_gone, eventually, lines

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(redis_program() is None, reason="no redis-server for this Python"),
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all tests of this module, which leave it as it was."""
    directory = tmp_path_factory.mktemp("celery")
    server = Redis(directory / "redis")
    notes = {"CELERY_APP_NOTES": str(directory / "notes")}
    try:
        with running_worker(
            directory, RedisBroker(server), environment=notes, worker_pool_restarts=True
        ) as worker:
            yield worker
    finally:
        server.stop()


@pytest.fixture
def client(worker: Worker, nothing_left_over: object) -> Iterator[Client]:
    with client_of(worker) as client:
        yield client


def assert_full_strength(client: Client, stage: Stage, count: int = 2) -> list[int]:
    """So many tasks run at the same time, each in a process of its own; return the processes."""
    ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(count)]
    pids = sorted(stage.heard_pids(count))
    assert len(set(pids)) == count
    stage.let_go(count)
    assert sorted(meta["result"] for meta in client.metas(ids)) == pids
    return pids


def test_a_thousand_tasks(client: Client) -> None:
    """All of them end, each with its own result."""
    ids = client.send_many("add", [(n, 1) for n in range(1000)])
    assert [meta["result"] for meta in client.metas(ids, 40)] == [n + 1 for n in range(1000)]


@pytest.mark.parametrize(
    ("task", "arguments", "reason"),
    [
        ("abort", (), "signal 6 (SIGABRT)"),
        ("segfault", (), "signal 11 (SIGSEGV)"),
        ("kill", (), "signal 9 (SIGKILL)"),
        ("leave", (3,), "exitcode 3"),
        ("leave", (0,), "exitcode 0"),
        ("system_exit", (4,), "exitcode 4"),
    ],
)
def test_a_lost_task_says_why(
    client: Client, stage: Stage, task: str, arguments: tuple[int, ...], reason: str
) -> None:
    """Its final state is Celery's own WorkerLostError, with the reason; no worker is missing."""
    sent = client.send(task, *arguments)
    result = client.meta(sent)["result"]
    assert result["exc_type"] == "WorkerLostError"
    assert result["exc_module"] == "billiard.exceptions"
    (text,) = result["exc_message"]
    assert text.startswith(f"Worker exited prematurely: {reason}")
    assert_full_strength(client, stage)


def test_an_abort_is_known_with_the_place_in_the_code(client: Client, worker: Worker) -> None:
    """The dying process's Python traceback is in the result and in the log."""
    sent = client.send("abort")
    (text,) = client.meta(sent)["result"]["exc_message"]
    assert f"celery_app.abort[{sent}]" in text
    assert "in abort" in text
    eventually(lambda: f"celery_app.abort[{sent}] lost: " in worker.log)


def test_an_abort_is_known_within_a_second(client: Client) -> None:
    """From the moment of sending to the final state. (Prefork takes up to 4 s here.)"""
    for _ in range(3):
        client.meta(client.send("abort"), timeout=1.0)


def test_a_task_that_raises_fails_with_its_own_error(client: Client) -> None:
    """As with prefork; and what cannot be pickled is told as well as can be."""
    result = client.meta(client.send("fail"))["result"]
    assert (result["exc_type"], result["exc_message"]) == ("ValueError", ["mine"])
    assert client.meta(client.send("unpicklable_error"))["status"] == "FAILURE"
    assert client.result(client.send("retry_twice")) == 2


def test_a_soft_limit_is_raised_in_the_task(client: Client, worker: Worker) -> None:
    """As Celery's own class, which the task catches, or ends with."""
    assert client.result(client.send("soft_limit")) == "caught"
    sent = client.send("soft_limit_uncaught")
    assert client.meta(sent)["result"]["exc_type"] == "SoftTimeLimitExceeded"
    # The task's process stores the result, the worker writes the log.
    text = f"Soft time limit (0.3s) exceeded for celery_app.soft_limit_uncaught[{sent}]"
    eventually(lambda: text in worker.log)
    assert worker.log.count(text) == 1


def test_a_hard_limit_kills(client: Client, worker: Worker, stage: Stage) -> None:
    """Also where C code holds the interpreter's lock; the error comes first, then the time-out."""
    sent = client.send("hard_limit")
    meta = client.meta(sent)
    assert meta["result"]["exc_type"] == "TimeLimitExceeded"
    assert meta["result"]["exc_message"][0] == 0.5
    eventually(lambda: f"Hard time limit (0.5s) exceeded for celery_app.hard_limit[{sent}]"
               in worker.log)  # fmt: skip
    log = worker.log
    assert log.index("Task handler raised error: TimeLimitExceeded(0.5") < log.index(
        f"Hard time limit (0.5s) exceeded for celery_app.hard_limit[{sent}]"
    )
    assert_full_strength(client, stage)


def test_a_soft_limit_behind_the_hard_one_is_no_error(client: Client) -> None:
    """Celery lets through what a pool of its own would refuse."""
    result = client.meta(client.send("crossed_limits"))["result"]
    assert result["exc_type"] == "TimeLimitExceeded"


def test_a_lost_task_is_delivered_again(client: Client, tmp_path: Path) -> None:
    """With acks_late and reject_on_worker_lost."""
    path = tmp_path / "first"
    assert client.result(client.send("abort_at_first", str(path))) == "again"
    path.unlink()


def test_a_lost_task_with_late_acknowledgement_is_acknowledged(client: Client) -> None:
    """Without reject_on_worker_lost: it is not delivered again."""
    assert client.meta(client.send("late_abort"))["status"] == "FAILURE"
    eventually(lambda: not client.inspect("reserved") and not client.inspect("active"))


def test_a_running_task_is_revoked(client: Client, worker: Worker, stage: Stage) -> None:
    """revoke(terminate=True) ends it at once; others go on."""
    first = client.send("ring_and_wait", stage.bell, stage.gate)
    pid = int(stage.heard())
    second = client.send("ring_and_wait", stage.bell, stage.gate)
    stage.heard()
    client.control.revoke(first, terminate=True)
    assert client.meta(first)["status"] == "REVOKED"
    assert_gone(pid)
    stage.let_go()
    assert client.meta(second)["status"] == "SUCCESS"
    assert "WorkerLostError" not in worker.log.partition(first)[2]


def test_a_task_that_does_not_heed_its_signal_is_killed(client: Client, stage: Stage) -> None:
    """And its process's next task is not blamed: there is a new process."""
    sent = client.send("swallow_exit", stage.bell)
    pid = int(stage.heard())
    client.control.revoke(sent, terminate=True)
    assert client.meta(sent)["status"] == "REVOKED"
    eventually(lambda: pid not in client.pool()["processes"])
    assert client.meta(client.send("abort"))["status"] == "FAILURE"


def test_a_waiting_task_is_revoked(client: Client, stage: Stage) -> None:
    """Before it has begun it never runs, whether the end of a running one was asked for or not."""
    running = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2)]
    stage.heard_pids(2)
    first, second = (client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2))
    eventually(lambda: len(client.inspect("reserved")) == 2)
    client.control.revoke(first)
    client.control.revoke(second, terminate=True)
    eventually(lambda: {first, second} <= set(client.inspect("revoked")))
    stage.let_go(2)
    assert {meta["status"] for meta in client.metas(running)} == {"SUCCESS"}
    assert {meta["status"] for meta in client.metas([first, second])} == {"REVOKED"}


def test_nothing_is_reserved_behind_a_long_task(client: Client, stage: Stage) -> None:
    """While one process is busy, the other does everything else."""
    long = client.send("ring_and_wait", stage.bell, stage.gate)
    stage.heard()
    client.metas(client.send_many("add", [(n, n) for n in range(50)]))
    stage.let_go()
    client.result(long)


def test_active_tasks_are_told(client: Client, stage: Stage) -> None:
    """``inspect active`` knows the process and the time."""
    sent = client.send("ring_and_wait", stage.bell, stage.gate)
    pid = int(stage.heard())
    eventually(lambda: client.inspect("active"))
    (active,) = client.inspect("active")
    assert (active["id"], active["worker_pid"]) == (sent, pid)
    assert active["time_start"] > 0
    stage.let_go()
    assert client.result(sent) == pid


def test_the_statistics_tell_of_the_pool(client: Client) -> None:
    """``inspect stats`` has what prefork has, and the losses by cause."""
    client.meta(client.send("leave", 77))
    eventually(lambda: len(client.pool()["processes"]) == 2)  # its process is replaced
    pool = client.pool()
    assert pool["implementation"] == "poolwatch.integrations.celery:TaskPool"
    assert pool["max-concurrency"] == 2
    assert pool["max-tasks-per-child"] == "N/A"
    assert pool["put-guarded-by-semaphore"] is False
    assert pool["timeouts"] == [0, 0]
    assert pool["writes"]["strategy"] == "fair"
    assert pool["writes"]["inqueues"]["total"] == 2
    ours = pool["poolwatch"]
    assert ours["losses"]["exitcode 77"] == 1
    assert any("exitcode 77" in loss["reason"] for loss in ours["last-losses"])
    assert {info["phase"] for info in ours["workers"]} <= {"idle", "running", "booting"}


def test_the_pool_grows_and_shrinks(client: Client, stage: Stage) -> None:
    """Shrinking drains: with all processes busy it is no error, and no task is lost."""
    before = client.inspect("stats")["prefetch_count"]
    assert "ok" in client.order("pool_grow", n=2)
    eventually(lambda: len(client.pool()["processes"]) == 4)
    ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(4)]
    assert len(set(stage.heard_pids(4))) == 4
    assert "ok" in client.order("pool_shrink", n=2)
    assert client.pool()["num-processes"] == 2
    stage.let_go(4)
    assert {meta["status"] for meta in client.metas(ids)} == {"SUCCESS"}
    eventually(lambda: len(client.pool()["processes"]) == 2)
    assert_full_strength(client, stage)
    eventually(lambda: client.inspect("stats")["prefetch_count"] == before)


def test_shrinking_too_much_is_refused_by_name(client: Client) -> None:
    assert "n must not be more than" in str(client.order("pool_shrink", n=3))
    assert client.pool()["num-processes"] == 2


def test_the_pool_restarts(client: Client, worker: Worker, stage: Stage) -> None:
    """Idle processes are replaced, and so are busy ones once their task has ended."""
    sent = client.send("ring_and_wait", stage.bell, stage.gate)
    busy = int(stage.heard())
    before = set(client.pool()["processes"])
    assert busy in before
    assert "ok" in client.order("pool_restart")
    eventually(lambda: set(client.pool()["processes"]) & before == {busy})
    stage.let_go()
    assert client.result(sent) == busy
    eventually(lambda: not set(client.pool()["processes"]) & before)
    assert_full_strength(client, stage)


def test_a_killed_process_costs_its_own_task_only(client: Client, stage: Stage) -> None:
    """A process that is killed from outside while it is idle costs nothing."""
    pids = assert_full_strength(client, stage)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not set(client.pool()["processes"]) & set(pids))
    assert_full_strength(client, stage)


@pytest.mark.parametrize("kind", ["subprocess", "multiprocessing", "billiard"])
def test_tasks_may_have_children(client: Client, kind: str) -> None:
    """Prefork's may not, with multiprocessing."""
    assert client.result(client.send("child_of_task", kind)) == 0


def test_a_process_is_known_to_billiard(client: Client) -> None:
    """By its name, and by its index, which tells processes apart."""
    about = client.result(client.send("about_me"))
    assert about["name"].startswith("poolwatch-")
    assert about["index"] in (0, 1)


def test_signals_of_processes_are_sent(client: Client, worker: Worker) -> None:
    """Before each process is made, when it begins, and when it ends in peace."""
    notes = worker.log_path.parent / "notes"
    client.order("pool_restart")
    eventually(lambda: any(line.startswith("shutdown") for line in lines(notes)))
    pool = set(client.pool()["processes"])

    def is_noted(pid: int) -> bool:  # what has come last may be still at its beginning
        return any(
            line.startswith("init") and line.split()[-1] == str(pid) for line in lines(notes)
        )

    eventually(lambda: all(map(is_noted, pool)))
    seen: dict[str, list[int]] = {"create": [], "init": [], "shutdown": []}
    for line in lines(notes):
        kind, *_, pid = line.split()
        seen[kind].append(int(pid))
    assert worker.process.pid in seen["create"]
    assert len(seen["create"]) >= len(seen["init"])
    assert set(seen["shutdown"]) <= set(seen["init"])
