"""How long one job takes, there and back: alone, and with something to carry."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks import jobs
from benchmarks.limit import Echo
from benchmarks.measures.common import Figures, percentile, repeat, warm_pool
from benchmarks.peers import Peer

_MEGABYTE = 1_000_000
_SECONDS = 10.0  # slow peers do fewer rounds


def round_trip(peer: Peer, quick: bool) -> Figures:
    """Submit one job, wait for its result, and again."""
    pool = warm_pool(peer)
    submit, value = pool.submit, pool.value
    return _trips(lambda: value(submit(jobs.noop, ()), 30.0), quick)


def round_trip_limit(quick: bool) -> Figures:
    """The same over a bare socket pair."""
    echo = Echo()
    figures = _trips(lambda: echo.call(jobs.noop, ()), quick)
    echo.close()
    return figures


def _trips(trip: Callable[[], object], quick: bool) -> Figures:
    times = _times(trip, 100 if quick else 300, 400 if quick else 2_000)
    return {"p50": 1e6 * percentile(times, 0.5), "p99": 1e6 * percentile(times, 0.99)}


def _times(trip: Callable[[], object], warm_up: int, count: int) -> list[float]:
    clock = time.perf_counter
    for _ in repeat(warm_up, _SECONDS / 4):
        trip()
    times = []
    for _ in repeat(count, _SECONDS):
        begun = clock()
        trip()
        times.append(clock() - begun)
    return times


def array_8(peer: Peer, quick: bool) -> Figures:
    """An array of 8 MB there and back."""
    return _array(peer, 8, 5 if quick else 20)


def array_64(peer: Peer, quick: bool) -> Figures:
    """An array of 64 MB there and back."""
    return _array(peer, 64, 1 if quick else 6)


def _array(peer: Peer, megabytes: int, count: int) -> Figures:
    import numpy as np

    pool = warm_pool(peer)
    array = np.arange(megabytes * _MEGABYTE // 8, dtype=np.float64)

    def trip() -> None:
        back = pool.value(pool.submit(jobs.identity, (array,)), 60.0)
        if back.shape != array.shape or back[0] != array[0] or back[-1] != array[-1]:
            raise RuntimeError("another array came back")

    return {"ms": 1e3 * percentile(_times(trip, min(2, count), count), 0.5)}


def bytes_100k(peer: Peer, quick: bool) -> Figures:
    """100 KB of bytes there and back."""
    pool = warm_pool(peer)
    data = bytes(100_000)
    return _carry(lambda: pool.value(pool.submit(jobs.identity, (data,)), 30.0), quick)


def bytes_100k_limit(quick: bool) -> Figures:
    """The same over a bare socket pair."""
    echo = Echo()
    data = bytes(100_000)
    figures = _carry(lambda: echo.call(jobs.identity, (data,)), quick)
    echo.close()
    return figures


def _carry(trip: Callable[[], Any], quick: bool) -> Figures:
    times = _times(trip, 20, 100 if quick else 500)
    return {"us": 1e6 * percentile(times, 0.5)}
