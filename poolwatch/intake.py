"""What comes in from the workers: results first of all, and what workers say of themselves."""

from __future__ import annotations

import os

from poolwatch.aside import Aside
from poolwatch.crew import Crew, WorkerProcess, WorkerState
from poolwatch.dispatcher import Dispatcher
from poolwatch.endings import Endings
from poolwatch.events import Bus, WorkerUp
from poolwatch.hooks import Hooks
from poolwatch.job import Job, JobState, Outcome
from poolwatch.loop import EventLoop
from poolwatch.transport import frames
from poolwatch.transport.frames import Frame


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
    ) -> None:
        self._loop = loop
        self._bus = bus
        self._dispatcher = dispatcher
        self._crew = crew
        self._hooks = hooks
        self._endings = endings
        self._aside = aside

    def on_readable(self, worker: WorkerProcess) -> None:
        """Read what a worker has written, end those jobs, send it more."""
        try:
            batch = worker.stream.read()
        except BlockingIOError:
            return
        except OSError:
            batch = None
        if batch is None:
            # Its end of the stream is closed: it is dying, or something in it closes descriptors
            # that are not its own. Nothing more can come, so it must not live on unseen; if it is
            # dying already, its exit status is fixed and the signal changes nothing.
            self._loop.unwatch(worker.stream)
            self._crew.kill(worker)
            self._crew.expect_report(worker)
            return
        with self._dispatcher.lock:
            self._take(worker, batch)
            self._dispatcher.refill(worker)

    def _take(self, worker: WorkerProcess, batch: list[Frame]) -> None:
        wall = results = 0
        jobs = worker.jobs
        for frame in batch:
            kind = frame.kind
            if kind == frames.RESULT or kind == frames.FAILURE:
                job = jobs.pop(frame.serial, None)
                if job is None:
                    _discard(frame)
                    continue
                results += 1
                wall += frame.first
                state = JobState.SUCCEEDED if kind == frames.RESULT else JobState.FAILED
                self._endings.with_outcome(job, state, frame)
            else:
                self._take_other(worker, frame)
        if results:
            if not worker.done:
                self._crew.took_a_job()
            worker.done += results
            self._dispatcher.took(wall, results)

    def _take_other(self, worker: WorkerProcess, frame: Frame) -> None:
        match frame.kind:
            case frames.ACCEPTED:
                self._accepted(worker, frame)
            case frames.DECODING_FAILED:
                job = worker.jobs.pop(frame.serial, None)
                if job is not None:
                    worker.done += 1
                    self._endings.with_outcome(job, JobState.FAILED, frame)
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
            case frames.READY:
                worker.pid = frame.first  # the zygote's report may come later than this
                self._ready(worker)
            case frames.BOOT_FAILED:
                worker.boot_failure = frame.payload
            case frames.LEAVING:
                self._leaving(worker)
            case frames.PONG:
                self._dispatcher.answered(worker)

    def _accepted(self, worker: WorkerProcess, frame: Frame) -> None:
        job = worker.jobs.get(frame.serial)
        if job is None:
            return
        self._dispatcher.move(job, JobState.RUNNING)
        self._hooks.accepted(job, worker.pid or 0, frame.first / 1e9)

    def _dropped(self, job: Job) -> None:
        """The job was begun and voided at the same moment; it did not run."""
        if job.terminated:
            self._endings.on_purpose(job, None)
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
        if worker.state is WorkerState.BOOTING:
            self._dispatcher.add(worker)
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
        self._crew.expect_leave(worker)
        self._loop.call_soon(self._crew.maintain)
        self._dispatcher.refill_idle()

    def drain(self, worker: WorkerProcess) -> None:
        """Read what it wrote before it died: until nothing is there, not until the end.

        A process that a job forked may hold the other end open.
        """
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
        for worker in list(self._crew.workers.values()):
            self.drain(worker)


def _discard(frame: Frame) -> None:
    if frame.fd is not None:
        os.close(frame.fd)
