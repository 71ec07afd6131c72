"""The crew: how many workers there are, and when a new one is made.

A failure to *boot* (no process to be had, the initializer raises or kills) is told apart from a
death at work. The first is counted and breaks the pool after so many in a row; the second never
does, it only paces the replacements, unless the caller gave ``max_restarts``.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolwatch.bus import Bus
from poolwatch.config import PoolOptions
from poolwatch.events import BootFailed, Trouble
from poolwatch.evidence.captured_stderr import StandardErrors
from poolwatch.exceptions import BootError, PoolBroken, RestartFreqExceeded, WorkerLostError
from poolwatch.launch.launcher import Launcher
from poolwatch.loop import EventLoop
from poolwatch.loss import Postmortem, human_status
from poolwatch.tally import Tally
from poolwatch.transport import codec, frames, ledger
from poolwatch.workers import WorkerInfo, WorkerProcess, WorkerState

if TYPE_CHECKING:
    from poolwatch.timers import Timer

_PACE = 100  # replacements a second; more deaths than that are a storm, not work
_REPORT_SECONDS = 5.0  # a zygote that has not reported a death after that hangs
_ANSWER_SECONDS = 3.0  # a worker that was told to leave and does not say that it does is killed
_DID_NOT_ANSWER = (
    f"killed by this pool: it was told to leave, and did not answer for {_ANSWER_SECONDS:g} s"
)
_LEAVE_SECONDS = 10.0  # what one that leaves has for it, where others go on and nothing was asked
_LONG_LEAVE = 10.0  # seconds after which one that may take as long as it likes is told of
_FIRST_PAUSE = 0.02  # seconds until the next attempt when no process can be made; doubled each time
_LONGEST_PAUSE = 1.0
_LOOK_NS = 50_000  # how long a worker looks for its next job, where it has a processor of its own


class Crew:
    """Keeps the number of workers that was asked for."""

    def __init__(
        self,
        options: PoolOptions,
        loop: EventLoop,
        launcher: Launcher,
        bus: Bus,
        on_readable: Callable[[WorkerProcess], None],
        break_pool: Callable[[PoolBroken, BaseException | bytes | None], None],
        tally: Tally,
        errors: StandardErrors | None,
    ) -> None:
        self.target = options.processes
        self.review: Callable[[], None] = lambda: None  # sets the target anew, see ``Elastic``
        self.workers: dict[int, WorkerProcess] = {}
        self.hiring = True
        self._options = options
        self._loop = loop
        self.launcher = launcher
        self.generation = 0  # grows with each restart
        self._bus = bus
        self._on_readable = on_readable
        self._break_pool = break_pool
        self._tally = tally
        self._errors = errors
        self._boot_trouble = ""  # what has gone wrong with the last worker
        self._trouble = ""  # why no worker can be made now
        self._tokens = 0
        self._boot_failures = 0
        self._proven = False  # some worker has come up, so it can be done
        self._told_of_initializer = False  # that it takes long, since a worker has come up last
        self._replaced: deque[float] = deque()  # times of the replacements of the last second
        self._deaths: deque[float] = deque()  # times of the deaths at work, with max_restarts
        self._started = 0
        self._made_one = float("-inf")  # when the last worker process was made
        self._told_of_pacing = float("-inf")
        self._pause = _FIRST_PAUSE
        self._waiting: Timer | None = None  # no worker is made before it fires
        self._look_ns = 0

    def maintain(self) -> None:
        """Make workers until there are as many as were asked for, or until a pause is due."""
        self.review()
        self._let_look()
        while self.hiring and self._waiting is None and self.present() < self.target:
            pause = self._pause_before_next()
            if pause > 0:
                self._pace(pause)
                return
            self._hire()

    def everybody(self) -> list[WorkerProcess]:
        """Return all workers, as they are now. Any thread.

        A copy, made in one step: workers come and go in the supervisor's thread, whoever looks.
        """
        return list(self.workers.values())

    def _let_look(self) -> None:
        """Workers look for their next job as long as each has a processor of its own."""
        look_ns = _LOOK_NS if self.target <= self._options.processors else 0
        if look_ns != self._look_ns:
            self._look_ns = look_ns
            for worker in self.everybody():
                worker.fields[ledger.LOOK_NS] = look_ns

    def present(self) -> int:
        """Return how many workers there are, or will be when they have booted."""
        leaving = WorkerState.LEAVING
        return sum(
            worker.state is not leaving and worker.generation == self.generation
            for worker in self.everybody()
        )

    def renew(self, launcher: Launcher) -> Launcher:
        """Make workers with another launcher from now on; return the one used so far."""
        old, self.launcher = self.launcher, launcher
        self.generation += 1
        return old

    def _free_place(self) -> int:
        """Return the lowest place that is free, or that a worker is leaving."""
        taken = {
            worker.place
            for worker in self.everybody()
            if worker.state is not WorkerState.LEAVING and worker.generation == self.generation
        }
        return next(place for place in itertools.count() if place not in taken)

    def _next_processor(self) -> int | None:
        """Return the processor with the fewest workers; a replacement gets its predecessor's."""
        processors = self._options.cpu_affinity
        if not processors:
            return None
        crowd = dict.fromkeys(processors, 0)
        for worker in self.everybody():
            if worker.state is not WorkerState.LEAVING and worker.generation == self.generation:
                crowd[worker.processor] += 1
        return min(processors, key=lambda processor: crowd[processor] / processors.count(processor))

    def _pause_before_next(self) -> float:
        if self._started < self.target:
            return 0.0
        now = self._loop.time()
        while self._replaced and self._replaced[0] <= now - 1.0:
            self._replaced.popleft()
        return 0.0 if len(self._replaced) < _PACE else self._replaced[0] + 1.0 - now

    def _pace(self, pause: float) -> None:
        """Hold the next replacement back; say so once a second, not each time."""
        now = self._loop.time()
        if now - self._told_of_pacing >= 1.0:
            self._told_of_pacing = now
            text = f"more than {_PACE} deaths within a second: replacements are paced"
            self._bus.emit(Trouble(self._bus.pool, text))
        self._wait(pause)

    def _wait(self, pause: float) -> None:
        self._waiting = self._loop.call_later(pause, self._go_on)

    def _go_on(self) -> None:
        self._waiting = None
        self.maintain()

    def _hire(self) -> None:
        self._tokens += 1
        token, now = self._tokens, self._loop.time()
        name = f"{self._options.name}-{token}"
        place = self._free_place()
        notes = {ledger.PLACE: place + 1}
        processor = self._next_processor()
        if processor is not None:
            notes[ledger.PROCESSOR] = 1 + processor
        notes[ledger.LOOK_NS] = self._look_ns
        try:
            hands = self.launcher.launch(token, name, notes)
        except OSError as error:
            self._hire_later(f"no worker could be made: {error}")
            return
        self._started += 1
        worker = WorkerProcess(token, name, hands, now, self.launcher, self.generation)
        worker.place = place
        worker.processor = -1 if processor is None else processor
        if self._errors is not None and hands.stderr_fd is not None:
            worker.stderr = self._errors.take(hands.stderr_fd)
        self.workers[token] = worker
        self._loop.watch(worker.stream, lambda: self._on_readable(worker))
        worker.boot_timer = self._loop.call_later(
            self._options.boot_timeout, lambda: self._boot_overdue(worker)
        )

    def _hire_later(self, trouble: str) -> None:
        self._trouble = trouble
        self._bus.emit(Trouble(self._bus.pool, trouble))
        self._wait(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    # -- reports ---------------------------------------------------------------------------------

    def not_started(self, worker: WorkerProcess, errno: int) -> None:
        """The kernel had no process for us; try again, at growing intervals."""
        self.forget(worker)
        if self.hiring and self._waiting is None:
            self._hire_later(f"no worker could be forked: {os.strerror(errno)}")

    def booted(self, worker: WorkerProcess) -> None:
        """A worker is up. Failures in a row end only when one has done a job, see took_a_job()."""
        self._proven = True
        self._told_of_initializer = False
        self._trouble = ""
        self._pause = _FIRST_PAUSE
        worker.initializing = False
        self._call_off_boot_timer(worker)
        refused = worker.fields[ledger.UNPINNED]
        if refused:
            why = os.strerror(refused)
            text = f"worker {worker.name} could not be pinned to {worker.processor}: {why}"
            self._bus.emit(Trouble(self._bus.pool, text))

    def is_coming_up(self) -> bool:
        """Return True unless no worker has ever come up, and none can be made at the moment."""
        booting = WorkerState.BOOTING
        workers = self.everybody()
        return self._proven or self._waiting is None or any(w.state is booting for w in workers)

    def took_a_job(self) -> None:
        """A worker has delivered its first result: it has really booted."""
        self._boot_failures = 0

    def _call_off_boot_timer(self, worker: WorkerProcess) -> None:
        if worker.boot_timer is not None:
            self._loop.cancel(worker.boot_timer)
            worker.boot_timer = None

    def initializing(self, worker: WorkerProcess) -> None:
        """A worker has come as far as to its initializer, which has a bound of its own, or none."""
        if worker.state is WorkerState.DEAD:
            return
        self._call_off_boot_timer(worker)
        worker.initializing = True
        bound = self._options.initializer_timeout
        if bound is None:
            seconds, then = self._options.boot_timeout, self._tell_of_initializer
        else:
            text = f"its initializer took longer than {bound:g} s"
            seconds, then = bound, lambda worker: self._kill_overdue(worker, text)
        worker.boot_timer = self._loop.call_later(seconds, lambda: then(worker))

    def _tell_of_initializer(self, worker: WorkerProcess) -> None:
        """It takes long, as it may: say so, once until one comes up."""
        worker.boot_timer = None
        if not self._told_of_initializer:
            self._told_of_initializer = True
            text = (
                f"{worker.who()} has been at its initializer for "
                f"{self._options.boot_timeout:g} s; it may (see initializer_timeout)"
            )
            self._bus.emit(Trouble(self._bus.pool, text))

    def boot_refused(self, worker: WorkerProcess) -> None:
        """The initializer has raised, so that the worker ends; a thread of it may be in the way."""
        self._call_off_boot_timer(worker)
        self.expect_leave(worker)

    def _boot_overdue(self, worker: WorkerProcess) -> None:
        """It does not answer: replace it, or the zygote if that is what hangs."""
        worker.boot_timer = None
        if worker.pid is None:
            self._zygote_overdue(worker)
        else:
            text = f"it did not boot within {self._options.boot_timeout:g} s"
            self._kill_overdue(worker, text)

    def _kill_overdue(self, worker: WorkerProcess, text: str) -> None:
        worker.boot_timer = None
        if worker.state is WorkerState.DEAD:
            return
        worker.overdue = True
        self.kill(worker, why=f"killed by this pool: {text}")

    def _zygote_overdue(self, worker: WorkerProcess) -> None:
        """The zygote has not made a worker: it hangs, unless it has made others meanwhile."""
        if worker.state is WorkerState.DEAD:
            return
        timeout = self._options.boot_timeout
        if self._loop.time() - self._made_one < timeout:
            worker.boot_timer = self._loop.call_later(timeout, lambda: self._boot_overdue(worker))
        else:
            worker.launcher.replace_zygote(worker.token)

    def made(self, worker: WorkerProcess, pid: int, pidfd: int | None) -> None:
        """The zygote has made a worker's process."""
        self._tally.counts["workers_started"] += 1
        self._made_one = self._loop.time()
        worker.pid = pid
        worker.pidfd = pidfd
        if worker.stream.broken:
            self.kill(worker)

    def kill(
        self, worker: WorkerProcess, signum: int = signal.SIGKILL, why: str | None = None
    ) -> None:
        """Send a signal to a worker by whatever way there is.

        Args:
            worker: the worker.
            signum: the signal.
            why: what its postmortem should say, where nothing is known to have killed it before.
        """
        if why is not None and worker.reason is None and not worker.has_ended():
            worker.reason = why
        if not worker.send_signal(signum) and worker.pidfd is None:
            worker.launcher.signal(worker.token, signum)

    def expect_report(self, worker: WorkerProcess) -> None:
        """A worker is dying; its zygote reports that, unless the zygote itself hangs."""
        worker.report_timer = self._loop.call_later(
            _REPORT_SECONDS, lambda: self._report_overdue(worker)
        )

    def _report_overdue(self, worker: WorkerProcess) -> None:
        if self.workers.get(worker.token) is not worker or not worker.has_ended():
            return
        text = f"the zygote does not report the end of worker {worker.name}: it is replaced"
        self._bus.emit(Trouble(self._bus.pool, text))
        worker.launcher.replace_zygote(worker.token)

    def retire(self, worker: WorkerProcess) -> None:
        """Tell a worker to leave when it has ended the job that it runs, however long that takes.

        The dispatcher's lock is held.
        """
        worker.stream.send(frames.pack(frames.LEAVE, b"", 0))
        if not worker.jobs:
            self.emptied(worker)

    def emptied(self, worker: WorkerProcess) -> None:
        """A worker that is to leave holds nothing; one that boots has until it must be up."""
        if worker.boot_timer is None and not worker.initializing:
            self.expect_leave(worker)

    def dismiss(self, worker: WorkerProcess) -> None:
        """Tell a worker to leave when it has done what it holds. The dispatcher's lock is held."""
        worker.stream.send(frames.pack(frames.LEAVE, b"", 0))
        self.expect_leave(worker)

    def expect_leave(self, worker: WorkerProcess) -> None:
        """Kill a worker that does not say that it leaves, though it was told to."""
        if worker.departing:
            self._await_end(worker)
        elif worker.leave_timer is None:
            self._loop.call_soon(lambda: self.take_back(worker))
            worker.leave_timer = self._loop.call_later(
                _ANSWER_SECONDS, lambda: self.kill(worker, why=_DID_NOT_ANSWER)
            )

    take_back: Callable[[WorkerProcess], None]  # set by the supervisor: read its stream ourselves

    def departs(self, worker: WorkerProcess) -> None:
        """A worker says that it leaves: it takes no more jobs, and holds none."""
        worker.departing = True
        self._await_end(worker)

    def _await_end(self, worker: WorkerProcess) -> None:
        """Let a worker end; threads that its jobs have left behind may hold it.

        Where the pool goes on, such processes must not become more and more. At its end it may be
        the program's wish that these threads end their work, as multiprocessing has it.
        """
        self._call_off_leave_timer(worker)
        bound = self._options.leave_timeout
        if bound is None and self.hiring:
            bound = _LEAVE_SECONDS
        if bound is None:
            seconds, then = _LONG_LEAVE, self._tell_of_leaver
        else:
            seconds, then = bound, self._leave_overdue
        worker.leave_timer = self._loop.call_later(seconds, lambda: then(worker, seconds))

    def _leave_overdue(self, worker: WorkerProcess, seconds: float) -> None:
        text = f"it did not leave within {seconds:g} s; a thread that a job has left may hold it"
        self._bus.emit(Trouble(self._bus.pool, f"{worker.who()} is killed: {text}"))
        self.kill(worker, why=f"killed by this pool: {text} (see leave_timeout)")

    def _tell_of_leaver(self, worker: WorkerProcess, seconds: float) -> None:
        text = "a thread that a job has left may hold it, and may end first (see leave_timeout)"
        who = f"{worker.who()} has been leaving for {seconds:g} s"
        self._bus.emit(Trouble(self._bus.pool, f"{who}; {text}"))

    def _call_off_leave_timer(self, worker: WorkerProcess) -> None:
        if worker.leave_timer is not None:
            self._loop.cancel(worker.leave_timer)
            worker.leave_timer = None

    def forget(self, worker: WorkerProcess) -> None:
        """A worker is gone: close what we had of it."""
        self.workers.pop(worker.token, None)
        self._call_off_boot_timer(worker)
        self._call_off_leave_timer(worker)
        if worker.report_timer is not None:
            self._loop.cancel(worker.report_timer)
        self._loop.unwatch(worker.stream)
        worker.close()

    def boot_failed(self, worker: WorkerProcess, postmortem: Postmortem) -> None:
        """A worker died before it was up; too many of those in a row break the pool.

        A SIGKILL from outside counts only as long as none has ever come up: a storm of kills must
        not break the pool whichever phase it hits. Nothing counts when no more workers are made:
        nobody waits for those that are still booting.
        """
        if not self.hiring:
            return
        is_own_fault = worker.overdue or worker.boot_failure is not None
        if self._proven and postmortem.exitcode == -signal.SIGKILL and not is_own_fault:
            self.died_at_work(postmortem)
            return
        reason = postmortem.summary()
        if postmortem.phase != "booting":
            reason = f"it came up, and died before its first job: {reason}"
        if worker.boot_failure:
            reason = codec.failure_text(worker.boot_failure)
        cause: BaseException | bytes | None = worker.boot_failure
        if cause is None:
            text = f"Worker exited prematurely: {postmortem}"
            cause = WorkerLostError(
                text, exitcode=postmortem.exitcode, pid=postmortem.pid, postmortem=postmortem
            )
        self._count_boot_failure(worker.name, worker.pid, reason, cause)

    def helpers_died(self, exitcode: int | None) -> None:
        """Guardian and zygote died before they made a worker; that counts as one's boot failure."""
        if self._proven and exitcode in (None, -signal.SIGKILL):
            return
        how = "" if exitcode is None else f" with {human_status(exitcode)}"
        reason = f"the process that makes the workers ended{how} before it had made one"
        if self._options.start_method == "forkserver":
            reason += ", while it imported the main module, or loaded the initializer"
        self._count_boot_failure(f"{self._options.name}-{self._tokens}", None, reason, None)

    def _count_boot_failure(
        self, name: str, pid: int | None, reason: str, cause: BaseException | bytes | None
    ) -> None:
        self._boot_failures += 1
        self._tally.counts["boot_failures"] += 1
        self._boot_trouble = reason
        self._bus.emit(BootFailed(self._bus.pool, name, pid, self._boot_failures, reason))
        if self._boot_failures < self._options.max_boot_failures:
            return
        self.hiring = False
        count = self._boot_failures
        error = BootError(f"{count} workers in a row failed to boot; the last: {reason}")
        self._break_pool(error, cause)

    def died_at_work(self, postmortem: Postmortem) -> None:
        """Count a death for the pacing, and for ``max_restarts`` where it was given."""
        now = self._loop.time()
        self._replaced.append(now)
        bound = self._options.max_restarts
        if bound is None or not self.hiring:
            return  # nobody waits for another
        period = self._options.max_restart_freq
        self._deaths.append(now)
        while self._deaths[0] <= now - period:
            self._deaths.popleft()
        if len(self._deaths) > bound:
            self.hiring = False
            text = f"more than {bound} deaths of workers in {period:g} s; the last: "
            self._break_pool(RestartFreqExceeded(text + postmortem.summary()), None)

    def _up(self) -> int:
        return sum(worker.state is WorkerState.UP for worker in self.everybody())

    def problems(self) -> list[str]:
        """Return what keeps workers from being there, in words. The dispatcher's lock is held."""
        problems = []
        if self._boot_failures and self._up() < self.target:
            count = self._boot_failures
            problems.append(
                f"{count} workers in a row did not boot; the last: {self._boot_trouble}"
            )
        if self._waiting is not None:
            problems.append(self._trouble or "so many workers die that replacements are paced")
        return problems

    def stop_hiring(self) -> None:
        """Make no more workers."""
        self.hiring = False
        if self._waiting is not None:
            self._loop.cancel(self._waiting)
            self._waiting = None

    def infos(self) -> list[WorkerInfo]:
        """Return what a user may see of the workers; the dispatcher's lock is held."""
        now = self._loop.time()
        return [
            self._info(worker, worker.pid, now)
            for worker in self.everybody()
            if worker.pid is not None and worker.state is not WorkerState.DEAD
        ]

    def _info(self, worker: WorkerProcess, pid: int, now: float) -> WorkerInfo:
        job = worker.running()
        started = worker.fields[ledger.STARTED_AT] / 1e9
        return WorkerInfo(
            name=worker.name,
            pid=pid,
            phase=worker.phase(),
            job=None if job is None else job.name,
            job_id=None if job is None else job.id,
            job_seconds=None if job is None else max(0.0, now - started),
            jobs_done=worker.done,
            age=now - worker.born,
        )


def decode_cause(cause: BaseException | bytes | None) -> BaseException | None:
    """Return the cause of a broken pool; unpickles, so not in the supervisor's thread."""
    return codec.decode_failure(cause) if isinstance(cause, bytes) else cause
