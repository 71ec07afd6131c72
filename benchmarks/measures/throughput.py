"""How many jobs a second: jobs of their own, maps, many workers, a long job among short ones."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from benchmarks import jobs
from benchmarks.limit import Echo
from benchmarks.measures.common import Figures, warm_pool
from benchmarks.peers import Job, NotOffered, OpenPool, Peer

_THREADS = 8


def noop(peer: Peer, quick: bool, workers: int = 2) -> Figures:
    """Submit all, then get all."""
    pool = warm_pool(peer, workers)
    count = 20_000
    submit = pool.submit
    begun = time.perf_counter()
    handles = [submit(jobs.noop, ()) for _ in range(count)]
    pool.values(handles)
    return {"rate": count / (time.perf_counter() - begun)}


def noop_limit(quick: bool) -> Figures:
    """As many calls through a bare socket pair, a hundred in a write."""
    count = 20_000
    echo = Echo()
    echo.call_many(jobs.noop, 500)
    begun = time.perf_counter()
    echo.call_many(jobs.noop, count)
    seconds = time.perf_counter() - begun
    echo.close()
    return {"rate": count / seconds}


def noop_threads(peer: Peer, quick: bool) -> Figures:
    """As ``noop``, from eight threads, each of which gets its own results."""
    if not peer.shareable:
        raise NotOffered("submissions from several threads garble each other")
    pool = warm_pool(peer)
    count = 20_000 // _THREADS
    barrier = threading.Barrier(_THREADS + 1)
    errors: list[BaseException] = []
    threads = [
        threading.Thread(target=_submit_and_get, args=(pool, count, barrier, errors))
        for _ in range(_THREADS)
    ]
    for thread in threads:
        thread.start()
    barrier.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if errors:
        raise errors[0]
    return {"rate": _THREADS * count / seconds}


def _submit_and_get(
    pool: OpenPool, count: int, barrier: threading.Barrier, errors: list[BaseException]
) -> None:
    barrier.wait()
    try:
        pool.values([pool.submit(jobs.noop, ()) for _ in range(count)])
    except BaseException as error:  # noqa: BLE001  (raised again by the main thread)
        errors.append(error)


def many_workers(peer: Peer, quick: bool) -> Figures:
    """As ``noop``, with far more workers than processors."""
    return noop(peer, quick, workers=64)


def map_default(peer: Peer, quick: bool) -> Figures:
    """A map of no-ops in chunks of the default size."""
    return _map(peer, jobs.noop, 200_000, None)


def map_short(peer: Peer, quick: bool) -> Figures:
    """A map of items of 50 microseconds in chunks of the default size."""
    return _map(peer, jobs.spin, 20_000, None)


def map_single(peer: Peer, quick: bool) -> Figures:
    """A map whose items travel one by one."""
    return _map(peer, jobs.noop, 20_000 if quick else _single_count(peer), 1)


def _single_count(peer: Peer) -> int:
    """Executors need a future for each item, and a fraction of a millisecond for each future."""
    return 200_000 if peer.maps_quickly else 20_000


def _map(peer: Peer, job: Job, count: int, chunksize: int | None) -> Figures:
    pool = warm_pool(peer)
    items = range(count)
    begun = time.perf_counter()
    results = pool.map(job, items, chunksize)
    seconds = time.perf_counter() - begun
    if len(results) != count:
        raise RuntimeError(f"{len(results)} results of {count} items")
    return {"rate": count / seconds}


def imap_single(peer: Peer, quick: bool) -> Figures:
    """``imap_unordered`` with items that travel one by one."""
    pool = warm_pool(peer)
    count = 20_000 if quick else 50_000
    begun = time.perf_counter()
    deque(pool.imap_unordered(jobs.noop, range(count)), maxlen=0)
    return {"rate": count / (time.perf_counter() - begun)}


def head_of_line(peer: Peer, quick: bool) -> Figures:
    """400 tiny jobs with a long one in their midst, after 2 000 tiny ones."""
    pool = warm_pool(peer)
    pool.values([pool.submit(jobs.noop, ()) for _ in range(2_000)])
    begun = time.perf_counter()
    tiny: list[Any] = [pool.submit(jobs.noop, ()) for _ in range(200)]
    pool.submit(time.sleep, (1.0,))
    tiny += [pool.submit(jobs.noop, ()) for _ in range(200)]
    pool.values(tiny)
    return {"ms": 1000 * (time.perf_counter() - begun)}
