"""Where the time of a job goes: each step of a no-op's way through the pool, timed by itself.

Run with ``python -m benchmarks.anatomy``. The supervisor's steps run on the simulated pool of the
tests, the worker's on a real worker object whose ring is emptied by hand, so that nothing waits and
nothing is woken: what remains is the work itself. Each step is the least of some tries of many
jobs, in processor time. ``--svg FILE`` draws the bar.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.jobs import noop
from benchmarks.measures import scale
from poolwatch import Pool
from poolwatch.job import NO_OPTIONS, Job
from poolwatch.results import ApplyResult
from poolwatch.snapshot import Snapshot
from poolwatch.transport import calls, codec, frames, ledger
from poolwatch.transport.frames import FrameReader
from poolwatch.transport.rings import RingReader, RingWriter
from poolwatch.worker.main import Worker, WorkerEnds, WorkerSetup

_JOBS = 5_000
_TRIES = 7
_BATCH = 64  # jobs that travel in one write


class Step(NamedTuple):
    """One step of a job's way.

    Attributes:
        where: caller, supervisor or worker.
        name: what is done.
        us: microseconds of processor time for one job.
    """

    where: str
    name: str
    us: float


def _least(run: Callable[[], float]) -> float:
    """Return the least of some tries, in microseconds of one job."""
    gc.collect()
    gc.disable()
    try:
        return min(run() for _ in range(_TRIES)) / _JOBS * 1e6
    finally:
        gc.enable()


def _timed(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def _repeated(call: Callable[[], object]) -> Callable[[], float]:
    def work() -> None:
        for _ in range(_JOBS):
            call()

    return lambda: _timed(work)


def caller() -> list[Step]:
    """Measure what the thread that submits does, and later gets the result."""
    snapshot = Snapshot()
    pickling = _least(_repeated(lambda: snapshot.encode(noop, (), {})))
    whole = _least(_submit)
    return [
        Step("caller", "pickle the call", pickling),
        Step("caller", "check arguments, make the job, put it in line", max(0.0, whole - pickling)),
        Step("caller", "get()", _least(_get)),
    ]


def _submit() -> float:
    """Time whole submissions to a pool whose workers are not there yet."""
    pool = Pool(1, initializer=time.sleep, initargs=(3600,))
    try:
        handles: list[object] = [None] * _JOBS

        def work() -> None:
            for index in range(_JOBS):
                handles[index] = pool.apply_async(noop)

        return _timed(work)
    finally:
        pool.terminate()


def _get() -> float:
    handles = []
    for number in range(_JOBS):
        job = Job(number, "nothing", b"", None, NO_OPTIONS, None)
        job.finish(frames.RESULT, codec.PICKLED_NONE, 0, 0)
        job.set_ready()
        handles.append(ApplyResult(job, None))  # type: ignore[arg-type]

    def work() -> None:
        for handle in handles:
            handle.get()

    return _timed(work)


def supervisor() -> list[Step]:
    """Measure sending jobs and taking results in; an assisting caller does the same."""
    return [
        Step("supervisor", "take a result in, send the next job", _least(_take_and_send)),
        Step("supervisor", "system call: write jobs", _least(_write_jobs)),
    ]


class _NullStream:
    """Takes everything and has nothing to read."""

    broken = False

    def send(self, data: bytes, bulk: object = None) -> bool:
        return True

    def read(self) -> list[frames.Frame]:
        return []


def _take_and_send() -> float:
    world = scale.world(1)
    (record,) = world.supervisor.crew.workers.values()
    record.stream = _NullStream()
    for _ in range(_JOBS):
        world.submit()
    ring = RingWriter(record.hands.row)
    spent = 0.0
    while world.supervisor.dispatcher.unfinished:
        serials = list(record.jobs)[:_BATCH]
        ring.put(b"".join(frames.pack(frames.RESULT, codec.PICKLED_NONE, n) for n in serials))
        record.fields[ledger.STARTED] = serials[-1]
        spent += _timed(lambda: world.supervisor.intake.on_readable(record))
    return spent


def _write_jobs() -> float:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = frames.pack(frames.JOB, bytes(60), 1) * _BATCH

        def work() -> None:
            for _ in range(_JOBS // _BATCH):
                ours.send(data)
                theirs.recv(frames.READ_BYTES)

        return _timed(work)


def worker() -> list[Step]:
    """Measure what the worker does."""
    head = codec.encode(noop)
    payload = calls.encode_plain(())
    assert isinstance(head, bytes)
    assert isinstance(payload, bytes)
    functions = calls.Functions()
    finding = _least(_repeated(lambda: functions.decode(head, payload, None, False)))
    clocks = _least(_repeated(_clocks))
    putting = _least(_put_results)
    rest = _least(lambda: _run_jobs(head + payload, len(head))) - finding - clocks - putting
    return [
        Step("worker", "take frames apart", _least(lambda: _take_apart(head + payload))),
        Step("worker", "find the function, unpickle the arguments", finding),
        Step("worker", "system calls: processor time, process id", clocks),
        Step("worker", "pack the result, put it into the ring", putting),
        Step("worker", "write the row, read the clock, call", max(0.0, rest)),
    ]


def _clocks() -> None:
    time.thread_time_ns()
    os.getpid()


def _take_apart(payload: bytes) -> float:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = FrameReader(theirs)
        data = frames.pack(frames.JOB, payload, 1) * _BATCH
        spent = 0.0
        for _ in range(_JOBS // _BATCH):
            ours.send(data)
            spent += _timed(reader.read)
        return spent


def _new_worker() -> tuple[Worker, RingReader]:
    ours, theirs = socket.socketpair()
    fd = ledger.create()
    row = ledger.Row.map(fd)
    reader = RingReader(row)
    ours.close()
    return Worker(WorkerSetup(), WorkerEnds(theirs, fd, -1, -1)), reader


def _run_jobs(payload: bytes, split: int) -> float:
    made, ring = _new_worker()
    spent = 0.0
    serial = 0
    while serial < _JOBS:
        batch = []
        for _ in range(_BATCH):
            serial += 1
            batch.append(frames.Frame(frames.JOB, 0, serial, split, 0, payload, None))
        begun = time.thread_time()
        for frame in batch:
            made._run_job(frame)
        spent += time.thread_time() - begun
        ring.consume(len(ring.peek()))
    made._ends.sock.close()
    return spent


def _put_results() -> float:
    made, ring = _new_worker()
    spent = 0.0
    for _ in range(_JOBS // _BATCH):
        begun = time.thread_time()
        for serial in range(_BATCH):
            made._outbox.send(frames.RESULT, codec.PICKLED_NONE, serial + 1, 1, 1)
        spent += time.thread_time() - begun
        ring.consume(len(ring.peek()))
    made._ends.sock.close()
    return spent


def bare() -> float:
    """Measure the least that Python needs: pickle a call, unpickle it, call, pickle, unpickle."""

    def once() -> None:
        func, args = pickle.loads(pickle.dumps((noop, ())))
        pickle.loads(pickle.dumps(func(*args)))

    return _least(_repeated(once))


def steps() -> list[Step]:
    """Measure everything."""
    return [*caller(), *supervisor(), *worker()]


def draw(measured: list[Step], path: Path) -> None:
    """Draw one bar for the parent and one for the worker."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 4))
    rows = {"parent": ("caller", "supervisor"), "worker": ("worker",)}
    for row, places in rows.items():
        left = 0.0
        for step in measured:
            if step.where in places:
                axes.barh(row, step.us, left=left, label=f"{step.name} ({step.us:.2f})")
                left += step.us
    axes.set_xlabel("microseconds of processor time for one job")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize="small")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    """Print a table; draw the bar where that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--svg", type=Path, help="draw the bar into this file")
    svg: Path | None = parser.parse_args().svg
    measured = steps()
    print("| where | step | µs |\n| --- | --- | --: |")
    for step in measured:
        print(f"| {step.where} | {step.name} | {step.us:.2f} |")
    for where in ("parent", "worker"):
        total = sum(step.us for step in measured if (step.where == "worker") == (where == "worker"))
        print(f"| {where} | together | {total:.2f} |")
    print(f"| limit | pickle and unpickle call and result, call, in one process | {bare():.2f} |")
    if svg is not None:
        draw(measured, svg)


if __name__ == "__main__":
    main()
