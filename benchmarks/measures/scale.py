"""What a job costs the supervisor as workers become more: the real heart, everything else fake.

The pool is that of the simulated tests: no processes, no clock, streams in memory. Each worker
answers a few of its jobs at once, then the supervisor takes in what the worker has written and
sends it more, and only that is timed, in seconds of the processor. Submission is not: it happens in
callers' threads, and before the first answer.
"""

from __future__ import annotations

import gc
import pickle
import sys
import time
from typing import Any

from benchmarks.children import ROOT
from benchmarks.measures.common import Figures
from benchmarks.peers import Peer
from poolwatch.transport import frames, ledger
from poolwatch.transport.rings import RingWriter

_WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FEW_WORKERS = (1, 16, 256)
_JOBS = 16_384
_ANSWERS = 16  # results that a worker has written when the supervisor looks
_WALL = 1_000  # ns that a job says it took
_TIMES = 3
_RESULT = pickle.dumps(None)


def scale(peer: Peer, quick: bool) -> Figures:
    """Return the cost of a job with few and with many workers, and the most over the least."""
    costs = {workers: _cost(workers) for workers in (_FEW_WORKERS if quick else _WORKERS)}
    return {
        "one": 1e6 * costs[min(costs)],
        "most": 1e6 * costs[max(costs)],
        "growth": max(costs.values()) / min(costs.values()),
    }


def _cost(workers: int) -> float:
    """Return the seconds of a job: the least of some tries, for noise only adds."""
    gc.disable()
    try:
        return min(_try(workers) for _ in range(_TIMES))
    finally:
        gc.enable()
        gc.collect()


def _try(workers: int) -> float:
    pool = world(workers)
    for _ in range(_JOBS):
        pool.submit()
    fakes = [_Worker(pool, fake) for fake in pool.workers.values()]
    on_readable, clock = pool.supervisor.intake.on_readable, time.thread_time
    spent = 0.0
    while pool.supervisor.dispatcher.unfinished:
        records = [fake.record for fake in fakes if fake.answer()]
        begun = clock()
        for record in records:
            on_readable(record)
        spent += clock() - begun
    return spent / _JOBS


def world(workers: int) -> Any:
    """Return a simulated pool whose workers are up."""
    if (tests := str(ROOT / "tests")) not in sys.path:
        sys.path.append(tests)
    import simulation

    made = simulation.World(workers)
    for _ in range(workers):
        made.make_worker()
    for fake in made.workers.values():
        fake.step()
        made.read(fake)
    return made


class _Worker:
    """A worker of the simulation that does its jobs in no time."""

    def __init__(self, world: Any, fake: Any) -> None:
        self.record = world.record(fake)
        self._stream = fake.stream
        self._fields = fake.fields
        self._ring = RingWriter(self.record.hands.row)

    def answer(self) -> bool:
        """Write the results of the next jobs, if there are any."""
        inbox = self._stream.inbox
        serials = [inbox.popleft().serial for _ in range(min(_ANSWERS, len(inbox)))]
        if not serials:
            return False
        self._fields[ledger.STARTED] = self._fields[ledger.FINISHED] = serials[-1]
        self._ring.put(b"".join(map(self._packed, serials)))
        self._fields[ledger.BELL] = 0
        self._stream.outbox.append(frames.Frame(frames.BELL, 0, 0, 0, 0, b"", None))
        return True

    def _packed(self, serial: int) -> bytes:
        return frames.pack(frames.RESULT, _RESULT, serial, first=_WALL)
