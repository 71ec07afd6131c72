"""One pool's heart put together: its supervisor, the thread that runs it, and how it ends.

The states of a core, each a one-way street: running, closed (no new jobs), stopping, stopped. The
faces hold a core; the core never holds a face, so that an abandoned pool is collected.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from poolwatch.chunks import Part
from poolwatch.config import PoolOptions, add_settings, job_limits
from poolwatch.crew import decode_cause
from poolwatch.delivery import Delivery
from poolwatch.events import Event, PoolBroke
from poolwatch.exceptions import PoolBroken, Terminated
from poolwatch.job import NO_OPTIONS, Job, JobOptions, JobState
from poolwatch.latch import Latch
from poolwatch.launch.contexts import make_launcher
from poolwatch.launch.launcher import Launcher
from poolwatch.log_relay import LogRelay
from poolwatch.loop import Loop
from poolwatch.results import Access, ApplyResult
from poolwatch.slots import Slots, is_bounded
from poolwatch.snapshot import Call, Snapshot
from poolwatch.supervisor import Supervisor
from poolwatch.transport.settings import TravellingVariable
from poolwatch.worker.main import WorkerSetup
from poolwatch.workers import WorkerInfo, WorkerState

logger = logging.getLogger("poolwatch")

_FOREIGN = "this Pool belongs to the parent process; make one of your own"
_STOP_SECONDS = 1.0  # helpers that do not end by themselves are killed after that
_DELIVERY_SECONDS = 1.0  # callbacks that block longer are left behind when a pool is terminated

_cores: dict[int, weakref.ref[Core]] = {}  # those that are not stopped
_core_numbers = itertools.count()


class Input(Protocol):
    """What is read while the pool runs: the input of an ``imap``.

    Attributes:
        holds_open: a closed pool goes on until this has ended; otherwise it is aborted then.
    """

    holds_open: bool

    def lift(self) -> None:
        """Do not wait for a consumer any more, but for the workers only."""

    def abort(self, error: BaseException) -> None:
        """The pool has ended. The dispatcher's lock is held."""


class Core:
    """The running pool behind a face."""

    def __init__(self, options: PoolOptions, setup: WorkerSetup) -> None:
        """Take the snapshot and start the workers.

        Raises:
            OSError: no process or descriptor to be had.
            Exception: with ``spawn`` and ``forkserver``, what pickling the initializer raised.
        """
        self.options = options
        self.foreign = False  # True in a forked child, which inherited the pool
        self.snapshot = Snapshot()
        self.on_broken: Callable[[PoolBroken], object] | None = None  # delivered, see deliver()
        self._refusal: BaseException | None = None  # what apply_async raises
        self._closed = False
        self._terminating = False
        self._dismissed = False
        self._running = True
        self._job_numbers = itertools.count(1)
        self._inputs: dict[Input, None] = {}  # those that have not ended
        self._setup = setup
        self._ending: tuple[BaseException, JobState] | None = None  # of jobs, when not drained
        self._slots = Slots(options) if is_bounded(options) else None
        setup.pool = options.name
        setup.contextvars = tuple(map(TravellingVariable, options.contextvars))
        self._relay: LogRelay | None = None
        if options.relay_logs is not None:
            self._relay = LogRelay(options.name, options.relay_logs, self.deliver)
            setup.relay = self._relay.end
        self._ended = False  # no further launcher is stopped by whoever ends the pool
        self._launchers_lock = threading.Lock()
        try:
            self._launcher: Launcher = make_launcher(options.start_method, setup, options.name)
            # The newest last; several for a while after a restart.
            self._launchers = [self._launcher]
            try:
                self._start()
            except BaseException:
                self._launcher.stop()
                self._launcher.wait(_STOP_SECONDS)
                raise
        except BaseException:
            if self._relay is not None:
                self._relay.close()
            raise

    def _start(self) -> None:
        options = self.options
        self._loop = Loop()
        self._delivery = Delivery(f"{options.name}-delivery")
        self._encoder = Delivery(f"{options.name}-encoder", self._delivery)
        self.supervisor = Supervisor(
            options,
            self._loop,
            self._launcher,
            self._delivery,
            self._encoder,
            self._break,
            self._on_drained,
            self._slots,
        )
        self.supervisor.hooks.handle_of = self.handle_of
        self.dispatcher = self.supervisor.dispatcher
        self.access = Access(self.supervisor.orders, self.supervisor.assist)
        self._stopped = Latch()
        self.hired = Latch()  # the first workers have been asked for
        self._number = next(_core_numbers)
        _cores[self._number] = weakref.ref(self)
        self._thread = threading.Thread(
            target=self._run, name=f"{options.name}-supervisor", daemon=True
        )
        try:
            self._delivery.start()
            self._thread.start()
        except BaseException:
            _cores.pop(self._number, None)
            self._delivery.stop()
            self._loop.close()
            raise

    # -- jobs ----------------------------------------------------------------------------------

    def check_owner(self) -> None:
        """Raise RuntimeError in a forked child, which inherited the pool."""
        if self.foreign:
            raise RuntimeError(_FOREIGN)

    def check_open(self) -> None:
        """Raise what a submission must raise, if anything.

        Raises:
            ValueError: the pool is closed or terminated (as in multiprocessing).
            PoolBroken: it is broken.
            RuntimeError: it was inherited by a forked child.
        """
        self.check_owner()
        if self._refusal is not None:
            raise type(self._refusal)(*self._refusal.args) from self._refusal.__cause__

    def submit(
        self,
        name: str,
        call: Call,
        options: JobOptions,
        keepalive: object,
        wait: bool | None = None,
        part: Part | None = None,
    ) -> Job:
        """Make a job and put it on its way.

        Args:
            name: of the function.
            call: the pickled call.
            options: what the caller asked for.
            keepalive: must not be collected while the job is unfinished.
            wait: whether to wait for a slot; without meaning where there is no bound.
            part: to whom the outcome goes, where that is not the job's handle.

        Raises:
            ValueError, PoolBroken: as :meth:`check_open`; the pool may have ended meanwhile.
        """
        head, payload, by_value = call
        job = Job(next(self._job_numbers), name, head, payload, options, keepalive)
        job.by_value = by_value
        job.chunk = part
        self.submit_job(job)
        return job

    def submit_job(self, job: Job) -> None:
        """Put a job on its way; errors as for :meth:`submit`."""
        dispatcher = self.dispatcher
        is_ranked = job.options is not NO_OPTIONS and job.options.priority != 0
        if is_ranked:
            dispatcher.ranked = True
        try:
            dispatcher.submit(job)
        except BaseException:
            # A signal handler raised (Ctrl-C) in the middle of the bookkeeping.
            self.call_soon(lambda: self.supervisor.repair(job))
            raise
        if is_ranked:
            dispatcher.urge()
        if self._refusal is not None or self.foreign:
            self._withdraw(job)

    def _withdraw(self, job: Job) -> None:
        """The pool has ended meanwhile: refuse the job, unless it has been taken or ended."""
        self.check_owner()
        dispatcher = self.dispatcher
        with dispatcher.lock:
            dispatcher.take_arrivals()
            if dispatcher.accepting or job.state.final or job not in dispatcher.backlog:
                return
            dispatcher.backlog.remove(job)
            dispatcher.unfinished -= 1
        self.check_open()

    def part_job(
        self, name: str, call: Call, part: Part, options: JobOptions, keepalive: object
    ) -> Job:
        """Return the job of a part of a map; arguments as for :meth:`submit`."""
        head, payload, by_value = call
        job = Job(next(self._job_numbers), name, head, payload, options, keepalive)
        job.by_value = by_value
        job.chunk = part
        return job

    def add_input(self, source: Input) -> None:
        """Count a pool as not drained until this input has ended.

        Raises:
            ValueError, PoolBroken: as :meth:`check_open`.
        """
        with self.dispatcher.lock:
            self.check_open()
            self._inputs[source] = None

    def remove_input(self, source: Input) -> None:
        """An input has ended. The lock is held."""
        self._inputs.pop(source, None)
        if not self.dispatcher.unfinished:
            self._on_drained()

    def plain_options(self) -> JobOptions:
        """Return the options of a job for which nothing was asked but what holds for the pool."""
        soft, hard = job_limits(self.options, None, None)
        if soft is None and hard is None:
            return NO_OPTIONS
        return JobOptions(soft_timeout=soft, timeout=hard)

    def with_surroundings(self, options: JobOptions) -> JobOptions:
        """Return the options with what the job is to find around it, by the caller's context.

        Raises:
            pickle.PicklingError: the value of a context variable does not pickle.
        """
        variables = self.options.contextvars
        if options is NO_OPTIONS and not variables:
            return options
        options = replace(options)
        add_settings(options, variables)
        return options

    def failed_job(self, name: str, error: BaseException, options: JobOptions) -> Job:
        """Return a job that has ended before it began: its call does not pickle."""
        job = Job(next(self._job_numbers), name, b"", None, options, None)
        with self.dispatcher.lock:
            self.dispatcher.unfinished += 1
            self.supervisor.endings.with_error(job, JobState.FAILED, error)
        return job

    def unfinished_jobs(self, *owners: object) -> list[Job]:
        """Return the jobs that go to these owners (see ``chunks.Part``) and have not ended."""
        wanted = {id(owner) for owner in owners}
        with self.dispatcher.lock:
            jobs = self._jobs()
        return [
            job
            for job in jobs
            if job.chunk is not None and id(job.chunk.owner) in wanted and not job.state.final
        ]

    def _jobs(self) -> list[Job]:
        """Return all jobs that may not have ended, in no special order. The lock is held."""
        dispatcher, supervisor = self.dispatcher, self.supervisor
        dispatcher.take_arrivals()
        jobs = [*dispatcher.backlog, *supervisor.aside.jobs]
        for worker in supervisor.crew.workers.values():
            jobs.extend(worker.jobs.values())
        return jobs

    def unfinished(self) -> dict[int, str]:
        """Return number and name of each job that has not ended; 0 stands for callbacks to come."""
        with self.dispatcher.lock:
            return self._unfinished()

    def _unfinished(self) -> dict[int, str]:
        names = {job.id: job.name for job in self._jobs() if not job.state.final}
        return {**names, 0: "callbacks"} if self._delivery.pending else names

    def handle_of(self, job: Job) -> ApplyResult[Any]:
        """Return a handle of a job."""
        return ApplyResult(job, self.access)

    def deliver(self, call: Callable[[], object]) -> None:
        """Have something called on the delivery thread."""
        self._delivery.put(call)

    def has_deliveries(self) -> bool:
        """Return True while something that was to be called there is not over."""
        return self._delivery.pending > 0

    def is_delivering(self) -> bool:
        """Return True on the delivery thread: in a callback, hook or listener."""
        return self._delivery.is_current()

    def infos(self) -> list[WorkerInfo]:
        """Return what a user may see of the workers."""
        self.check_owner()
        with self.dispatcher.lock:
            return self.supervisor.crew.infos()

    def listen(self, callback: Callable[[Event], object]) -> None:
        """Call back with every event from now on."""
        self.check_owner()
        self.supervisor.bus.listen(callback)

    # -- the supervisor's thread ---------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._relay is not None:
                self._loop.watch(self._relay, self._relay.on_readable)
            self._launcher.attach(self.supervisor, self._loop)
            self.supervisor.crew.maintain()
            self.hired.set()
            while self._running:
                self._loop.run_once()
                self.supervisor._join_exited_workers()
        except BaseException as error:
            logger.critical("%s: the supervisor failed", self.options.name, exc_info=True)
            broken = PoolBroken(f"the supervisor failed: {error!r}")
            broken.__cause__ = error
            self._end_all(broken)
        finally:
            self._finish()

    def _finish(self) -> None:
        """Nothing of the pool is left when this returns."""
        try:
            self.supervisor.crew.stop_hiring()
            self._stop_launchers()
            with self.dispatcher.lock:
                self._refusal = self._refusal or ValueError("Pool not running")
                # A submission that had passed the check may have found a worker idle after the end.
                left = Terminated("the pool has ended"), JobState.TERMINATED
                self._end_all(*(self._ending or left))
                for worker in list(self.supervisor.crew.workers.values()):
                    worker.jobs.clear()
                    self.dispatcher.remove(worker, WorkerState.DEAD)
                    self.supervisor.crew.forget(worker)
            self._loop.close()
        finally:
            if self._relay is not None:
                self._relay.finish()
            self._encoder.stop()
            self._delivery.stop()
            _cores.pop(self._number, None)
            self.hired.set()
            self._stopped.set()

    def _stop_launchers(self) -> None:
        with self._launchers_lock:
            launchers, self._ended = list(self._launchers), True
        for launcher in launchers:
            launcher.stop()
        for launcher in launchers:
            launcher.wait(_STOP_SECONDS)

    def restart(self) -> None:
        """Replace all workers by ones that are made from the present program. Any thread.

        Raises:
            ValueError, PoolBroken: as :meth:`check_open`.
            OSError: no process or descriptor to be had.
        """
        self.check_open()
        # Before the fork: what is defined in between is then sent by value, and not found outdated.
        snapshot = Snapshot()
        launcher = make_launcher(self.options.start_method, self._setup, self.options.name)
        with self._launchers_lock:
            ended = self._ended
            if not ended:
                others = [other for other in self._launchers if not other.is_gone()]
                self._launchers = [*others, launcher]
                # Jobs may meet workers of both kinds.
                self.snapshot = self.snapshot.common(snapshot)
        if ended:
            launcher.stop()
            launcher.wait(_STOP_SECONDS)
            self.check_open()
        self.call_soon(lambda: self._restart(launcher, snapshot))

    def _restart(self, launcher: Launcher, snapshot: Snapshot) -> None:
        launcher.attach(self.supervisor, self._loop)
        self.supervisor.sizing.restart(launcher, lambda: self._renew(snapshot))

    def _renew(self, snapshot: Snapshot) -> None:
        """The workers that take jobs know the program as it was at the last restart."""
        self.snapshot = snapshot

    def did_start_ok(self) -> bool:
        """Return True unless the pool has ended, or has no worker and never had one."""
        self.check_owner()
        return not self.is_closed and self.supervisor.crew.is_coming_up()

    def maintain(self) -> None:
        """Have the supervisor look around."""
        self.check_owner()
        self.call_soon(self.supervisor.crew.maintain)

    # -- the ways to end -----------------------------------------------------------------------

    def close(self) -> None:
        """Take no more jobs; workers leave when all are done."""
        self.check_owner()
        if self._refusal is None:
            self._refusal = ValueError("Pool not running")
        self._closed = True
        self.call_soon(self._leave_if_drained)

    def _on_drained(self) -> None:
        """No job is unfinished; called with the lock held."""
        if self._closed:
            self.call_soon(self._leave_if_drained)

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back in the supervisor's thread; not when the pool has ended. Any thread."""
        if not self._stopped.is_set():
            self._loop.call_soon(callback)

    def _leave_if_drained(self) -> None:
        crew = self.supervisor.crew
        with self.dispatcher.lock:
            self.dispatcher.take_arrivals()
            if self._terminating or not self._closed or self.dispatcher.unfinished:
                return
            if any(source.holds_open for source in self._inputs):
                return
            self.dispatcher.accepting = False
            self._end_inputs(ValueError("Pool not running"))
            crew.stop_hiring()
            if not self._dismissed:
                self._dismissed = True
                for worker in crew.workers.values():
                    crew.dismiss(worker)
            if not crew.workers:
                self._running = False

    def terminate(self) -> None:
        """End everything now; every unfinished job ends with ``Terminated``. Any thread.

        Takes no lock: a pool may be collected anywhere, also in a thread that holds one.
        """
        if self.foreign:
            return
        if self._refusal is None:
            self._refusal = ValueError("Pool not running")
        self._closed = self._terminating = True
        self.call_soon(self._terminate)

    def _terminate(self) -> None:
        self.supervisor.intake.drain_all()
        self._end_all(Terminated("the pool was terminated"), JobState.TERMINATED)
        self._running = False

    def _break(self, error: PoolBroken, cause: BaseException | bytes | None) -> None:
        """The pool cannot go on. A pickled cause is users' code, and is unpickled elsewhere."""

        def decode_and_end() -> None:
            error.__cause__ = decode_cause(cause)
            self.call_soon(lambda: self._broken(error))

        if isinstance(cause, bytes):
            threading.Thread(target=decode_and_end, daemon=True).start()
        else:
            error.__cause__ = cause
            self._loop.call_soon(lambda: self._broken(error))

    def _broken(self, error: PoolBroken) -> None:
        self.supervisor.intake.drain_all()
        self._end_all(error)
        self._running = False

    def _end_all(self, error: BaseException, state: JobState = JobState.LOST) -> None:
        """End every unfinished job with an error of this kind."""
        supervisor, dispatcher = self.supervisor, self.dispatcher
        is_first, self._ending = self._ending is None, (error, state)
        if is_first and isinstance(error, PoolBroken):
            supervisor.bus.emit(PoolBroke(self.options.name, error))
            if (on_broken := self.on_broken) is not None:
                self.deliver(lambda: on_broken(error))
        with dispatcher.lock:
            if isinstance(error, PoolBroken):
                self._refusal = error
            self._closed = True
            dispatcher.accepting = False
            jobs = self._jobs()
            dispatcher.backlog.clear()
            supervisor.aside.jobs.clear()
            for job in jobs:
                if job.state.final:
                    continue
                job.terminated = job.terminated or state is JobState.TERMINATED
                own = type(error)(*error.args)
                own.__cause__ = error.__cause__
                supervisor.endings.with_error(job, state, own)
                # Whoever waits must not wait for a callback that blocks.
                job.set_ready()
                if job.chunk is not None:
                    job.chunk.abort(own)
            self._end_inputs(error)

    def _end_inputs(self, error: BaseException) -> None:
        """Tell every input of the pool's end, with an error of this kind. The lock is held."""
        for source in list(self._inputs):
            own = type(error)(*error.args)
            own.__cause__ = error.__cause__
            source.abort(own)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end of everything; return whether it came in time."""
        self.check_owner()
        if threading.current_thread() is self._thread:
            raise RuntimeError("the supervisor cannot wait for itself")
        if not self._terminating:
            for source in list(self._inputs):
                source.lift()  # whoever waits here may be who would take results out
        if not self._stopped.wait(timeout):
            return False
        self._thread.join(timeout)
        bound = _DELIVERY_SECONDS if self._terminating and timeout is None else timeout
        return self._delivery.join(bound) or self._terminating

    @property
    def size(self) -> int:
        """How many workers there may be; see ``Sizing.most``."""
        return self.supervisor.sizing.most

    @property
    def is_closed(self) -> bool:
        """True when no more jobs are taken."""
        return self._refusal is not None

    @property
    def is_terminated(self) -> bool:
        """True when unfinished jobs are not run any more."""
        return self._terminating or isinstance(self._refusal, PoolBroken)

    @property
    def is_interrupted(self) -> bool:
        """True in a signal handler that has interrupted this pool's own bookkeeping."""
        return self.dispatcher.is_held_here()

    def abandon(self) -> None:
        """In a forked child: let go of descriptors, touch nothing else."""
        self.foreign = self.supervisor.orders.foreign = self.supervisor.assist.foreign = True
        closers: list[Callable[[], object]] = [self._loop.abandon]
        closers += [launcher.close for launcher in self._launchers]
        if self._relay is not None:
            closers.append(self._relay.abandon)
        for worker in self.supervisor.crew.workers.values():
            closers += [worker.hands.abandon, worker.close_pidfd]
        for close in closers:
            try:
                close()
            except OSError:
                pass  # another thread was closing it at the moment of the fork


def _live_cores() -> list[Core]:
    return [core for core in (ref() for ref in list(_cores.values())) if core is not None]


def _abandon_all() -> None:
    for core in _live_cores():
        core.abandon()
    _cores.clear()


def _terminate_all() -> None:
    """At the interpreter's end: a pool that was left open goes, and nothing hangs."""
    cores = _live_cores()
    for core in cores:
        core.terminate()
    for core in cores:
        core.join(2 * _STOP_SECONDS)


os.register_at_fork(after_in_child=_abandon_all)
atexit.register(_terminate_all)
