"""What a pool takes when nothing happens, and when very much waits: wake-ups and memory."""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks import jobs
from benchmarks.idle import switches
from benchmarks.measures.common import Figures, meet, open_pool, warm_pool
from benchmarks.peers import OpenPool, Peer

_PARTS = 10
_ALLOWED_PICKLES = 2.0
_ALLOWED_MICROSECONDS = 3.0


def wake_ups(peer: Peer, quick: bool) -> Figures:
    """Count the context switches of an idle pool of four, the parent's other threads included."""
    pool = open_pool(peer, 4)
    meet(pool, 4)
    pool.values([pool.submit(jobs.noop, ()) for _ in range(1_000)])
    time.sleep(1.0)
    pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
    before = {pid: switches(pid) for pid in pids}
    seconds = 1.0 if quick else 3.0
    time.sleep(seconds)
    return {"wakeups": sum(switches(pid) - before[pid] for pid in pids) / seconds}


def memory(peer: Peer, quick: bool) -> Figures:
    """Sum the unique memory of eight workers, and of all processes below the parent."""
    pool = open_pool(peer, 8)
    workers = meet(pool, 8)
    pool.values([pool.submit(jobs.noop, ()) for _ in range(2_000)])
    unique = {
        child.pid: child.memory_full_info().uss / 1e6
        for child in psutil.Process().children(recursive=True)
    }
    return {"mb": sum(unique[pid] for pid in workers), "all": sum(unique.values())}


def backlog(peer: Peer, quick: bool) -> Figures:
    """Have very many jobs wait while the workers are busy."""
    pool = warm_pool(peer)
    count = 20_000 if quick else 100_000
    gate = Path(tempfile.mkdtemp(), "gate")
    for _ in range(2):
        pool.submit(jobs.hold, (str(gate),))
    time.sleep(0.3)
    handles: list[Any] = [None] * count
    before = _unique_bytes()
    marks = _submit(pool, handles)
    grown = _unique_bytes() - before
    gate.touch()
    parts = [1e6 * _PARTS * (end - begin) / count for begin, end in pairwise(marks)]
    submit = sum(parts) / _PARTS
    pickled = _pickle_microseconds(count)
    return {
        "bytes": grown / count,
        "submit": submit,
        "bound": submit / (_ALLOWED_PICKLES * pickled + _ALLOWED_MICROSECONDS),
        "late": parts[-1] / parts[0],
    }


def _submit(pool: OpenPool, handles: list[Any]) -> list[float]:
    """Fill a list with handles; return the time at the start and after each tenth of it."""
    submit = pool.submit
    part = len(handles) // _PARTS
    marks = [time.perf_counter()]
    for start in range(0, len(handles), part):
        for number in range(start, start + part):
            handles[number] = submit(jobs.noop, (number,))
        marks.append(time.perf_counter())
    return marks


def _unique_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


def _pickle_microseconds(count: int) -> float:
    """Return what it costs to pickle one of the calls."""
    begun = time.perf_counter()
    for number in range(count):
        pickle.dumps((jobs.noop, (number,), {}), pickle.HIGHEST_PROTOCOL)
    return 1e6 * (time.perf_counter() - begun) / count
