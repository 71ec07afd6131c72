"""One small verdict about a pool, for liveness probes and for people: is it at work, or stuck?

The verdict is made when somebody asks, by looking: at the supervisor, which must answer; at the
state of every worker process; at how long jobs have been running. A pool that has nothing to do is
``idle``, whatever happened before.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from poolwatch.exceptions import PoolBroken
from poolwatch.latch import Latch
from poolwatch.workers import WorkerState

if TYPE_CHECKING:
    from poolwatch.core import Core
    from poolwatch.crew import Crew
    from poolwatch.stalls import Stall

_BLOCKED_AFTER = 5.0  # s that a callback may run, where stall_after was not given


@dataclass(frozen=True, slots=True)
class Health:
    """What :meth:`Pool.health` returns.

    Attributes:
        status: ``working``: jobs run or wait, and all is well. ``idle``: nothing to do, and all is
            well. ``degraded``: something is wrong, and the pool goes on. ``stalled``: work waits
            or runs, and nothing moves. ``broken``: the pool has ended.
        reason: why, in one sentence.
        problems: everything that is wrong, one sentence each.
        unfinished: jobs that have not ended.
        waiting: ... of which have not begun.
        workers: processes that take jobs.
        asked: how many there should be.
    """

    status: str
    reason: str
    problems: tuple[str, ...] = ()
    unfinished: int = 0
    waiting: int = 0
    workers: int = 0
    asked: int = 0

    @property
    def ok(self) -> bool:
        """True unless the pool is stalled or broken: what a liveness probe wants to know."""
        return self.status in ("working", "idle", "degraded")

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


def examine(core: Core, timeout: float) -> Health:
    """Return the verdict. Any thread.

    Args:
        core: the pool.
        timeout: seconds that the supervisor has to answer.
    """
    ending = core.refusal
    if isinstance(ending, PoolBroken):
        return Health("broken", f"{type(ending).__name__}: {ending}")
    if core.is_terminated or core.has_stopped:
        return Health("broken", "the pool has been closed or terminated")
    if not core.can_deliver():
        return Health("broken", "the thread that runs callbacks and listeners has ended")
    if not _answers(core, timeout):
        if core.has_stopped:
            return Health("broken", "the pool has been closed or terminated")
        text = f"the supervisor has not answered within {timeout:g} s"
        return Health("stalled", text, (text,), core.dispatcher.unfinished)
    with core.dispatcher.lock:
        return _look(core)


def _answers(core: Core, timeout: float) -> bool:
    """Return whether the supervisor goes round, and does not hold its lock for ever."""
    if core.is_supervisor_thread():
        return True
    answered = Latch()

    def answer() -> None:
        with core.dispatcher.lock:
            answered.set()

    core.call_soon(answer)
    return answered.wait(timeout)


def _look(core: Core) -> Health:
    supervisor, dispatcher = core.supervisor, core.dispatcher
    dispatcher.take_arrivals()
    crew = supervisor.crew
    up = [w for w in crew.everybody() if w.state is WorkerState.UP and not w.has_ended()]
    stalls = supervisor.stall_finder.find()
    problems = [stall.text for stall in stalls]
    problems += crew.problems()
    blocked = core.callback_seconds()
    if blocked >= (core.options.stall_after or _BLOCKED_AFTER):
        problems.append(f"a callback, hook or listener has been running for {blocked:.1f} s")
    able = _has_able_worker(crew, stalls)
    unfinished, waiting = dispatcher.unfinished, supervisor.waiting()

    def verdict(status: str, reason: str) -> Health:
        return Health(status, reason, tuple(problems), unfinished, waiting, len(up), crew.target)

    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        nothing_moves = unfinished > 0 and not able
        return verdict("stalled" if nothing_moves else "degraded", problems[0] + more)
    if not unfinished:
        return verdict("idle", "there is nothing to do")
    if not up:
        return verdict("working", f"{unfinished} jobs wait for workers that are coming up")
    return verdict("working", f"{unfinished - waiting} jobs run and {waiting} wait")


def _has_able_worker(crew: Crew, stalls: list[Stall]) -> bool:
    """Return True when some worker goes on, or one is coming up that will."""
    held = {stall.worker for stall in stalls}
    workers = [w for w in crew.everybody() if w not in held and not w.has_ended()]
    up = sum(worker.state is WorkerState.UP for worker in workers)
    if up:
        return True
    if crew.problems() or any(stall.key[0] != "job" for stall in stalls):
        return False
    booting = any(worker.state is WorkerState.BOOTING for worker in workers)
    return booting or len(held) < crew.target
