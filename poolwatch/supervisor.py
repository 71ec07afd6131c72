"""The supervisor: reads results, takes the reports of deaths, decides what each death means.

::

      caller's threads                 supervisor thread (this module, on ``loop``)
    +-------------------+            +----------------------------------------------+
    | Pool.apply_async  |            |  epoll: streams, zygote's channel, deadlines |
    |  pickle, submit --+--+         |                                              |
    | ApplyResult.get   |  |         |  on_readable(worker) -> results -> refill    |
    |  unpickle         |  |         |  reports -> _join_exited_workers()           |
    +-------------------+  |         +---^--------------------^---------------------+
              writes a frame or          | results, one       | started, exited
              puts the job in line       | frame each         | (pid, exit code)
                           |         +---+------+  fork   +---+----+  fork  +----------+
                           +-------->|  worker  |<--------| zygote |<-------| guardian |
                             jobs    +----------+         +--------+        +----------+
                                      private stream and row each

    delivery thread: callbacks, hooks, listeners, log lines; the only one that runs users' code

What happens on a death, under the names that a reader of billiard knows::

    _join_exited_workers()     per dead worker: drain its stream, then for each job it still held
      on_job_process_down        tell listeners
      job.limit                  -> the hard limit's error
      job.terminated             -> Terminated
      never started              -> back to the front of the line, no attempt counted
      started                    -> on_job_process_lost: stamp job.worker_lost, ask the policy
                                      Fail(after)  -> mark_as_worker_lost
                                      Retry(after) -> back in line, attempt counted
      replace the worker

No waiting is needed to be sure. Everything a worker wrote before it died is in its own stream and
is read before its jobs are judged; whether it had begun one is in its own row. Billiard has to
guess both, which is what its ``lost_worker_timeout`` is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

from poolwatch import postmortem
from poolwatch.chunks import Chunk
from poolwatch.config import PoolOptions
from poolwatch.crew import Crew, WorkerProcess, WorkerState
from poolwatch.delivery import Delivery
from poolwatch.dispatcher import Dispatcher
from poolwatch.events import (
    Bus,
    HookFailed,
    JobLost,
    JobProcessDown,
    JobRetried,
    Trouble,
    WorkerDown,
    WorkerUp,
)
from poolwatch.exceptions import JobCancelled, PoolBroken, Terminated, WorkerLostError
from poolwatch.hooks import Hooks
from poolwatch.job import NO_OPTIONS, Job, JobState, Outcome, Usage
from poolwatch.launch.launcher import Launcher
from poolwatch.limits import Limits
from poolwatch.loop import EventLoop
from poolwatch.loss import Postmortem, human_status
from poolwatch.orders import Orders
from poolwatch.policies import Fail, FailFast, LostWorkerPolicy, Retry
from poolwatch.transport import frames, ledger
from poolwatch.transport.frames import Frame

_DEATHS_RECEIVING = 3  # so many workers may die while they receive a job; then it is lost
_DEATH_SECONDS = 2.0  # a killed process may hang in the kernel; its job does not wait longer
_LEAVE_SECONDS = 5.0  # a worker that was told to leave is killed after that
_KILLED = -9


class Supervisor:
    """The life-and-death path of one pool; its loop, launcher and delivery are handed in."""

    def __init__(
        self,
        options: PoolOptions,
        loop: EventLoop,
        launcher: Launcher,
        delivery: Delivery,
        on_broken: Callable[[PoolBroken, BaseException | bytes | None], None],
        on_drained: Callable[[], None],
    ) -> None:
        self.options = options
        self.bus = Bus(options.name, delivery)
        self.hooks = Hooks(options, delivery, self.bus)
        self.dispatcher = Dispatcher(loop, self.bus, options.maxtasksperchild)
        self.crew = Crew(options, loop, launcher, self.bus, self.on_readable, on_broken)
        self.limits = Limits(
            loop, self.bus, self.dispatcher, self.crew, self.hooks, self._expect_death
        )
        self.orders = Orders(
            loop,
            self.dispatcher,
            self.crew,
            options.terminate_grace,
            self._set_terminated,
            self._expect_death,
        )
        self.aside: set[Job] = set()  # jobs neither in line nor with a worker
        self._loop = loop
        self._launcher = launcher
        self._on_drained = on_drained
        self._exited: list[WorkerProcess] = []
        self.dispatcher.arm_deadlines = self.limits.arm
        self.dispatcher.end_with_error = self.end_with_error
        self.dispatcher.policy_of = self._refusing_policy_of
        self.dispatcher.holding = self._holding
        self.dispatcher.on_broken = self._stream_broken

    def _holding(self) -> list[WorkerProcess]:
        return [worker for worker in self.crew.workers.values() if worker.jobs]

    # -- results -------------------------------------------------------------------------------

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
            self.crew.kill(worker)
            return
        with self.dispatcher.lock:
            self._take(worker, batch)
            self.dispatcher.refill(worker)

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
                self._end(job, state, frame)
            else:
                self._take_other(worker, frame)
        if results:
            worker.done += results
            self.dispatcher.took(wall, results)

    def _take_other(self, worker: WorkerProcess, frame: Frame) -> None:
        match frame.kind:
            case frames.ACCEPTED:
                self._accepted(worker, frame)
            case frames.DECODING_FAILED:
                job = worker.jobs.pop(frame.serial, None)
                if job is not None:
                    worker.done += 1
                    self._end(job, JobState.FAILED, frame)
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
                    self.hooks.partial(job.chunk, frame)
            case frames.READY:
                worker.pid = frame.first  # the zygote's report may come later than this
                self._ready(worker)
            case frames.BOOT_FAILED:
                worker.boot_failure = frame.payload
            case frames.LEAVING:
                self._leaving(worker)
            case frames.PONG:
                self.dispatcher.answered(worker)

    def _accepted(self, worker: WorkerProcess, frame: Frame) -> None:
        job = worker.jobs.get(frame.serial)
        if job is None:
            return
        self.dispatcher.move(job, JobState.RUNNING)
        self.hooks.accepted(job, worker.pid or 0, frame.first / 1e9)

    def _dropped(self, job: Job) -> None:
        """The job was begun and voided at the same moment; it did not run."""
        if job.terminated:
            self._set_terminated(job, None)
        else:
            self.dispatcher.put_back([job])
            self.dispatcher.refill_idle()

    def _send_by_value(self, job: Job) -> None:
        """The worker does not know the function or a class: send the call again by value.

        That pickles, which is the user's code, so the delivery thread does it.
        """
        self.dispatcher.move(job, JobState.PENDING)
        job.worker = None
        job.by_value = True
        self._encode_aside(job)

    def _encoded(self, job: Job, error: BaseException | None) -> None:
        with self.dispatcher.lock:
            self.aside.discard(job)
            if job.state.final:
                return
            if error is not None:
                self.end_with_error(job, JobState.FAILED, error)
                return
            self.dispatcher.backlog.appendleft(job)
            self.dispatcher.refill_idle()

    # -- the end of a job; the dispatcher's lock is held -------------------------------------------

    def _end(self, job: Job, state: JobState, frame: Frame) -> None:
        """End a job with what its worker sent."""
        self.dispatcher.move(job, state)
        job.attempts += 1
        job.usage = Usage(frame.first / 1e9, frame.second / 1e9)
        job.set_outcome(Outcome(frame.kind, frame.flags, frame.payload, frame.fd))
        self._ended(job)

    def end_with_error(self, job: Job, state: JobState, error: BaseException) -> None:
        """End a job with an error of the pool's own. The dispatcher's lock is held."""
        self.dispatcher.move(job, state)
        job.set_error(error)
        self._ended(job)

    def _ended(self, job: Job) -> None:
        dispatcher = self.dispatcher
        dispatcher.unfinished -= 1
        if job.options is NO_OPTIONS:
            job.set_ready()
        else:
            if self.limits.disarm(job):
                self.hooks.limits_off(job)
            self.hooks.deliver(job)
        if not dispatcher.unfinished:
            self._on_drained()

    # -- workers come and go -----------------------------------------------------------------------

    def _ready(self, worker: WorkerProcess) -> None:
        self.crew.booted(worker)
        if worker.state is WorkerState.BOOTING:
            self.dispatcher.add(worker)
        self.bus.emit(WorkerUp(self.bus.pool, worker.name, worker.pid))
        self.hooks.worker_up(worker)

    def _leaving(self, worker: WorkerProcess) -> None:
        """It has done its share, or was told to leave: what it holds goes to others."""
        if worker.state is WorkerState.BOOTING:
            return  # its initializer raised; its exit tells the rest
        self.dispatcher.remove(worker, WorkerState.LEAVING)
        jobs = list(worker.jobs.values())
        worker.jobs.clear()
        self.dispatcher.put_back(jobs)
        self.expect_leave(worker)
        self._loop.call_soon(self.crew.maintain)
        self.dispatcher.refill_idle()

    def dismiss(self, worker: WorkerProcess) -> None:
        """Tell a worker to leave when it has done what it holds. The dispatcher's lock is held."""
        worker.stream.send(frames.pack(frames.LEAVE, b"", 0))
        self.expect_leave(worker)

    def expect_leave(self, worker: WorkerProcess) -> None:
        """Kill a worker that does not go; a thread that its jobs left behind may hold it."""
        if worker.leave_timer is None:
            worker.leave_timer = self._loop.call_later(
                _LEAVE_SECONDS, lambda: self.crew.kill(worker)
            )

    def worker_started(self, token: int, pid: int, pidfd: int | None) -> None:
        """Report of the launcher: the process exists."""
        worker = self.crew.workers.get(token)
        if worker is None:
            if pidfd is not None:
                os.close(pidfd)
            return
        worker.pid = pid
        worker.pidfd = pidfd
        if worker.stream.broken:
            self.crew.kill(worker)

    def worker_not_started(self, token: int, errno: int) -> None:
        """Report of the launcher: the kernel had no process for us."""
        worker = self.crew.workers.get(token)
        if worker is not None:
            with self.dispatcher.lock:
                self.dispatcher.remove(worker, WorkerState.DEAD)
                self.crew.not_started(worker, errno)

    def worker_exited(self, token: int, exitcode: int, peak_rss: int) -> None:
        """Report of the launcher: the process has ended. The first report is final."""
        worker = self.crew.workers.get(token)
        if worker is not None and worker not in self._exited:
            worker.exitcode = exitcode
            worker.peak_rss = peak_rss
            self._exited.append(worker)

    def zygote_died(self, tokens: list[int], reason: str) -> None:
        """Report of the launcher: these workers die with their zygote, and nobody reports it."""
        self.bus.emit(Trouble(self.bus.pool, reason))
        for token in tokens:
            worker = self.crew.workers.get(token)
            if worker is None:
                continue
            worker.reason = reason
            worker.blameless = True
            if worker.pidfd is None or not worker.send_signal(_KILLED * -1):
                self.worker_exited(token, _KILLED, 0)
            else:
                self._await_end(worker)

    def _await_end(self, worker: WorkerProcess) -> None:
        source = _PidFd(cast(int, worker.pidfd))

        def ended() -> None:
            self._loop.unwatch(source)
            self.worker_exited(worker.token, _KILLED, 0)

        self._loop.watch(source, ended)

    def launcher_trouble(self, text: str) -> None:
        """Report of the launcher: something is wrong that it deals with."""
        self.bus.emit(Trouble(self.bus.pool, text))

    def _stream_broken(self, worker: WorkerProcess) -> None:
        """Writing to it failed: it is dead or will be, so that its jobs are dealt with there."""
        if worker.state is not WorkerState.DEAD:
            self.crew.kill(worker)

    # -- deaths ------------------------------------------------------------------------------------

    def _join_exited_workers(self) -> bool:
        """Deal with the workers whose exit was reported; true when there were any."""
        exited, self._exited = self._exited, []
        for worker in exited:
            self._drain(worker)
            with self.dispatcher.lock:
                was_booting = worker.state is WorkerState.BOOTING
                leaving = worker.state is WorkerState.LEAVING
                # The row is read before the state says DEAD, which forbids to.
                judged = [(job, self._has_begun(worker, job)) for job in worker.jobs.values()]
                self.dispatcher.remove(worker, WorkerState.DEAD)
            for job, begun in reversed(judged):
                self.on_job_process_down(job, worker.pid)
                self._judge(job, begun, worker)
            record = postmortem.collect(worker, None, self._loop.time())
            with self.dispatcher.lock:
                worker.jobs.clear()
                self.crew.forget(worker)
            self._gone(worker, record, was_booting, leaving and worker.exitcode == 0)
        if exited:
            self.crew.maintain()
            with self.dispatcher.lock:
                self.dispatcher.refill_idle()
            if not self.dispatcher.unfinished:
                self._on_drained()
        return bool(exited)

    def _drain(self, worker: WorkerProcess) -> None:
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
            with self.dispatcher.lock:
                self._take(worker, batch)

    def drain_all(self) -> None:
        """Read what all workers have written, before their jobs are ended."""
        for worker in list(self.crew.workers.values()):
            self._drain(worker)

    def _has_begun(self, worker: WorkerProcess, job: Job) -> bool:
        """True when this job is what the worker was at, or has had its third receiver."""
        if worker.fields[ledger.STARTED] >= job.serial:
            return True
        if worker.fields[ledger.RECEIVING] == job.serial:
            job.moves += 1
        return job.moves >= _DEATHS_RECEIVING

    def _judge(self, job: Job, begun: bool, worker: WorkerProcess) -> None:
        with self.dispatcher.lock:
            if job.state.final:
                return
            if begun and job.chunk is not None:
                self._split(job.chunk, job, worker)
            if job.limit is not None:
                job.attempts += 1
                job.limit.postmortem = postmortem.collect(worker, job, self._loop.time())
                self.end_with_error(job, JobState.TIMED_OUT, job.limit)
                return
            if job.terminated:
                self._set_terminated(job, worker.exitcode)
                return
            if not begun:
                self.dispatcher.put_back([job])
                return
        if worker.exitcode == 0:
            self._launcher.sweep(worker.token)  # os._exit(0) in a job looks like a clean leave
        self.on_job_process_lost(job, worker.pid, worker.exitcode)

    def _split(self, chunk: Chunk, job: Job, worker: WorkerProcess) -> None:
        """Only the item that was begun is guilty: those behind it become a chunk of their own."""
        item = worker.fields[ledger.ITEM]
        rest = None if item == ledger.NO_ITEM else chunk.split_at(item)
        if rest is None:
            return
        other = Job(job.id, job.name, None, job.options, job.keepalive)
        other.chunk = rest
        self.dispatcher.unfinished += 1
        self._encode_aside(other)

    def _encode_aside(self, job: Job) -> None:
        """Have a job's call pickled anew, on the delivery thread; then it goes back in line."""
        self.aside.add(job)
        self.hooks.encode(job, lambda error: self._encoded(job, error))

    def _set_terminated(self, job: Job, exitcode: int | None) -> None:
        """End a job that somebody asked to end (name as in billiard). The lock is held.

        Args:
            job: the job.
            exitcode: exit code of its worker; None when the job had not begun.
        """
        when = "before it began" if exitcode is None else f"({human_status(exitcode)})"
        job.attempts += exitcode is not None
        if job.cancelled:
            text = f"job {job.id} {job.name} was cancelled {when}"
            self.end_with_error(job, JobState.CANCELLED, JobCancelled(text))
        else:
            text = f"job {job.id} {job.name} was terminated {when}"
            self.end_with_error(job, JobState.TERMINATED, Terminated(text, exitcode=exitcode))

    def on_job_process_down(self, job: Job, pid: int | None) -> None:
        """Tell listeners that the process which held a job has ended (name as in billiard)."""
        self.bus.emit(JobProcessDown(self.bus.pool, job.id, job.name, pid))

    def on_job_process_lost(self, job: Job, pid: int | None, exitcode: int | None) -> None:
        """A job's process died under it: stamp the job, ask the policy (name as in billiard)."""
        worker = cast(WorkerProcess, job.worker)
        now = self._loop.time()
        job.worker_lost = (now, exitcode)
        job.attempts += 1
        record = postmortem.collect(worker, job, now)
        verdict = self._ask_policy(job, record)
        with self.dispatcher.lock:
            if job.state.final:
                return
            if job.terminated:  # somebody asked while the policy thought
                self._set_terminated(job, exitcode)
            elif isinstance(verdict, Retry):
                self.bus.emit(JobRetried(self.bus.pool, job.id, job.name, verdict.after, record))
                self._retry(job, verdict.after)
            elif verdict.after > 0:
                self._set_aside(
                    job, verdict.after, lambda: self.mark_as_worker_lost(job, exitcode, record)
                )
            else:
                self.mark_as_worker_lost(job, exitcode, record)

    def _ask_policy(self, job: Job, record: Postmortem) -> Fail | Retry:
        policy = job.options.policy or self.options.policy
        try:
            verdict = policy.on_lost(job, record)
            if not isinstance(verdict, (Fail, Retry)):
                raise TypeError(f"on_lost returned {verdict!r}, neither Fail nor Retry")
            if not verdict.after >= 0:
                raise ValueError(f"on_lost returned {verdict!r}")
        except Exception as error:  # noqa: BLE001  (the user's code; reported)
            self.bus.emit(HookFailed(self.bus.pool, "lost_worker_policy", error))
            return FailFast().on_lost(job, record)
        return verdict

    def mark_as_worker_lost(self, job: Job, exitcode: int | None, record: Postmortem) -> None:
        """End a job with ``WorkerLostError`` (name as in billiard). The lock is held."""
        error = WorkerLostError(
            f"Worker exited prematurely: {record}",
            exitcode=exitcode,
            pid=record.pid,
            postmortem=record,
        )
        self.bus.emit(JobLost(self.bus.pool, job.id, job.name, record))
        self.end_with_error(job, JobState.LOST, error)

    def _retry(self, job: Job, after: float) -> None:
        job.worker = None
        if job.chunk is not None:
            job.chunk.drop_received()
            job.payload = None
        if after > 0:
            self._set_aside(job, after, lambda: self._back_in_line(job))
        else:
            self._back_in_line(job)

    def _back_in_line(self, job: Job) -> None:
        self.dispatcher.move(job, JobState.PENDING)
        if job.payload is None:
            self._encode_aside(job)
            return
        self.dispatcher.backlog.append(job)
        self.dispatcher.refill_idle()

    def _set_aside(self, job: Job, seconds: float, then: Callable[[], None]) -> None:
        """Wait for a grace period or a back-off; the job may be ended meanwhile."""
        self.dispatcher.move(job, JobState.LOST_PENDING)
        self.aside.add(job)

        def over() -> None:
            with self.dispatcher.lock:
                self.aside.discard(job)
                if job.state is JobState.LOST_PENDING:
                    then()

        self._loop.call_later(seconds, over)

    def _expect_death(self, job: Job) -> None:
        """A job's worker has been sent SIGKILL; the job ends even if the kernel does not comply."""
        serial = job.serial
        self._loop.call_later(_DEATH_SECONDS, lambda: self._overdue(job, serial))

    def _overdue(self, job: Job, serial: int) -> None:
        with self.dispatcher.lock:
            worker = job.worker
            if job.state.final or worker is None or worker.jobs.get(serial) is not job:
                return
            del worker.jobs[serial]
            self.dispatcher.put_back(self.dispatcher.recall(worker))
            worker.unresponsive = True
            if job.limit is not None:
                job.attempts += 1
                self.end_with_error(job, JobState.TIMED_OUT, job.limit)
            else:
                self._set_terminated(job, _KILLED)

    def _gone(
        self, worker: WorkerProcess, record: Postmortem, was_booting: bool, expected: bool
    ) -> None:
        self.bus.emit(WorkerDown(self.bus.pool, worker.name, worker.pid, worker.exitcode, expected))
        self.hooks.worker_down(worker)
        if worker.blameless:
            return
        if was_booting:
            self.crew.boot_failed(worker, record)
        elif not expected:
            self.crew.died_at_work(record)

    # -- refusing policies -------------------------------------------------------------------------

    def _refusing_policy_of(self, job: Job) -> LostWorkerPolicy | None:
        policy = job.options.policy or self.options.policy
        return policy if type(policy).refuses is not LostWorkerPolicy.refuses else None


class _PidFd:
    """A process to be watched for its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._fd


def _discard(frame: Frame) -> None:
    if frame.fd is not None:
        os.close(frame.fd)
