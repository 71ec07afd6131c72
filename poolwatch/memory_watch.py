"""Memory limits: the resident sets of a worker and its children, sampled while a job runs.

Nothing is sampled unless a limit was asked for, and nothing while no job runs. The supervisor says
which workers to look at, a thread of its own looks (that reads files, and many of them), and the
supervisor judges. Children are looked for more rarely than memory: for that all the processes of
the machine must be looked at.

What processes share counts for each of them, as it does in ``ps``: a forked child that has touched
nothing has all of its parent's memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from poolwatch.crew import Crew
from poolwatch.delivery import Delivery
from poolwatch.dispatcher import Dispatcher
from poolwatch.exceptions import MemoryLimitExceeded
from poolwatch.job import Job
from poolwatch.loop import EventLoop
from poolwatch.loss import mebibytes
from poolwatch.strikes import Strikes
from poolwatch.transport import ledger
from poolwatch.workers import WorkerProcess

if TYPE_CHECKING:
    import psutil

_PAUSE = 0.02  # s between two samples
_SHARE = 10  # a sample that takes long is followed by a pause so many times as long
_CHILDREN_PAUSE = 0.1  # likewise, between two looks for children
_CHILDREN_SHARE = 20
_KEPT = 16  # samples that the error holds


class Sample(NamedTuple):
    """One look at a job's memory.

    Attributes:
        seconds: since the job began.
        rss: bytes, the resident sets of its worker and its children together.
    """

    seconds: float
    rss: int


@dataclass(slots=True)
class _Followed:
    """A worker whose memory is looked at.

    Attributes:
        serial: of the job that it is looked at for.
        began: when that began, monotonic seconds.
        limit: of that job, in bytes.
        samples: the last ones.
    """

    serial: int
    began: float
    limit: int
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_KEPT))


class MemoryWatch:
    """Watches the jobs that have a memory limit.

    Args:
        name: of the pool.
        limit: in bytes, for every job that names none; None for no limit.
    """

    def __init__(
        self,
        loop: EventLoop,
        name: str,
        dispatcher: Dispatcher,
        crew: Crew,
        strikes: Strikes,
        substitute: Delivery,
        limit: int | None,
    ) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._crew = crew
        self._strikes = strikes
        self._limit = limit
        self._sampler = _Sampler()
        self._thread = Delivery(f"{name}-memory", substitute)
        self._followed: dict[WorkerProcess, _Followed] = {}
        self._watching = False

    def limit_of(self, job: Job) -> int | None:
        """Return the limit of a job in bytes."""
        return job.options.memory_limit or self._limit

    def watch(self) -> None:
        """A job has been sent that has a limit. The dispatcher's lock is held. Any thread."""
        if not self._watching:
            self._watching = True
            self._loop.call_later(_PAUSE, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._thread.stop()

    def _look(self) -> None:
        """Have the workers looked at that run a job with a limit."""
        with self._dispatcher.lock:
            before, self._followed = self._followed, {}
            waiting = False
            for worker in self._dispatcher.holding():
                waiting |= any(self.limit_of(job) for job in worker.jobs.values())
                job = worker.running()
                limit = None if job is None else self.limit_of(job)
                if job is None or limit is None or not worker.pid:
                    continue
                followed = before.get(worker)
                if followed is None or followed.serial != job.serial:
                    clock = ledger.CHUNK_AT if job.is_chunk else ledger.STARTED_AT
                    began = worker.fields[clock] / 1e9
                    followed = _Followed(job.serial, began, limit)
                self._followed[worker] = followed
            for worker in before.keys() - self._followed.keys():
                worker.rss = None  # that was another job's
            if not waiting:
                self._watching = False
                if self._limit is not None:
                    self._dispatcher.watched = False
                return
            pids = {worker: worker.pid or 0 for worker in self._followed}
        if pids:
            self._thread.put(lambda: self._sampler.sample(pids, self._report))
        else:
            self._loop.call_later(_PAUSE, self._look)

    def _report(self, taken: dict[WorkerProcess, int], cost: float) -> None:
        """On the sampling thread: have what was seen judged."""
        self._loop.call_soon(lambda: self._judge(taken, cost))

    def _judge(self, taken: dict[WorkerProcess, int], cost: float) -> None:
        now = self._loop.time()
        with self._dispatcher.lock:
            for worker, rss in taken.items():
                followed, job = self._followed.get(worker), worker.running()
                if followed is None or job is None or job.serial != followed.serial:
                    continue
                if job.limit is not None:
                    continue  # it is being killed
                worker.rss = rss
                followed.samples.append(Sample(max(0.0, now - followed.began), rss))
                if rss > followed.limit:
                    self._strike(worker, job, followed)
        self._loop.call_later(max(_PAUSE, _SHARE * cost), self._look)

    def _strike(self, worker: WorkerProcess, job: Job, followed: _Followed) -> None:
        if not self._strikes.isolate(worker, job.serial):
            return
        limit, rss = followed.limit, followed.samples[-1].rss
        text = (
            f"job {job.id} {job.name} grew beyond its memory limit of {mebibytes(limit)}: "
            f"its worker and its children had {mebibytes(rss)}"
        )
        error = MemoryLimitExceeded(text, limit=limit, rss=rss, samples=tuple(followed.samples))
        self._strikes.strike(worker, job, worker.fields[ledger.ITEM], error)


class _Sampler:
    """Reads memory; on a thread of its own."""

    def __init__(self) -> None:
        self._children: dict[int, list[psutil.Process]] = {}
        self._look_for_children = 0.0

    def sample(
        self,
        pids: dict[WorkerProcess, int],
        report: Callable[[dict[WorkerProcess, int], float], None],
    ) -> None:
        """Look at some workers, and report bytes for each that is there, and the time it took."""
        taken: dict[WorkerProcess, int] = {}
        began = time.monotonic()
        try:
            if began >= self._look_for_children:
                self._children = {pid: _children_of(pid) for pid in pids.values()}
                cost = time.monotonic() - began
                pause = max(_CHILDREN_PAUSE, _CHILDREN_SHARE * cost)
                self._look_for_children = time.monotonic() + pause
            began = time.monotonic()
            for worker, pid in pids.items():
                own = _rss_of(pid)
                if own:
                    children = self._children.get(pid, ())
                    taken[worker] = own + sum(_rss_of(child.pid) for child in children)
        finally:
            report(taken, time.monotonic() - began)


def _children_of(pid: int) -> list[psutil.Process]:
    import psutil  # not for pools that have no limit

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _rss_of(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has ended
