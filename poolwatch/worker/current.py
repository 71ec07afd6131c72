"""What a job can ask about itself: :func:`current_job` and :func:`worker_id`.

Jobs pay nothing for it. Nothing is noted when one begins; the one that asks finds what it needs in
the local variables of the worker's own functions, below the job's on the main thread's stack.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from os import getpid
from types import CodeType, FrameType
from typing import Any, NamedTuple

from poolwatch.transport import frames, ledger

_PAUSE = 0.001  # seconds between two looks at a row that the parent is about to complete
_MOST_LOOKS = 5000


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """A job, as seen from inside.

    Attributes:
        id: number of the job in its pool, as ``ApplyResult.job_id``.
        function: qualified name of the function; None while the arguments are being unpickled.
        attempt: 1 at first, one more each time that a policy has a lost job started again.
        pool: name of the pool.
        worker: name of the worker.
        worker_id: see :func:`worker_id`.
        pid: process id of the worker.
    """

    id: int
    function: str | None
    attempt: int
    pool: str
    worker: str
    worker_id: int
    pid: int


class _Serving(NamedTuple):
    """The worker that this process is."""

    worker: object
    name: str
    pool: str
    fields: memoryview
    thread: int
    run_job: CodeType
    outcome: CodeType


_serving: _Serving | None = None


def enter(
    worker: object, name: str, pool: str, fields: memoryview, run_job: Any, outcome: Any
) -> None:
    """This process has become a worker.

    Args:
        worker: the object.
        name: of the worker.
        pool: name of the pool.
        fields: the worker's row.
        run_job: the method that has the job's ``label`` among its local variables.
        outcome: the method that has the job's ``func``.
    """
    global _serving
    thread = threading.get_ident()
    _serving = _Serving(worker, name, pool, fields, thread, run_job.__code__, outcome.__code__)


def leave() -> None:
    """This process is no worker: a job has forked it."""
    global _serving
    _serving = None


def current_job() -> CurrentJob | None:
    """Return the job that this worker runs; None outside a job, and in no worker at all.

    A job's threads see it too; one that outlives its job sees none between two jobs, and then the
    job that runs in its worker by that time. In a pool that a job made, its workers' own jobs
    count. A process that a job forks is no worker and sees none. For an item of a map that travels
    in a chunk, it is the chunk's job. Code on a stack of its own (greenlets) does not see it.
    """
    serving = _serving
    if serving is None:
        return None
    frame = sys._current_frames().get(serving.thread)
    func: Any = None
    while frame is not None:
        code = frame.f_code
        if code is serving.outcome:
            func = _local(frame, "func") or func
        elif code is serving.run_job and _local(frame, "self") is serving.worker:
            label = _local(frame, "label")
            return None if label is None else _record(serving, label, func)
        frame = frame.f_back
    return None


def _local(frame: FrameType, name: str) -> Any:
    return frame.f_locals.get(name)


def _record(serving: _Serving, label: int, func: Any) -> CurrentJob:
    name = getattr(func, "__qualname__", None)
    if func is not None and not isinstance(name, str):
        name = type(func).__qualname__
    number = label & ((1 << frames.LABEL_BITS) - 1)
    lost = label >> frames.LABEL_BITS
    place = worker_id() or 0
    return CurrentJob(number, name, lost + 1, serving.pool, serving.name, place, getpid())


def worker_id() -> int | None:
    """Return the number of this worker's place in its pool; None in no worker.

    Places are counted from 0; a replacement takes the place of the worker that it replaces. No two
    jobs that run at the same time in one pool see the same number (as the index of Celery's
    processes). Works in initializers too.
    """
    serving = _serving
    if serving is None:
        return None
    # The parent writes it right after it has asked for this process, which may be quicker.
    for _ in range(_MOST_LOOKS):
        place = serving.fields[ledger.PLACE]
        if place:
            return place - 1
        time.sleep(_PAUSE)
    raise RuntimeError("the pool has not said which place this worker has")
