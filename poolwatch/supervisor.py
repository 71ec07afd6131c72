"""The supervisor: reads results, takes the reports of deaths, decides what each death means.

::

      caller's threads                 supervisor thread (this module, on ``loop``)
    +-------------------+            +----------------------------------------------+
    | Pool.apply_async  |            |  epoll: streams, zygote's channel, deadlines |
    |  pickle, submit --+--+         |                                              |
    | ApplyResult.get --+--|--+      |  on_readable(worker) -> results -> refill    |
    |  unpickle         |  |  |      |  reports -> _join_exited_workers()           |
    +-------------------+  |  |      +---^--------------------^---------------------+
       writes a frame, or  |  |  takes   | results: in the    | started, exited
       puts the job in     |  |  some    | ring, or a frame   | (pid, exit code)
       line                |  | results  | of the stream      |
                           |  | itself   |                    |
                           |  |      +---+------+  fork   +---+----+  fork  +----------+
                           +--|----->|  worker  |<--------| zygote |<-------| guardian |
                             jobs <--|          |         +--------+        +----------+
                                     +----------+
                              private stream, row and ring each

    A caller that waits for a short job, or submits very many, helps (``assist``), and a program
    with an event loop of its own may have that read the streams (``hosting``).
    delivery thread: callbacks, hooks, listeners, log lines; the only one that runs users' code

What happens on a death, under the names that a reader of billiard knows::

    _join_exited_workers()     per dead worker: drain its stream, then for each job it still held
      on_job_process_down        tell listeners
      job.limit                  -> the hard limit's error
      job.terminated             -> Terminated (Endings.on_purpose)
      never started              -> back to the front of the line, no attempt counted
      started                    -> on_job_process_lost: stamp job.worker_lost, ask the policy
                                      Fail(after)  -> mark_as_worker_lost
                                      Retry(after) -> back in line, attempt counted
      replace the worker

No waiting is needed to be sure. Everything a worker wrote before it died is in its own ring and
stream and is read before its jobs are judged; whether it had begun one is in its own row. Billiard
has to guess both, which is what its ``lost_worker_timeout`` is for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import cast

from poolwatch.aside import Aside
from poolwatch.assist import Assist
from poolwatch.bus import Bus
from poolwatch.config import PoolOptions
from poolwatch.crew import Crew
from poolwatch.delivery import Delivery
from poolwatch.dispatcher import Dispatcher
from poolwatch.endings import Endings, SlotEndings
from poolwatch.events import (
    HookFailed,
    JobLost,
    JobOutgrew,
    JobProcessDown,
    JobRetried,
    JobTimedOut,
    Trouble,
    WorkerDown,
    WorkerRecycled,
)
from poolwatch.evidence.captured_stderr import StandardErrors
from poolwatch.evidence.oom import OomWatch
from poolwatch.evidence.stacks import StackDumps
from poolwatch.exceptions import OutOfMemory, PoolBroken, TimeLimitExceeded, WorkerLostError
from poolwatch.hooks import Hooks
from poolwatch.hosting import Hosting
from poolwatch.intake import Intake
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.launch.launcher import Launcher
from poolwatch.limits import Limits
from poolwatch.loop import EventLoop
from poolwatch.loss import Postmortem
from poolwatch.memory_watch import MemoryWatch
from poolwatch.orders import Orders
from poolwatch.policies import Fail, FailFast, LostWorkerPolicy, Retry
from poolwatch.postmortem import Examiner
from poolwatch.repairs import Repairs
from poolwatch.sizing import Sizing
from poolwatch.slots import Slots
from poolwatch.stalls import StallFinder, Watchdog
from poolwatch.strikes import Strikes
from poolwatch.tally import PoolStats, Tally
from poolwatch.transport import ledger
from poolwatch.workers import WorkerProcess, WorkerState

_DEATHS_RECEIVING = 3  # so many workers may die while they receive a job; then it is lost
_DEATH_SECONDS = 2.0  # a killed process may hang in the kernel; its job does not wait longer
_MEMORY_SECONDS = 1.0  # between two looks at the kernel's counters while there is work
_KILLED = -9


class Supervisor:
    """The life-and-death path of one pool; its loop, launcher and delivery are handed in."""

    def __init__(
        self,
        options: PoolOptions,
        loop: EventLoop,
        launcher: Launcher,
        delivery: Delivery,
        encoder: Delivery,
        on_broken: Callable[[PoolBroken, BaseException | bytes | None], None],
        on_drained: Callable[[], None],
        slots: Slots | None = None,
    ) -> None:
        self.options = options
        self.bus = bus = Bus(options.name, delivery)
        self.hooks = hooks = Hooks(options, delivery, encoder, bus)
        self.dispatcher = dispatcher = Dispatcher(
            loop, bus, options.maxtasksperchild, options.processors
        )
        self.tally = tally = Tally()
        self.errors = (
            StandardErrors(options.name, loop, delivery) if options.capture_stderr else None
        )
        self.crew = crew = Crew(
            options, loop, launcher, bus, self._on_readable, on_broken, tally, self.errors
        )
        self.sizing = sizing = Sizing(
            loop,
            dispatcher,
            crew,
            options.min_processes,
            options.processes,
            options.idle_timeout,
            options.processors,
        )
        self.stacks = StackDumps(loop, dispatcher, crew)
        strikes = Strikes(loop, dispatcher, crew, self._expect_death)
        self.limits = Limits(loop, bus, dispatcher, hooks, strikes)
        self.memory = MemoryWatch(
            loop, options.name, dispatcher, crew, strikes, delivery, options.memory_limit
        )
        self.oom = oom = OomWatch(loop.time)
        self._examiner = Examiner(oom, self.memory.limit_of)
        self.stall_finder = StallFinder(loop, dispatcher, crew, options.stall_after)
        self.endings = endings = Endings(dispatcher, self.limits, hooks, on_drained, tally)
        if slots is not None:
            slots.attach(dispatcher, lambda: sizing.most)
            self.endings = endings = SlotEndings(
                dispatcher, self.limits, hooks, on_drained, tally, slots
            )
        self.aside = Aside(loop, dispatcher, endings, hooks)
        self.intake = Intake(
            loop, bus, dispatcher, crew, hooks, endings, self.aside, sizing, tally, oom
        )
        grace = options.terminate_grace
        self.repair = Repairs(dispatcher, crew, self.intake, self.aside, on_drained).repair
        self.assist = Assist(loop, bus, dispatcher, self.intake, self.repair)
        self.hosting = Hosting(loop, dispatcher, self.intake, self._on_readable, self.repair)
        self.orders = Orders(
            loop,
            dispatcher,
            crew,
            grace,
            endings.on_purpose,
            self._expect_death,
            self.aside,
            strikes.interrupt,
        )
        self._loop = loop
        self._on_drained = on_drained
        self._looking_for_memory = False
        self._exited: list[WorkerProcess] = []
        dispatcher.arm_deadlines = self._arm
        dispatcher.on_busy = self._on_busy
        dispatcher.watched = False
        dispatcher.end_with_error = endings.with_error
        dispatcher.policy_of = self._refusing_policy_of
        dispatcher.may_refuse = _may_refuse(options.policy)
        dispatcher.holding = self._holding
        dispatcher.everybody = crew.everybody
        dispatcher.on_broken = self._stream_broken
        dispatcher.on_emptied = crew.emptied
        dispatcher.help_along = self.assist.take_some
        dispatcher.repair = self.repair
        dispatcher.take_back = crew.take_back = self.hosting.take_back

    def stats(self) -> PoolStats:
        """Return what has happened so far. The dispatcher's lock is held. Any thread."""
        dispatcher, tally = self.dispatcher, self.tally
        dispatcher.take_arrivals()
        counts = tally.counts
        ended = {
            "succeeded": tally.succeeded,
            "failed": tally.failed + counts["FAILED"],
            "lost": counts["LOST"],
            "timed_out": counts["TIMED_OUT"],
            "outgrew": counts["outgrew"],
            "terminated": counts["TERMINATED"],
            "cancelled": counts["CANCELLED"],
        }
        return PoolStats(
            submitted=sum(ended.values()) + dispatcher.unfinished,
            **ended,
            retried=counts["retried"],
            losses=dict(tally.losses),
            workers_started=counts["workers_started"],
            workers_died=counts["workers_died"],
            workers_recycled=counts["workers_recycled"],
            boot_failures=counts["boot_failures"],
            unfinished=dispatcher.unfinished,
            waiting=self.waiting(),
            workers=sum(w.state is WorkerState.UP for w in self.crew.everybody()),
            idle=len(dispatcher.idle_workers()),
            run_time=tally.run_time(),
            wait_time=tally.wait_time(),
            events_dropped=self.bus.dropped,
        )

    def waiting(self) -> int:
        """Return how many jobs have not begun, or wait to be begun again. The lock is held."""
        return self.dispatcher.waiting() + len(self.aside.jobs)

    def watch_for_stalls(self) -> None:
        """Look for stalls from now on, where the user wants that. In the supervisor's thread."""
        seconds = self.options.stall_after
        if seconds is not None:
            loop, bus, dispatcher = self._loop, self.bus, self.dispatcher
            Watchdog(loop, bus, dispatcher, self.stacks, self.stall_finder, seconds).start()

    def _on_busy(self) -> None:
        """A worker has something to do again. The dispatcher's lock is held. Any thread."""
        self.dispatcher.watched = True
        if self.options.memory_limit is not None:
            self.memory.watch()
        if not self._looking_for_memory and not self.oom.is_blind():
            self._looking_for_memory = True
            self._loop.call_soon(self._look_for_memory)

    def _look_for_memory(self) -> None:
        """While there is work, look whether the kernel has killed somebody for memory."""
        self.oom.look()
        with self.dispatcher.lock:
            if self.dispatcher.unfinished:
                self._loop.call_later(_MEMORY_SECONDS, self._look_for_memory)
            else:
                self._looking_for_memory = self.dispatcher.watched = False

    def _arm(self, job: Job) -> None:
        self.limits.arm(job)
        if job.options.memory_limit is not None:
            self.memory.watch()

    def _on_readable(self, worker: WorkerProcess) -> None:
        if self.intake.on_readable(worker):
            self.hosting.lend(worker)

    def _holding(self) -> list[WorkerProcess]:
        return [worker for worker in self.crew.everybody() if worker.jobs]

    # -- reports of the launcher -------------------------------------------------------------------

    def worker_started(self, token: int, pid: int, pidfd: int | None) -> None:
        """Report of the launcher: the process exists."""
        worker = self.crew.workers.get(token)
        if worker is None:
            if pidfd is not None:
                os.close(pidfd)
            return
        self.crew.made(worker, pid, pidfd)

    def worker_not_started(self, token: int, errno: int) -> None:
        """Report of the launcher: the kernel had no process for us."""
        worker = self.crew.workers.get(token)
        if worker is not None:
            with self.dispatcher.lock:
                self.dispatcher.remove(worker, WorkerState.DEAD)
                self.crew.not_started(worker, errno)
                self._see_whether_drained()

    def worker_exited(
        self, token: int, exitcode: int, peak_rss: int, core_dumped: bool = False
    ) -> None:
        """Report of the launcher: the process has ended. The first report is final."""
        worker = self.crew.workers.get(token)
        if worker is not None and worker not in self._exited:
            worker.exitcode = exitcode
            worker.peak_rss = peak_rss
            worker.core_dumped = core_dumped
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

    def helpers_died(self, exitcode: int | None) -> None:
        """Report of the launcher: what makes the workers has died before it could make one."""
        self.crew.helpers_died(exitcode)

    def launcher_trouble(self, text: str) -> None:
        """Report of the launcher: something is wrong that it deals with."""
        self.bus.emit(Trouble(self.bus.pool, text))

    def _stream_broken(self, worker: WorkerProcess) -> None:
        """Writing to it failed: it is dead or will be, so that its jobs are dealt with there."""
        if worker.state is not WorkerState.DEAD:
            self.crew.kill(worker, why="killed by this pool: its stream is broken")

    # -- deaths ------------------------------------------------------------------------------------

    def _join_exited_workers(self) -> bool:
        """Deal with the workers whose exit was reported; true when there were any."""
        exited, self._exited = self._exited, []
        for worker in exited:
            self.hosting.take_back(worker)
            self.intake.drain(worker)
            with self.dispatcher.lock:
                was_booting = worker.state is WorkerState.BOOTING
                leaving = worker.state is WorkerState.LEAVING
                # The row is read before the state says DEAD, which forbids to.
                judged = [(job, self._has_begun(worker, job)) for job in worker.jobs.values()]
                self.dispatcher.remove(worker, WorkerState.DEAD)
            worker.note_order()
            record = self._examiner.examine(worker, self._loop.time())
            for job, begun in reversed(judged):
                self.on_job_process_down(job, worker.pid)
                self._judge(job, begun, worker, record)
            with self.dispatcher.lock:
                worker.jobs.clear()
                self.crew.forget(worker)
            self._gone(worker, record, was_booting, leaving and worker.exitcode == 0)
        if exited:
            self.sizing.went_on()
            self.crew.maintain()
            with self.dispatcher.lock:
                self.dispatcher.refill_idle()
            self._see_whether_drained()
        return bool(exited)

    def _see_whether_drained(self) -> None:
        """Tell when no job is unfinished, and of all that happens after the workers' dismissal."""
        if not self.dispatcher.unfinished or not self.dispatcher.accepting:
            self._on_drained()

    def _has_begun(self, worker: WorkerProcess, job: Job) -> bool:
        """True when this job is what the worker was at, or has had its third receiver."""
        if worker.fields[ledger.STARTED] >= job.serial:
            return True
        if worker.fields[ledger.RECEIVING] == job.serial:
            job.moves += 1
        return job.moves >= _DEATHS_RECEIVING

    def _judge(self, job: Job, begun: bool, worker: WorkerProcess, record: Postmortem) -> None:
        with self.dispatcher.lock:
            if job.state.final:
                return
            if begun and job.chunk is not None:
                item = self._item_begun(worker, job)
                if item == ledger.NO_ITEM and not job.terminated and self.aside.divide(job):
                    return
                rest = None if item == ledger.NO_ITEM else job.chunk.split_at(item)
                if rest is not None:  # only the item that was begun is guilty
                    self.aside.go_on(job, rest)
            if job.limit is not None and not job.terminated:
                if begun and self._is_spared(job, worker):
                    job.limit = None
                    self.aside.retry(job, 0.0)
                else:
                    self._over_limit(job, worker, record)
                return
            if job.terminated:
                self.endings.on_purpose(job, worker.exitcode)
                return
            if not begun:
                self.dispatcher.put_back([job])
                return
        if worker.exitcode == 0:
            worker.launcher.sweep(worker.token)  # os._exit(0) in a job looks like a clean leave
        self.on_job_process_lost(job, worker.pid, worker.exitcode, record)

    def _is_spared(self, job: Job, worker: WorkerProcess) -> bool:
        """True when the guilty item ended before the blow, and another one has caught it."""
        struck = worker.struck
        return job.is_chunk and struck is not None and worker.fields[ledger.ITEM] != struck.item

    def _over_limit(self, job: Job, worker: WorkerProcess, record: Postmortem) -> None:
        job.attempts += 1
        record = self._examiner.of_job(record, worker, job, self._loop.time())
        limit, pool = job.limit, self.bus.pool
        self.endings.over_limit(job, record)
        if isinstance(limit, TimeLimitExceeded):
            seconds = limit.timeout or 0.0
            self.bus.emit(JobTimedOut(pool, job.id, job.name, False, seconds, limit.stack))
        elif limit is not None:
            event = JobOutgrew(pool, job.id, job.name, limit.limit or 0, limit.rss or 0)
            self.bus.emit(event)

    def _item_begun(self, worker: WorkerProcess, job: Job) -> int:
        """Return which item of a chunk was begun last; NO_ITEM while they were on their way."""
        if worker.fields[ledger.STARTED] < job.serial:
            return ledger.NO_ITEM
        return worker.fields[ledger.ITEM]

    def on_job_process_down(self, job: Job, pid: int | None) -> None:
        """Tell listeners that the process which held a job has ended (name as in billiard)."""
        self.bus.emit(JobProcessDown(self.bus.pool, job.id, job.name, pid))

    def on_job_process_lost(
        self, job: Job, pid: int | None, exitcode: int | None, record: Postmortem
    ) -> None:
        """A job's process died under it: stamp the job, ask the policy (name as in billiard)."""
        worker = cast(WorkerProcess, job.worker)
        now = self._loop.time()
        job.worker_lost = (now, exitcode)
        job.attempts += 1
        record = self._examiner.of_job(record, worker, job, now)
        self.tally.losses[_cause_of(record)] += 1
        verdict = self._ask_policy(job, record)
        with self.dispatcher.lock:
            if job.state.final:
                return
            if job.terminated:  # somebody asked while the policy thought
                self.endings.on_purpose(job, exitcode)
            elif isinstance(verdict, Retry):
                self.tally.counts["retried"] += 1
                self.bus.emit(JobRetried(self.bus.pool, job.id, job.name, verdict.after, record))
                self.aside.retry(job, verdict.after)
            elif verdict.after > 0:
                self.aside.wait(
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
            if not 0 <= verdict.after < math.inf:
                raise ValueError(f"on_lost returned {verdict!r}")
        except Exception as error:  # noqa: BLE001  (the user's code; reported)
            who = type(policy).__qualname__
            self.bus.emit(
                HookFailed(self.bus.pool, "lost_worker_policy", error, who, job.id, job.name)
            )
            return FailFast().on_lost(job, record)
        return verdict

    def mark_as_worker_lost(self, job: Job, exitcode: int | None, record: Postmortem) -> None:
        """End a job with ``WorkerLostError`` (name as in billiard). The lock is held."""
        kind = OutOfMemory if record.out_of_memory else WorkerLostError
        error = kind(
            f"Worker exited prematurely: {record}",
            exitcode=exitcode,
            pid=record.pid,
            postmortem=record,
        )
        self.bus.emit(JobLost(self.bus.pool, job.id, job.name, record))
        self.endings.with_error(job, JobState.LOST, error)

    def _expect_death(self, job: Job) -> None:
        """A job's worker has been sent SIGKILL; the job ends even if the kernel does not comply."""
        # Both: another worker, to which the job may have moved meanwhile, has the same serials.
        worker, serial = job.worker, job.serial
        self._loop.call_later(_DEATH_SECONDS, lambda: self._overdue(job, worker, serial))

    def _overdue(self, job: Job, worker: WorkerProcess | None, serial: int) -> None:
        with self.dispatcher.lock:
            if job.state.final or worker is None or worker.jobs.get(serial) is not job:
                return
            if worker.state is not WorkerState.DEAD:
                self.intake.take_ring(worker)
                if worker.jobs.get(serial) is not job:
                    return
            del worker.jobs[serial]
            self.dispatcher.put_back(self.dispatcher.recall(worker))
            worker.unresponsive = True
            if job.limit is not None and not job.terminated:
                job.attempts += 1
                self.endings.over_limit(job)
            else:
                self.endings.on_purpose(job, _KILLED)

    def _gone(
        self, worker: WorkerProcess, record: Postmortem, was_booting: bool, expected: bool
    ) -> None:
        self.tally.counts["workers_recycled" if expected else "workers_died"] += 1
        kind = WorkerRecycled if expected else WorkerDown
        self.bus.emit(
            kind(
                self.bus.pool,
                worker.name,
                worker.pid,
                worker.exitcode,
                expected,
                record.verdict,
            )
        )
        self.hooks.worker_down(worker)
        if worker.blameless:
            return
        # One that dies at once, and not of a kill from outside, has not really booted.
        if was_booting or (not worker.sent and worker.exitcode not in (0, _KILLED)):
            self.crew.boot_failed(worker, record)
        elif not expected and not worker.departing:
            self.crew.died_at_work(record)

    def ended_with_pool(self, worker: WorkerProcess) -> None:
        """Tell of a worker that was still there when the pool ended. The lock is held."""
        if worker.pid is None:
            return
        if worker.exitcode is None:
            worker.exitcode = _KILLED  # by its zygote, of whom nobody reads any more
        self.bus.emit(WorkerDown(self.bus.pool, worker.name, worker.pid, worker.exitcode, True))
        self.hooks.worker_down(worker)

    # -- refusing policies -------------------------------------------------------------------------

    def _refusing_policy_of(self, job: Job) -> LostWorkerPolicy | None:
        policy = job.options.policy or self.options.policy
        return policy if _may_refuse(policy) else None


def _cause_of(record: Postmortem) -> str:
    return "out of memory" if record.out_of_memory else record.signal_name or record.status_text


def _may_refuse(policy: LostWorkerPolicy) -> bool:
    return type(policy).refuses is not LostWorkerPolicy.refuses


class _PidFd:
    """A process to be watched for its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._fd
