"""A Celery worker over the filesystem transport: the blocking loop, callbacks on any thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery_rig import Client, FileBroker, Worker, client_of, running_worker
from helpers import Stage, assert_gone, eventually

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all tests of this module, which leave it as it was."""
    directory = tmp_path_factory.mktemp("celery")
    with running_worker(directory, FileBroker(directory)) as worker:
        yield worker


@pytest.fixture
def client(worker: Worker, nothing_left_over: object) -> Iterator[Client]:
    with client_of(worker) as client:
        yield client


def assert_full_strength(client: Client, stage: Stage, count: int = 2) -> None:
    ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(count)]
    assert len(set(stage.heard_pids(count))) == count
    stage.let_go(count)
    client.metas(ids)


def test_several_hundred_tasks(client: Client) -> None:
    """All of them end, each with its own result."""
    ids = client.send_many("add", [(n, 1) for n in range(300)])
    assert [meta["result"] for meta in client.metas(ids, 30)] == [n + 1 for n in range(300)]


@pytest.mark.parametrize(
    ("task", "arguments", "reason"),
    [
        ("abort", (), "signal 6 (SIGABRT)"),
        ("segfault", (), "signal 11 (SIGSEGV)"),
        ("kill", (), "signal 9 (SIGKILL)"),
        ("leave", (0,), "exitcode 0"),
        ("system_exit", (4,), "exitcode 4"),
    ],
)
def test_a_lost_task_says_why(
    client: Client, stage: Stage, task: str, arguments: tuple[int, ...], reason: str
) -> None:
    """Its final state is WorkerLostError, with the reason; no worker is missing."""
    result = client.meta(client.send(task, *arguments))["result"]
    assert result["exc_type"] == "WorkerLostError"
    assert result["exc_message"][0].startswith(f"Worker exited prematurely: {reason}")
    assert_full_strength(client, stage)


def test_an_abort_is_known_within_a_second(client: Client) -> None:
    """From the moment of sending to the final state. (Prefork waits for worker_lost_wait.)"""
    for _ in range(3):
        client.meta(client.send("abort"), timeout=1.0)


def test_limits_hold(client: Client, worker: Worker, stage: Stage) -> None:
    """The soft one in the task, the hard one also where C code holds the interpreter's lock."""
    assert client.result(client.send("soft_limit")) == "caught"
    sent = client.send("hard_limit")
    result = client.meta(sent)["result"]
    assert (result["exc_type"], result["exc_message"][0]) == ("TimeLimitExceeded", 0.5)
    text = f"Hard time limit (0.5s) exceeded for celery_app.hard_limit[{sent}]"
    eventually(lambda: text in worker.log)
    assert_full_strength(client, stage)


def test_a_lost_task_is_delivered_again(client: Client, tmp_path: Path) -> None:
    """With acks_late and reject_on_worker_lost."""
    path = tmp_path / "first"
    assert client.result(client.send("abort_at_first", str(path))) == "again"
    path.unlink()


def test_a_running_task_is_revoked(client: Client, stage: Stage) -> None:
    """revoke(terminate=True) ends it; others go on."""
    first = client.send("ring_and_wait", stage.bell, stage.gate)
    pid = int(stage.heard())
    second = client.send("ring_and_wait", stage.bell, stage.gate)
    stage.heard()
    client.control.revoke(first, terminate=True)
    client.broker.deliver()
    assert client.meta(first)["status"] == "REVOKED"
    assert_gone(pid)
    stage.let_go()
    assert client.meta(second)["status"] == "SUCCESS"


def test_the_consumer_waits_for_a_free_process(
    client: Client, worker: Worker, stage: Stage
) -> None:
    """So a third task is not handed to the pool while two are running, and can be revoked."""
    running = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2)]
    stage.heard_pids(2)
    waiting = client.send("add", 1, 1)
    eventually(lambda: f"celery_app.add[{waiting}] received" in worker.log)
    later = client.send("add", 2, 2)
    stage.let_go(2)
    client.metas(running)
    assert client.result(waiting) == 2
    assert client.result(later) == 4


def test_a_task_that_raises_fails_with_its_own_error(client: Client, worker: Worker) -> None:
    """A task that raises fails with its own error; nothing raised in Celery's callbacks."""
    result = client.meta(client.send("fail"))["result"]
    assert (result["exc_type"], result["exc_message"]) == ("ValueError", ["mine"])
    assert "Pool callback raised" not in worker.log
