"""A Celery worker on poolwatch, and the same worker on Celery's own prefork pool.

::

    python -m benchmarks.celery_pools
    python -m benchmarks.celery_pools --pools custom --tasks 500 --rounds 1

Worker and broker are real: Redis for the event loop, the filesystem transport for the blocking one.
The same steps for both pools, in turn; every figure is of a worker of its own. It needs the extra
``test``.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from celery_rig import (  # noqa: E402  (the tests' own rig)
    Broker,
    Client,
    FileBroker,
    Redis,
    RedisBroker,
    Worker,
    client_of,
    running_worker,
)
from celery_storm import storm  # noqa: E402
from helpers import eventually, private_stage  # noqa: E402

NAMES = {"custom": "poolwatch", "prefork": "prefork"}
_LONGEST = 30.0  # seconds that a final state is waited for


class Bench:
    """One Redis server, and workers one after the other."""

    def __init__(self, directory: Path, tasks: int) -> None:
        self._directory = directory
        self._tasks = tasks
        self._server = Redis(directory / "redis")
        self._number = 0

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()

    @contextlib.contextmanager
    def worker(self, pool: str, loop: str) -> Iterator[tuple[Worker, Client]]:
        """A worker with nothing in its queue."""
        self._number += 1
        here = self._directory / f"{self._number}-{pool}"
        here.mkdir()
        broker: Broker = FileBroker(here)
        if loop == "event":
            broker = RedisBroker(self._server)
            for number in (0, 1):
                with contextlib.closing(broker.store(number)) as store:
                    store.flushdb()
        with (
            running_worker(here, broker, pool=pool) as worker,
            client_of(worker) as client,
        ):
            client.result(client.send("add", 1, 1))
            yield worker, client

    def throughput(self, pool: str) -> str:
        """Empty tasks over Redis that wait in the queue; until all results are stored."""
        with self.worker(pool, "event") as (worker, client):
            broker = worker.broker
            assert isinstance(broker, RedisBroker)
            client.order("cancel_consumer", queue="celery")
            client.send_many("add", [(n, n) for n in range(self._tasks)])
            with contextlib.closing(broker.store(1)) as store:
                before = store.dbsize()
                began = time.monotonic()
                client.order("add_consumer", queue="celery")
                eventually(lambda: store.dbsize() >= before + self._tasks, 120)
            return f"{self._tasks / (time.monotonic() - began):.0f}"

    def until_final(self, pool: str, loop: str, task: str, count: int = 3) -> str:
        """Seconds from sending one task to its final state: median and worst."""
        with self.worker(pool, loop) as (_, client):
            times = []
            for _ in range(count):
                began = time.monotonic()
                client.meta(client.send(task), _LONGEST)
                times.append(time.monotonic() - began)
        return f"{statistics.median(times):.2f} ({max(times):.2f})"

    def storm(self, pool: str) -> str:
        """What becomes of the tasks while processes are killed, and of the worker."""
        with self.worker(pool, "event") as (worker, client), private_stage() as stage:
            account = storm(worker, client, self._tasks)
            ids = [client.send("ring_and_wait", stage.bell, stage.gate) for _ in range(2)]
            try:
                running = len(set(stage.heard_pids(2)))
            except AssertionError:
                running = 1
            stage.let_go(2)
            with contextlib.suppress(AssertionError):
                client.metas(ids)
            return (
                f"{account.kills} kills: {account.succeeded} succeeded, {account.lost} failed "
                f"with a reason, {account.open} without a final state; afterwards "
                f"{running} at a time"
            )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pools", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), wanted.tasks)
        rows: list[tuple[str, Callable[[str], str], int]] = [
            ("empty tasks over Redis, a second", bench.throughput, wanted.rounds),
            *(
                (
                    f"{what}, {loop} loop: seconds to the final state, median (worst of 3)",
                    lambda pool, loop=loop, task=task: bench.until_final(pool, loop, task),
                    1,
                )
                for task, what in (
                    ("abort", "a task aborts"),
                    ("kill", "a task is killed by SIGKILL"),
                    ("leave_at_once", "a task calls os._exit(0)"),
                    ("hard_limit", "a limit of 0.5 s on C code that holds the GIL"),
                )
                for loop in ("event", "blocking")
            ),
            (f"{wanted.tasks} tasks, processes killed from outside", bench.storm, 1),
        ]
        try:
            print("| | " + " | ".join(NAMES[pool] for pool in wanted.pools) + " |")
            print("|---" * (1 + len(wanted.pools)) + "|")
            for title, measure, rounds in rows:
                cells: dict[str, list[str]] = {pool: [] for pool in wanted.pools}
                for _ in range(rounds):
                    for pool in wanted.pools:
                        cells[pool].append(_guarded(measure, pool))
                print(f"| {title} | " + " | ".join(", ".join(c) for c in cells.values()) + " |")
        finally:
            bench.close()


def _guarded(measure: Callable[[str], str], pool: str) -> str:
    try:
        return measure(pool)
    except AssertionError as error:
        return str(error).partition("\n")[0][:100]


if __name__ == "__main__":
    main()
