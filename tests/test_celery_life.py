"""The life of a Celery worker: its size, its shutdowns, its broker's restart, a storm of kills."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery_rig import (
    TASK_POOL,
    Broker,
    Client,
    FileBroker,
    Redis,
    RedisBroker,
    Worker,
    client_of,
    redis_program,
    running_worker,
)
from celery_storm import storm
from helpers import DEADLINE, Stage, eventually

pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(redis_program() is None, reason="no redis-server for this Python"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers leave their logs, which are no leak."""
    return tmp_path_factory.mktemp("celery")


_numbers = iter(range(0, 1000, 2))


def fresh(server: Redis) -> RedisBroker:
    """A broker in which nothing is left of other tests."""
    broker = RedisBroker(server, next(_numbers) % 16)
    for number in (broker.number, broker.number + 1):
        with contextlib.closing(broker.store(number)) as store:
            store.flushdb()
    return broker


@contextlib.contextmanager
def serving(
    directory: Path, broker: Broker, *arguments: str, **options: Any
) -> Iterator[tuple[Worker, Client]]:
    with (
        running_worker(directory, broker, *arguments, **options) as worker,
        client_of(worker) as client,
    ):
        yield worker, client


def assert_full_strength(client: Client, stage: Stage, count: int = 2) -> None:
    """So many tasks run at the same time, each in a process of its own."""
    ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(count)]
    assert len(set(stage.heard_pids(count))) == count
    stage.let_go(count)
    client.metas(ids)


# -- processes that come and go ---------------------------------------------------------------


def test_recycling_under_load_is_never_a_loss(server: Redis, directory: Path) -> None:
    """Neither --max-tasks-per-child nor --max-memory-per-child costs a task."""
    bounds = ("--max-tasks-per-child=7", "--max-memory-per-child=150000")
    options = {"name": "crawl"}
    with serving(directory, fresh(server), *bounds, worker_pool_options=options) as served:
        worker, client = served
        assert client.result(client.send("about_me"))["name"].startswith("crawl-")
        calls = client.send_many("pid", [()] * 60)
        grown = client.send_many("grab", [(40,)] * 20)
        calls += client.send_many("pid", [()] * 60)
        pids = [meta["result"] for meta in client.metas([*calls, *grown], 40)]
        assert all(isinstance(pid, int) for pid in pids)
        assert max(pids.count(pid) for pid in set(pids)) <= 7
        by_growth = [meta["result"] for meta in client.metas(grown)]
        assert max(by_growth.count(pid) for pid in set(by_growth)) <= 4
        pool = client.pool()
        assert pool["max-tasks-per-child"] == 7
        assert pool["poolwatch"]["losses"] == {}
        assert "WorkerLostError" not in worker.log


@pytest.mark.parametrize("bounds", ["4,1", "3,0"])
def test_autoscale(server: Redis, directory: Path, stage: Stage, bounds: str) -> None:
    """The pool grows with the tasks and shrinks again, to nothing if that is what is asked for."""
    most, least = map(int, bounds.split(","))
    keepalive = {"AUTOSCALE_KEEPALIVE": "0.5"}
    with serving(
        directory,
        fresh(server),
        f"--autoscale={bounds}",
        concurrency=None,
        environment=keepalive,
    ) as (_, client):
        for _ in range(2):
            ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(most)]
            assert len(set(stage.heard_pids(most))) == most
            assert client.pool()["num-processes"] == most
            stage.let_go(most)
            client.metas(ids)
            eventually(lambda: client.pool()["num-processes"] == least)
            eventually(lambda: len(client.pool()["processes"]) == max(1, least))


def test_fresh_processes(server: Redis, directory: Path) -> None:
    """With worker_pool_start_method = "spawn" they are no forks; deaths are told all the same.

    The pool is chosen by its setting here, which goes before the default of ``-P``.
    """
    with serving(
        directory,
        fresh(server),
        pool="prefork",
        worker_pool=TASK_POOL,
        worker_pool_start_method="spawn",
    ) as (worker, client):
        assert client.pool()["implementation"] == TASK_POOL
        assert client.result(client.send("add", 1, 2)) == 3
        assert client.meta(client.send("abort"))["result"]["exc_type"] == "WorkerLostError"
        assert client.result(client.send("add", 3, 4)) == 7
        assert worker.process.pid != client.result(client.send("pid"))


def test_a_pool_that_cannot_go_on_stops_the_worker(server: Redis, directory: Path) -> None:
    """With a failure, and the reason in the log, also while no task comes."""
    worker = Worker(
        directory,
        fresh(server),
        environment={"CELERY_APP_DOES_NOT_BOOT": "1"},
        worker_pool_options={"max_boot_failures": 2},
    )
    try:
        assert worker.wait() != 0
        assert "workers in a row failed to boot" in worker.log
        # Which of the two it is depends on who is quicker.
        assert (
            "The pool is broken, the worker stops" in worker.log
            or "Could not start worker processes" in worker.log
        )
    finally:
        worker.close()


def test_wrong_options_are_refused_at_the_start(server: Redis, directory: Path) -> None:
    """The worker does not start, and the text names the option."""
    worker = Worker(directory, fresh(server), worker_pool_options={"memory": 1})
    try:
        assert worker.wait() != 0
        assert "worker_pool_options: there is no 'memory'" in worker.log
    finally:
        worker.close()


# -- shutdowns --------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["event", "blocking"])
def test_warm_shutdown_finishes(server: Redis, directory: Path, stage: Stage, loop: str) -> None:
    """What runs ends, and is acknowledged, also late; what waits is left to the broker."""
    broker: Broker = fresh(server) if loop == "event" else FileBroker(directory)
    with serving(directory, broker) as (worker, client):
        early = client.send("ring_and_wait", stage.bell, stage.gate)
        late = client.send("ring_and_wait_late", stage.bell, stage.gate)
        stage.heard_pids(2)
        worker.signal_group(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in worker.log)
        stage.let_go(2)
        assert {meta["status"] for meta in client.metas([early, late])} == {"SUCCESS"}
        assert worker.wait() == 0
    if isinstance(broker, RedisBroker):
        with contextlib.closing(broker.store(broker.number)) as store:
            assert store.hlen("unacked") == 0
            assert store.llen("celery") == 0


@pytest.mark.parametrize("loop", ["event", "blocking"])
def test_cold_shutdown_is_quick(server: Redis, directory: Path, stage: Stage, loop: str) -> None:
    """Also with tasks that do not heed their signal; what is acknowledged late comes again."""
    broker: Broker = fresh(server) if loop == "event" else FileBroker(directory)
    with serving(directory, broker) as (worker, client):
        client.send("swallow_exit", stage.bell)
        late = client.send("ring_and_wait_late", stage.bell, stage.gate)
        stage.heard_pids(2)
        eventually(lambda: f"{late}] received" in worker.log)
        began = time.monotonic()
        worker.signal_group(signal.SIGQUIT)
        worker.wait()
        assert time.monotonic() - began < 8
    if loop == "event":  # the filesystem transport forgets what it has delivered
        with serving(directory, broker) as (worker, client):
            stage.heard()
            stage.let_go()
            assert client.result(late)


def test_cold_shutdown_during_a_warm_one(server: Redis, directory: Path, stage: Stage) -> None:
    """The second signal interrupts the wait for the tasks of the first."""
    with serving(directory, fresh(server)) as (worker, client):
        client.send("swallow_exit", stage.bell)
        stage.heard()
        worker.signal(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in worker.log)
        worker.signal(signal.SIGQUIT)
        worker.wait()


# -- trouble ----------------------------------------------------------------------------------


def test_the_broker_goes_away_and_comes_back(directory: Path, stage: Stage) -> None:
    """Running tasks go on meanwhile, and the worker goes on consuming, at full concurrency."""
    server = Redis(directory / "redis")
    try:
        with running_worker(directory, RedisBroker(server)) as worker:
            with client_of(worker) as client:
                running = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2)]
                pids = stage.heard_pids(2)
                eventually(lambda: len(client.inspect("active")) == 2)
            for _ in range(2):
                server.stop()
                assert server.start()
                with client_of(worker) as client:
                    eventually(client.is_answered, 3 * DEADLINE)
            stage.let_go(2)
            with client_of(worker) as client:
                assert sorted(meta["result"] for meta in client.metas(running)) == sorted(pids)
                ids = client.send_many("add", [(n, 1) for n in range(100)])
                assert len(client.metas(ids)) == 100
                assert_full_strength(client, stage)
                assert client.pool()["poolwatch"]["losses"] == {}
    finally:
        server.stop()


def test_storm_of_kills(server: Redis, directory: Path, stage: Stage, thorough: bool) -> None:
    """Hundreds of tasks while somebody kills processes: each ends, and none is missing then.

    And when the worker itself is killed, nothing is left of it.
    """
    with serving(directory, fresh(server)) as (worker, client):
        account = storm(worker, client, 2000 if thorough else 800)
        assert account.open == 0
        assert account.sent == account.succeeded + account.lost
        assert account.kills > (20 if thorough else 8)
        assert account.lost <= account.kills
        assert_full_strength(client, stage)
        eventually(lambda: len(client.pool()["processes"]) == 2)
        client.send("ring_and_wait", stage.bell, stage.gate)
        stage.heard()
        worker.signal(signal.SIGKILL)
        worker.wait()
