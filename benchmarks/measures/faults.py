"""How fast a killed worker is noticed, and how fast the next result comes from its replacement."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.measures.common import Figures, keep, meet, open_pool, repeat
from benchmarks.peers import Hangs, OpenPool, Peer

_GIGABYTE = 1_000_000_000
_PAGE = 4096
_PAUSE = 0.05  # s for the pool to come to rest between two deaths

Watch = Callable[[OpenPool, Any, int, float], None]


def loss(peer: Peer, quick: bool) -> Figures:
    """Kill a worker at work; the time until its job is known to be lost."""

    return _deaths(_one_worker(peer), _loss_known, quick)


def recovery(peer: Peer, quick: bool) -> Figures:
    """Kill a worker at work; the time until its replacement has run a job submitted then."""
    return _deaths(_one_worker(peer), _next_result, quick)


def recovery_large(peer: Peer, quick: bool) -> Figures:
    """The same in a parent that has written a gigabyte since it made the pool."""
    pool = _one_worker(peer)
    ballast = bytearray(_GIGABYTE)
    ballast[::_PAGE] = b"x" * len(ballast[::_PAGE])
    keep(ballast)
    return _deaths(pool, _next_result, quick)


def _loss_known(pool: OpenPool, victim: Any, pid: int, patience: float) -> None:
    if not pool.wait(victim, patience):
        raise Hangs(f"{patience:g} s")


def _next_result(pool: OpenPool, victim: Any, pid: int, patience: float) -> None:
    if _result(pool, patience) == pid:
        raise RuntimeError("the dead worker answered")


def _result(pool: OpenPool, patience: float) -> Any:
    """Have a job run, and return its value."""
    job = pool.submit(os.getpid, ())
    if not pool.wait(job, patience):
        raise Hangs(f"{patience:g} s")
    return pool.value(job, 1.0)


def _one_worker(peer: Peer) -> OpenPool:
    """Make a pool of one, so that only the replacement can give the next result."""
    pool = open_pool(peer, 1)
    meet(pool, 1)
    return pool


def _deaths(pool: OpenPool, watch: Watch, quick: bool) -> Figures:
    patience = 2.0 if quick else 15.0
    times = []
    figures: Figures = {}
    for _ in repeat(5 if quick else 20, 0.3 if quick else 4.0):
        times.append(_death(pool, watch, patience))
        if not _survives(pool, patience):
            figures["breaks"] = 1.0
            break
        time.sleep(_PAUSE)
    return figures | {"ms": 1000 * statistics.median(times)}


def _survives(pool: OpenPool, patience: float) -> bool:
    """Return whether the pool still runs jobs."""
    try:
        _result(pool, patience)
    except Exception:  # noqa: BLE001  (each pool has its own way to be broken)
        return False
    return True


def _death(pool: OpenPool, watch: Watch, patience: float) -> float:
    file = Path(tempfile.mkdtemp(), "pid")
    victim = pool.submit(jobs.hang, (str(file),))
    pid = _pid_in(file, patience)
    time.sleep(_PAUSE)
    begun = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    watch(pool, victim, pid, patience)
    return time.perf_counter() - begun


def _pid_in(file: Path, patience: float) -> int:
    deadline = time.monotonic() + patience
    while not file.exists():
        if time.monotonic() > deadline:
            raise Hangs(f"{patience:g} s")
        time.sleep(0.001)
    return int(file.read_text())
