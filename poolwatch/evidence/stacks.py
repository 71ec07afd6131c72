"""Where workers are: stack dumps that faulthandler writes in C, also while a job holds the GIL.

A worker that is asked writes into a file of memory of its own; the end of a dump shows by the
frame of the worker's loop, which is the outermost. Who asks while a dump is under way gets that
one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.latch import Latch
from poolwatch.loop import EventLoop
from poolwatch.transport import kernel
from poolwatch.worker import chunks as worker_chunks
from poolwatch.worker import main as worker_main
from poolwatch.workers import WorkerProcess, WorkerState

_FIRST_LOOK = 0.001  # s; each look is as far from the last one again, up to the next figure
_LONGEST_PAUSE = 0.05
_MOST = 64 * 1024  # bytes of a dump that are read; faulthandler's own bound is lower
_FULL = 1024 * 1024  # bytes of old dumps in a worker's file before it is emptied
_WORKER_FILE = worker_main.__file__
_OWN_FILES = (_WORKER_FILE, worker_chunks.__file__)
_PACKAGE = os.path.dirname(os.path.dirname(_WORKER_FILE))
_HEADER = re.compile(r"^(Fatal Python error|Thread 0x|Current thread 0x)", re.MULTILINE)
_IN_C = "  in the job's function itself, which is not Python code"
_LAST_FRAME = "in serve"  # the worker loop's own frame: the user's frames are all above it


@dataclass(frozen=True, slots=True)
class WorkerStack:
    """Where one worker is.

    Attributes:
        worker: name of the worker.
        pid: its process id.
        phase: booting, idle, receiving, running, sending or leaving.
        job: qualified name of the function that it runs, or None.
        job_id: number of that job, or None.
        job_seconds: how long that job has run, or None.
        stack: all its Python threads, most recent call first; None when it has not answered: it is
            stopped, or has ended, or has not come far enough.
    """

    worker: str
    pid: int
    phase: str
    job: str | None
    job_id: int | None
    job_seconds: float | None
    stack: str | None

    def __str__(self) -> str:
        doing = self.phase
        if self.job is not None:
            doing = f"{self.phase} job {self.job_id} {self.job} for {self.job_seconds:.1f} s"
        stack = "it does not answer" if self.stack is None else self.stack or "it waits for a job"
        return f"worker {self.worker} (pid {self.pid}), {doing}:\n{stack}"


@dataclass(slots=True)
class _Dump:
    """A dump that is under way.

    Attributes:
        position: where it begins in the worker's file.
        waiters: whom to tell, each with until when the whole of it is waited for.
    """

    position: int
    waiters: list[tuple[float, Callable[[str | None], None]]] = field(default_factory=list)


class StackDumps:
    """Asks workers where they are."""

    def __init__(self, loop: EventLoop, dispatcher: Dispatcher, crew: Crew) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._crew = crew
        self._pending: dict[WorkerProcess, _Dump] = {}

    def request(
        self, worker: WorkerProcess, seconds: float, then: Callable[[str | None], None]
    ) -> None:
        """Have a worker asked. In the supervisor's thread, the dispatcher's lock is held.

        Args:
            worker: one that is not dead.
            seconds: a dump that takes longer is taken as it is.
            then: told, in the same way, what the worker said; empty where it only waits for a job,
                None where it said nothing.
        """
        dump = self._pending.get(worker)
        deadline = self._loop.time() + seconds
        if dump is not None:
            dump.waiters.append((deadline, then))
            return
        position = size_of_dumps(worker)
        if position > _FULL and worker.struck is None:
            os.ftruncate(worker.hands.stack_fd, 0)  # the worker writes from there on
            position = 0
        self._pending[worker] = _Dump(position, [(deadline, then)])
        self._crew.kill(worker, kernel.STACK_SIGNAL)
        self._look_later(worker, _FIRST_LOOK)

    def _look_later(self, worker: WorkerProcess, pause: float) -> None:
        self._loop.call_later(pause, lambda: self._look(worker, min(2 * pause, _LONGEST_PAUSE)))

    def _look(self, worker: WorkerProcess, pause: float) -> None:
        with self._dispatcher.lock:
            dump = self._pending[worker]
            if worker.state is WorkerState.DEAD:
                done, text = dump.waiters, ""
            else:
                text = read_dump(worker.hands.stack_fd, dump.position)
                now, complete = self._loop.time(), is_complete(text)
                done = [waiter for waiter in dump.waiters if complete or waiter[0] <= now]
            dump.waiters = [waiter for waiter in dump.waiters if waiter not in done]
            if dump.waiters:
                self._look_later(worker, pause)
            else:
                del self._pending[worker]
            answer = trim(text, worker.running() is not None) if text else None
            for _, then in done:
                then(answer)

    def of_all(self, seconds: float) -> list[WorkerStack]:
        """Return where all workers are. Any thread but the supervisor's.

        Args:
            seconds: how long to wait for those that do not answer.
        """
        answers: dict[WorkerProcess, str | None] = {}
        asked: list[WorkerProcess] = []
        done = Latch()

        def answer(worker: WorkerProcess, stack: str | None) -> None:
            answers[worker] = stack
            if len(answers) == len(asked):
                done.set()

        def ask() -> None:
            with self._dispatcher.lock:
                workers = self._crew.everybody()
                asked.extend(w for w in workers if w.pid and w.state is not WorkerState.DEAD)
                for worker in asked:
                    self.request(worker, seconds, lambda stack, w=worker: answer(w, stack))  # type: ignore[misc]
            if not asked:
                done.set()

        self._loop.call_soon(ask)
        done.wait(seconds + 1.0)
        with self._dispatcher.lock:
            infos = {info.pid: info for info in self._crew.infos()}
        return [
            WorkerStack(
                info.name,
                info.pid,
                info.phase,
                info.job,
                info.job_id,
                info.job_seconds,
                answers.get(worker),
            )
            for worker in asked
            if (info := infos.get(worker.pid or 0)) is not None
        ]


def size_of_dumps(worker: WorkerProcess) -> int:
    """Return how much the worker has written into its file so far, in bytes."""
    return os.fstat(worker.hands.stack_fd).st_size


def read_dump(fd: int, position: int) -> str:
    """Return what faulthandler wrote into a file from a position on: whole threads.

    The end of an earlier dump, which nobody waited for, may come before.
    """
    text = os.pread(fd, _MOST, position).decode("utf-8", "replace")
    start = _HEADER.search(text)
    return "" if start is None else text[start.start() :]


def is_complete(dump: str) -> bool:
    """True when a dump has come as far as the worker loop's own frame."""
    end = dump.rfind(_WORKER_FILE)
    return end >= 0 and _LAST_FRAME in dump[end:]


def trim(dump: str, in_job: bool = True) -> str:
    """Leave out the worker's own frames, and those of the parent below which it was forked.

    Args:
        dump: what faulthandler wrote.
        in_job: the worker was at a job; otherwise nothing is left where it just waits for one.
    """
    kept: list[str] = []
    own = False
    for line in dump.splitlines():
        if not line.startswith("  File "):
            own = False
        elif not own and any(file in line for file in _OWN_FILES):
            own = True
            if in_job and not kept[-1].startswith("  File "):
                kept.append(_IN_C)
        if not own and not line.startswith("Extension modules:"):
            kept.append(line)
    if not in_job and all(_PACKAGE in line for line in kept if line.startswith("  File ")):
        return ""
    return "\n".join(kept).strip("\n")
