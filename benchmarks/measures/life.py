"""How long it takes to make a pool, and to close it."""

from __future__ import annotations

import time

from benchmarks import jobs
from benchmarks.measures.common import Figures, meet
from benchmarks.peers import Peer

_WORKERS = 8


def start_and_close(peer: Peer, quick: bool) -> Figures:
    """Make eight workers, have all at work at once, then close the idle pool."""
    begun = time.perf_counter()
    pool = peer.open(_WORKERS)
    meet(pool, _WORKERS)
    started = time.perf_counter() - begun
    pool.values([pool.submit(jobs.noop, ()) for _ in range(200)])
    time.sleep(0.2)
    begun = time.perf_counter()
    pool.close()
    closed = time.perf_counter() - begun
    return {"start": 1000 * started, "close": 1000 * closed}
