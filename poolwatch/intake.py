"""What comes in from the workers: results first of all, and what workers say of themselves.

Small results lie in a worker's ring (see ``transport.rings``), everything else comes in its stream.
The ring is emptied before a frame of the stream is dealt with.
"""

from __future__ import annotations

import os
from time import monotonic_ns

from poolwatch.aside import Aside
from poolwatch.bus import Bus
from poolwatch.crew import Crew
from poolwatch.dispatcher import Dispatcher
from poolwatch.endings import Endings
from poolwatch.events import Trouble, WorkerUp
from poolwatch.evidence.oom import OomWatch
from poolwatch.hooks import Hooks
from poolwatch.job import NO_OPTIONS, Job
from poolwatch.job_state import JobState
from poolwatch.loop import EventLoop
from poolwatch.outcome import Outcome
from poolwatch.sizing import Sizing
from poolwatch.tally import Tally
from poolwatch.transport import codec, frames, kernel, ledger
from poolwatch.transport.frames import FAILURE, HEADER, RESULT, Frame
from poolwatch.transport.rings import CorruptRingError
from poolwatch.workers import WorkerProcess, WorkerState

_HEADER_SIZE = HEADER.size
_STREAM_CLOSED = "killed by this pool: something in it had closed its stream"
_STATE = {RESULT: JobState.SUCCEEDED, FAILURE: JobState.FAILED}  # by kind of frame
_BELL = frames.pack(frames.BELL, b"", 0)

# Which frames of a ring are taken in; what is behind the first other one is left to the supervisor.
_SIMPLE = 0  # outcomes of jobs without options
_HOSTED = 1  # all outcomes, and what is said before them
_ALL = 2
_HOSTED_KINDS = (frames.ACCEPTED, frames.PEAK)


class Intake:
    """Reads the workers' streams and acts on each frame."""

    def __init__(
        self,
        loop: EventLoop,
        bus: Bus,
        dispatcher: Dispatcher,
        crew: Crew,
        hooks: Hooks,
        endings: Endings,
        aside: Aside,
        sizing: Sizing,
        tally: Tally,
        oom: OomWatch,
    ) -> None:
        self._loop = loop
        self._bus = bus
        self._dispatcher = dispatcher
        self._crew = crew
        self._hooks = hooks
        self._endings = endings
        self._aside = aside
        self._sizing = sizing
        self._tally = tally
        self._oom = oom
        self.current: Job | None = None  # taken in last, see take_simple()

    def on_readable(self, worker: WorkerProcess) -> bool:
        """Read what a worker has written, end those jobs, send it more.

        Returns:
            False at the end of its stream, which is not watched any more.
        """
        try:
            batch = worker.stream.read()
        except BlockingIOError:
            return True
        except OSError:
            batch = None
        if batch is None:
            # Its end of the stream is closed: it is dying, or something in it closes descriptors
            # that are not its own. Nothing more can come, so it must not live on unseen; if it is
            # dying already, its exit status is fixed and the signal changes nothing.
            self._loop.unwatch(worker.stream)
            gone = None if worker.is_ending() else _STREAM_CLOSED
            self._crew.kill(worker, why=gone)
            self._crew.expect_report(worker)
            return False
        with self._dispatcher.lock:
            self.take_ring(worker)
            self._take(worker, batch)
            self._dispatcher.refill(worker)
            self.arm(worker)
        return True

    def arm(self, worker: WorkerProcess) -> None:
        """See to it that the next result in a worker's ring wakes us. The lock is held.

        What came before the worker could know that is taken in here.
        """
        if self._wants_bell(worker):
            self.take_ring(worker)
            self._dispatcher.refill(worker)

    def _wants_bell(self, worker: WorkerProcess) -> bool:
        """Have a worker that holds jobs ring; return True when something has come before that."""
        if worker.jobs and worker.state is not WorkerState.DEAD and not self._dispatcher.tended:
            worker.fields[ledger.BELL] = 1
            kernel.membarrier()
            return worker.ring.has_data()
        return False

    def take_rings(self, workers: list[WorkerProcess]) -> None:
        """Take in what some workers' rings hold. In the supervisor's thread."""
        with self._dispatcher.lock:
            for worker in workers:
                if worker.state is not WorkerState.DEAD:
                    self.take_ring(worker)
                    self._dispatcher.refill(worker)
                    self.arm(worker)

    def take_ring(self, worker: WorkerProcess) -> None:
        """Take in all that a worker's ring holds. The lock is held; the supervisor's thread."""
        try:
            data = worker.ring.peek()
            if data:
                self._take_frames(worker, data, _ALL)
                worker.ring.consume(len(data))
        except CorruptRingError as error:
            # A job writes into memory that is not its own. Nothing can be believed any more.
            if not worker.stream.broken:
                worker.stream.broken = True
                text = (
                    f"the row of worker {worker.name} (pid {worker.pid}) was written over: {error}"
                )
                self._bus.emit(Trouble(self._bus.pool, text))
                self._crew.kill(worker, why=f"killed by this pool: {text}")

    def take_simple(self, worker: WorkerProcess) -> bool:
        """Take in outcomes of jobs that have no options. The lock is held; any thread.

        Nothing is lost when this is interrupted, and it may be done again.

        Returns:
            False when the supervisor has been asked to take in the rest.
        """
        return self._take_some(worker, _SIMPLE)

    def take_hosted(self, worker: WorkerProcess) -> bool:
        """Do the supervisor's work at a stream that is lent, see ``hosting``. The lock is held.

        Nothing is lost when this is interrupted, and it may be done again.

        Returns:
            False when there is something in the stream that the supervisor has to read.
        """
        if not worker.stream.take_only(_BELL):
            return False
        if self._take_some(worker, _HOSTED):
            self._dispatcher.refill(worker)
            if self._wants_bell(worker) and self._take_some(worker, _HOSTED):
                self._dispatcher.refill(worker)
        return True

    def _take_some(self, worker: WorkerProcess, extent: int) -> bool:
        """Take in the beginning of a ring; have the supervisor take in the rest."""
        try:
            data = worker.ring.peek()
            taken = self._take_frames(worker, data, extent)
            worker.ring.consume(taken)
            rest = taken < len(data)
        except CorruptRingError:
            rest = True
        if rest:
            self._loop.call_soon(lambda: self.take_rings([worker]))
            return False
        return True

    def _take_frames(self, worker: WorkerProcess, data: bytes, extent: int) -> int:
        """Take in the frames of a ring, as far as they are wanted; return how many bytes of it."""
        position, end = 0, len(data)
        wall = results = failures = 0
        jobs, unpack = worker.jobs, HEADER.unpack_from
        is_quiet = not self._bus.follows_jobs
        runs = self._tally.runs
        while position < end:
            if end - position < _HEADER_SIZE:
                raise CorruptRingError("a frame without a header")
            length, kind, flags, _, _, serial, first, second = unpack(data, position)
            start = position + _HEADER_SIZE
            stop = start + length
            if stop > end:
                raise CorruptRingError("a frame without an end")
            if kind in _STATE:
                job = self.current = jobs.get(serial)
                if job is not None:
                    if is_quiet and job.options is NO_OPTIONS:
                        self._endings.with_result(job, kind, data[start:stop], first, second)
                    elif extent == _SIMPLE:
                        break
                    else:
                        frame = Frame(kind, flags, serial, first, second, data[start:stop], None)
                        self._endings.with_frame(job, _STATE[kind], frame)
                    del jobs[serial]
                    results += 1
                    wall += first
                    runs[first.bit_length()] += 1
                    if kind != RESULT:
                        failures += 1
                    if job.submitted:
                        self._waited(job, first)
            elif extent < _ALL and (extent == _SIMPLE or kind not in _HOSTED_KINDS):
                break
            else:
                frame = Frame(kind, flags, serial, first, second, data[start:stop], None)
                self._take_other(worker, frame)
            position = stop
        self.current = None
        self._count(worker, results, failures, wall)
        return position

    def _take(self, worker: WorkerProcess, batch: list[Frame]) -> None:
        """Take in frames of the stream."""
        wall = results = failures = 0
        for frame in batch:
            kind = frame.kind
            if kind in _STATE:
                job = worker.jobs.pop(frame.serial, None)
                if job is None:
                    _discard(frame)
                    continue
                results += 1
                wall += frame.first
                failures += kind != RESULT
                self._tally.runs[frame.first.bit_length()] += 1
                if job.submitted:
                    self._waited(job, frame.first)
                self._endings.with_frame(job, _STATE[kind], frame)
            elif kind != frames.BELL:
                self._take_other(worker, frame)
        self._count(worker, results, failures, wall)

    def _waited(self, job: Job, wall: int) -> None:
        waited = monotonic_ns() - job.submitted - wall
        self._tally.waits[max(0, waited).bit_length()] += 1

    def _count(self, worker: WorkerProcess, results: int, failures: int, wall: int) -> None:
        if results:
            tally = self._tally
            tally.run_ns += wall
            tally.succeeded += results - failures
            tally.failed += failures
            if not worker.done:
                self._crew.took_a_job()
            worker.done += results
            self._dispatcher.took(worker, wall, results)

    def _take_other(self, worker: WorkerProcess, frame: Frame) -> None:
        match frame.kind:
            case frames.ACCEPTED:
                self._accepted(worker, frame)
            case frames.DECODING_FAILED:
                job = worker.jobs.pop(frame.serial, None)
                if job is not None:
                    worker.done += 1
                    if self._aside.divide(job):
                        _discard(frame)
                    else:
                        self._tally.failed += 1
                        self._endings.with_frame(job, JobState.FAILED, frame)
            case frames.NOT_FOUND:
                job = worker.jobs.pop(frame.serial, None)
                if job is not None:
                    worker.done += 1
                    self._send_by_value(job)
            case frames.DROPPED:
                job = worker.jobs.pop(frame.serial, None)
                if job is not None:
                    self._dropped(job)
            case frames.PARTIAL:
                job = worker.jobs.get(frame.serial)
                if job is not None and job.chunk is not None:
                    job.chunk.partial(Outcome.of(frame), frame.first)
                else:
                    _discard(frame)
            case frames.PEAK:
                job = worker.jobs.get(frame.serial)
                if job is not None:
                    job.peak = frame.first
            case frames.INITIALIZING:
                self._crew.initializing(worker)
            case frames.READY:
                worker.pid = frame.first  # the zygote's report may come later than this
                worker.membership = frame.payload.decode("utf-8", "replace")
                self._ready(worker)
            case frames.BOOT_FAILED:
                worker.boot_failure = frame.payload
                worker.reason = f"it could not boot: {codec.failure_text(frame.payload)}"
                self._crew.boot_refused(worker)
            case frames.LEAVING:
                self._leaving(worker)
            case frames.PONG:
                self._dispatcher.recalls.answered(worker)

    def _accepted(self, worker: WorkerProcess, frame: Frame) -> None:
        job = worker.jobs.get(frame.serial)
        if job is None or job.state is not JobState.SENT:
            return  # an interruption by a signal handler has it taken in twice
        self._hooks.accepted(job, worker.pid or 0, frame.first / 1e9)
        self._dispatcher.move(job, JobState.RUNNING)

    def _dropped(self, job: Job) -> None:
        """The job was begun and voided at the same moment; it did not run."""
        if job.terminated:
            self._endings.on_purpose(job, None)
        elif job.limit is not None:
            # By its row's clock it ran too long: the worker stood still before it could run it.
            # Elsewhere that might happen again, and again.
            job.attempts += 1
            self._endings.over_limit(job)
        else:
            self._dispatcher.put_back([job])
            self._dispatcher.refill_idle()

    def _send_by_value(self, job: Job) -> None:
        """The worker does not know the function or a class: send the call again by value."""
        self._dispatcher.move(job, JobState.PENDING)
        job.worker = None
        job.by_value = True
        self._aside.encode(job)

    def _ready(self, worker: WorkerProcess) -> None:
        self._crew.booted(worker)
        self._oom.enter(worker.membership)
        if worker.state is WorkerState.BOOTING:
            self._dispatcher.add(worker)
            self._sizing.came_up(worker)
        self._bus.emit(WorkerUp(self._bus.pool, worker.name, worker.pid))
        self._hooks.worker_up(worker)

    def _leaving(self, worker: WorkerProcess) -> None:
        """It has done its share, or was told to leave: what it holds goes to others."""
        if worker.state is WorkerState.BOOTING:
            return  # its initializer raised; its exit tells the rest
        self._dispatcher.remove(worker, WorkerState.LEAVING)
        jobs = list(worker.jobs.values())
        worker.jobs.clear()
        self._dispatcher.put_back(jobs)
        self._crew.departs(worker)
        self._loop.call_soon(self._crew.maintain)
        self._dispatcher.refill_idle()

    def drain(self, worker: WorkerProcess) -> None:
        """Take in what it wrote before it died: until nothing is there, not until the end.

        A process that a job forked may hold the other end open.
        """
        with self._dispatcher.lock:
            self.take_ring(worker)
        while True:
            try:
                batch = worker.stream.read()
            except OSError:
                return
            if batch is None:
                return
            with self._dispatcher.lock:
                self._take(worker, batch)

    def drain_all(self) -> None:
        """Read what all workers have written, before their jobs are ended."""
        for worker in self._crew.everybody():
            self.drain(worker)


def _discard(frame: Frame) -> None:
    if frame.fd is not None:
        os.close(frame.fd)
