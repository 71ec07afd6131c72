"""The life of a Celery worker: its size, its shutdowns, its broker's restart, a storm of kills."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery_rig import (
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
from helpers import Stage, eventually

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
        with contextlib.closing(redis.Redis(port=server.port, db=number)) as store:
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


# -- processes that come and go ---------------------------------------------------------------


def test_recycling_under_load_is_never_a_loss(server: Redis, directory: Path) -> None:
    """Neither --max-tasks-per-child nor --max-memory-per-child costs a task."""
    bounds = ("--max-tasks-per-child=7", "--max-memory-per-child=150000")
    with serving(directory, fresh(server), *bounds) as (worker, client):
        calls = client.send_many("pid", [()] * 150)
        grown = client.send_many("grab", [(40,)] * 30)
        calls += client.send_many("pid", [()] * 150)
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
    """With worker_pool_start_method = "spawn" they are no forks; deaths are told all the same."""
    with serving(directory, fresh(server), worker_pool_start_method="spawn") as (worker, client):
        assert client.result(client.send("add", 1, 2)) == 3
        assert client.meta(client.send("abort"))["result"]["exc_type"] == "WorkerLostError"
        assert client.result(client.send("add", 3, 4)) == 7
        assert worker.process.pid != client.result(client.send("pid"))


# -- options ----------------------------------------------------------------------------------


def test_options_of_the_pool_are_taken_from_the_configuration(
    server: Redis, directory: Path, stage: Stage
) -> None:
    """``worker_pool_options`` are keyword arguments of Pool."""
    options = {"name": "crawl", "terminate_grace": 30.0}
    with serving(directory, fresh(server), worker_pool_options=options) as (_, client):
        assert client.result(client.send("about_me"))["name"].startswith("crawl-")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"memory": 1}, "there is no 'memory'"),
        ({"processes": 3}, "'processes' is said by worker_concurrency"),
        ({"terminate_grace": "long"}, "terminate_grace must be"),
        ([1], "worker_pool_options must be a dict"),
    ],
)
def test_wrong_options_are_refused_at_the_start(
    server: Redis, directory: Path, options: Any, text: str
) -> None:
    """The worker does not start, and the text names the option."""
    worker = Worker(directory, fresh(server), worker_pool_options=options)
    try:
        assert worker.wait() != 0
        assert text in worker.log
    finally:
        worker.close()


@pytest.mark.parametrize("loop", ["event", "blocking"])
def test_a_pool_that_cannot_go_on_stops_the_worker(
    server: Redis, directory: Path, loop: str
) -> None:
    """With a failure, and the reason in the log; the message is still in the broker."""
    broker: Broker = fresh(server) if loop == "event" else FileBroker(directory)
    worker = Worker(
        directory,
        broker,
        environment={"CELERY_APP_DOES_NOT_BOOT": "1"},
        worker_pool_options={"max_boot_failures": 2},
    )
    try:
        assert worker.wait() != 0
        assert "workers in a row failed to boot" in worker.log
        assert "The pool is broken, the worker stops" in worker.log
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
        worker.signal(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in worker.log)
        stage.let_go(2)
        assert {meta["status"] for meta in client.metas([early, late])} == {"SUCCESS"}
        assert worker.wait() == 0
    with serving(directory, broker) as (worker, client):
        assert client.result(client.send("add", 1, 1)) == 2  # nothing was delivered before it
        assert "ring_and_wait" not in worker.log.partition(" ready.")[2]


@pytest.mark.parametrize("loop", ["event", "blocking"])
def test_cold_shutdown_is_quick(server: Redis, directory: Path, stage: Stage, loop: str) -> None:
    """Also with tasks that heed no signal; what was to be acknowledged late comes again."""
    broker: Broker = fresh(server) if loop == "event" else FileBroker(directory)
    with serving(directory, broker) as (worker, client):
        client.send("swallow_exit", stage.bell)
        late = client.send("ring_and_wait_late", stage.bell, stage.gate)
        stage.heard_pids(2)
        eventually(lambda: f"{late}] received" in worker.log)
        began = time.monotonic()
        worker.signal(signal.SIGQUIT)
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


def test_a_worker_that_is_killed_leaves_nothing(server: Redis, directory: Path) -> None:
    """Its processes go with it."""
    with serving(directory, fresh(server)) as (worker, client):
        client.send("pause", 30)
        eventually(lambda: client.inspect("active"))
        worker.signal(signal.SIGKILL)
        worker.wait()


# -- trouble ----------------------------------------------------------------------------------


def test_the_broker_goes_away_and_comes_back(directory: Path, stage: Stage) -> None:
    """Running tasks go on meanwhile, and the worker goes on consuming, at full concurrency."""
    server = Redis(directory / "redis")
    try:
        with serving(directory, RedisBroker(server)) as (worker, client):
            running = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2)]
            pids = stage.heard_pids(2)
            eventually(lambda: len(client.inspect("active")) == 2)
            for round_ in range(2):
                server.stop()
                eventually(
                    lambda: (
                        worker.log.count("Trying again in") > round_  # noqa: B023
                        or worker.log.count("Connection to broker lost") > round_  # noqa: B023
                    )
                )
                assert server.start()
                eventually(
                    lambda: worker.log.count("Connected to") > round_ + 1  # noqa: B023
                )
            stage.let_go(2)
            assert sorted(meta["result"] for meta in client.metas(running)) == sorted(pids)
            ids = client.send_many("add", [(n, 1) for n in range(100)])
            assert len(client.metas(ids)) == 100
            ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2)]
            assert len(set(stage.heard_pids(2))) == 2
            stage.let_go(2)
            client.metas(ids)
            assert client.pool()["poolwatch"]["losses"] == {}
    finally:
        server.stop()


def test_storm_of_kills(server: Redis, directory: Path, stage: Stage) -> None:
    """Two thousand tasks while somebody kills processes: each ends, and none is missing then."""
    with serving(directory, fresh(server)) as (worker, client):
        account = storm(worker, client, 2000)
        assert account.sent == account.succeeded + account.lost
        assert account.kills > 20
        assert account.lost <= account.kills
        ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2)]
        assert len(set(stage.heard_pids(2))) == 2
        stage.let_go(2)
        client.metas(ids)
        eventually(lambda: len(client.pool()["processes"]) == 2)
