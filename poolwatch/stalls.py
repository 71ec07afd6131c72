"""What does not move on, told and not guessed: long jobs, workers that are stopped or do not boot.

With ``stall_after`` the watchdog looks a few times within that period, and reports each stall once:
an event, a line in the log, the stack where there is one. It ends nothing by itself; limits do
that. Without ``stall_after`` nothing looks by itself, and ``Pool.health`` looks when it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from poolwatch.bus import Bus
from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.events import JobStalled, PoolStalled, WorkerStalled
from poolwatch.evidence.stacks import StackDumps
from poolwatch.evidence.verdicts import innermost
from poolwatch.job import Job
from poolwatch.loop import EventLoop
from poolwatch.transport import ledger
from poolwatch.workers import WorkerProcess, WorkerState

_LOOKS = 4  # within stall_after
_SOONEST = 0.05  # s between two looks
_LATEST = 5.0
_DUMP_SECONDS = 0.5
_STOPPED = ("T", "t")  # by a signal, by a debugger
_ENDED = ("Z", "X", "")  # and not yet reported by whoever has it reaped
_LONG_END = 1.0  # s, where stall_after was not given
_LONG_BOOT = 10.0  # s, where stall_after was not given


@dataclass(frozen=True, slots=True)
class Stall:
    """One thing that does not move on.

    Attributes:
        key: tells it from others; the same at each look.
        text: what it is, in a sentence.
        seconds: for how long, as far as it has been seen.
        worker: the worker concerned, or None.
        job: the job concerned, or None.
    """

    key: tuple[str, int, int]
    text: str
    seconds: float
    worker: WorkerProcess | None = None
    job: Job | None = None


class StallFinder:
    """Looks at all workers. The dispatcher's lock is held for all of it; any thread.

    Args:
        stall_after: seconds that a job may run, or None.
    """

    def __init__(
        self, loop: EventLoop, dispatcher: Dispatcher, crew: Crew, stall_after: float | None
    ) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._crew = crew
        self._stall_after = stall_after

    def find(self) -> list[Stall]:
        """Return what stalls now."""
        now = self._loop.time()
        workers = self._crew.everybody()
        return [stall for worker in workers for stall in self._of_worker(worker, now)]

    def _of_worker(self, worker: WorkerProcess, now: float) -> Iterator[Stall]:
        if worker.state is WorkerState.DEAD:
            return
        who = f"worker {worker.name} (pid {worker.pid or 'unknown'})"
        job = worker.running()
        state = process_state(worker.pid) if worker.pid else ""
        if worker.pid and state in _ENDED:
            if worker.not_reaped_since is None:
                worker.not_reaped_since = now
            seconds = now - worker.not_reaped_since
            if seconds >= (self._stall_after or _LONG_END):
                text = f"{who} has ended, and its zygote has not said so for {seconds:.1f} s"
                yield Stall(("ended", worker.token, 0), text, seconds, worker, job)
        elif state in _STOPPED:
            doing = "" if job is None else f", in job {job.id} {job.name}"
            text = f"{who} is stopped by a signal or a debugger{doing}"
            yield Stall(("stopped", worker.token, 0), text, 0.0, worker, job)
        elif worker.state is WorkerState.BOOTING:
            seconds, limit = now - worker.born, self._stall_after or _LONG_BOOT
            if seconds >= limit:
                text = f"{who} has been booting for {seconds:.1f} s"
                yield Stall(("boot", worker.token, 0), text, seconds, worker)
        elif job is not None and self._stall_after is not None:
            # Of a chunk, each item has its time.
            seconds = now - worker.fields[ledger.STARTED_AT] / 1e9
            if seconds >= self._stall_after:
                item = worker.fields[ledger.ITEM] if job.is_chunk else 0
                text = f"job {job.id} {job.name} has been running for {seconds:.1f} s in {who}"
                yield Stall(("job", worker.token, job.serial + item), text, seconds, worker, job)


def process_state(pid: int) -> str:
    """Return the state letter of a process, as ``ps`` shows it; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(512).rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""


class Watchdog:
    """Looks a few times within ``stall_after``, and reports each stall once."""

    def __init__(
        self,
        loop: EventLoop,
        bus: Bus,
        dispatcher: Dispatcher,
        stacks: StackDumps,
        finder: StallFinder,
        stall_after: float,
    ) -> None:
        self._loop = loop
        self._bus = bus
        self._dispatcher = dispatcher
        self._stacks = stacks
        self._finder = finder
        self._stall_after = stall_after
        self._pause = min(max(stall_after / _LOOKS, _SOONEST), _LATEST)
        self._reported: set[tuple[str, int, int]] = set()
        self._stopped_since: dict[tuple[str, int, int], float] = {}
        self._moves = -1  # jobs sent and ended at the last look
        self._standing_since: float | None = None

    def start(self) -> None:
        """Begin to look."""
        self._loop.call_later(self._pause, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        with self._dispatcher.lock:
            stalls = {stall.key: stall for stall in self._finder.find()}
            stopped = {token for kind, token, _ in stalls if kind == "stopped"}
            # A job that has been reported is not news when its worker has been stopped for a while.
            self._reported = {key for key in self._reported if key in stalls or key[1] in stopped}
            since, self._stopped_since = self._stopped_since, {}
            for key, stall in stalls.items():
                if key[0] == "stopped":
                    self._stopped_since[key] = since.get(key, now)
                    if now - self._stopped_since[key] < self._stall_after - self._pause:
                        continue
                if key not in self._reported:
                    self._reported.add(key)
                    self._report(stall, now - self._stopped_since.get(key, now))
            self._look_at_line(now)
        self._loop.call_later(self._pause, self._look)

    def _report(self, stall: Stall, stopped: float) -> None:
        worker, job, pool = stall.worker, stall.job, self._bus.pool
        if worker is None:
            return
        if stall.key[0] != "job" or job is None:
            seconds = stall.seconds or stopped
            self._bus.emit(WorkerStalled(pool, stall.text, seconds, worker.name, worker.pid))
            return

        def tell(stack: str | None) -> None:
            place = innermost(stack)
            text = stall.text if place is None else f"{stall.text}; it is at {place}"
            self._bus.emit(
                JobStalled(
                    pool,
                    text,
                    stall.seconds,
                    job.id,
                    job.name,
                    worker.name,
                    worker.pid,
                    stack or None,
                )
            )

        self._stacks.request(worker, _DUMP_SECONDS, tell)

    def _look_at_line(self, now: float) -> None:
        """See whether jobs wait although workers are idle: that must not be."""
        dispatcher = self._dispatcher
        moves, standing = dispatcher.moves(), dispatcher.is_standing()
        if not standing or moves != self._moves:
            self._moves, self._standing_since = moves, now if standing else None
            return
        since = now if self._standing_since is None else self._standing_since
        if now - since >= self._stall_after:
            text = (
                f"{dispatcher.waiting()} jobs have waited for {now - since:.1f} s although workers "
                "are idle; that is a bug of poolwatch, please report it"
            )
            self._bus.emit(PoolStalled(self._bus.pool, text, now - since))
            self._standing_since = now
            dispatcher.refill_idle()
