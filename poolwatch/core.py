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
from typing import Any, Protocol

from poolwatch.config import PoolOptions
from poolwatch.crew import decode_cause
from poolwatch.delivery import Delivery
from poolwatch.events import Event, PoolBroke
from poolwatch.evidence.stacks import WorkerStack
from poolwatch.exceptions import PoolBroken, Terminated
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.latch import Latch
from poolwatch.launch.launcher import Launcher
from poolwatch.launchers import Launchers
from poolwatch.log_relay import LogRelay
from poolwatch.loop import Loop
from poolwatch.results import Access, ApplyResult
from poolwatch.slots import Slots, is_bounded
from poolwatch.snapshot import Snapshot
from poolwatch.submissions import Submissions
from poolwatch.supervisor import Supervisor
from poolwatch.tally import PoolStats
from poolwatch.transport.settings import TravellingVariable
from poolwatch.worker.main import WorkerSetup
from poolwatch.workers import WorkerInfo, WorkerState

logger = logging.getLogger("poolwatch")

_ENDED = "the pool has ended"
_LATE_SECONDS = 1.0  # what is put in line after the workers were told to leave is ended after that
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


class Core(Submissions):
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
        self._ending: tuple[BaseException, JobState] | None = None  # of jobs, when not drained
        self._slots = Slots(options) if is_bounded(options) else None
        setup.pool = options.name
        setup.contextvars = tuple(map(TravellingVariable, options.contextvars))
        self._relay: LogRelay | None = None
        if options.relay_logs is not None:
            self._relay = LogRelay(options.name, options.relay_logs, self.deliver)
            setup.relay = self._relay.end
        try:
            self._launchers = Launchers(options.start_method, setup, options.name)
            try:
                self._start()
            except BaseException:
                self._launchers.stop(_STOP_SECONDS)
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
        self._settling = Delivery(f"{options.name}-futures", self._delivery)
        self.supervisor = Supervisor(
            options,
            self._loop,
            self._launchers.first,
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

    # -- what is read while the pool runs ------------------------------------------------------

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

    def _has_deliveries(self) -> bool:
        return bool(self._settling.pending or self._delivery.pending)

    def handle_of(self, job: Job) -> ApplyResult[Any]:
        """Return a handle of a job."""
        return ApplyResult(job, self.access)

    def deliver(self, call: Callable[[], object]) -> None:
        """Have something called on the delivery thread."""
        self._delivery.put(call)

    def settle(self, call: Callable[[], object]) -> None:
        """Have something called that settles futures, on a thread that runs no callbacks."""
        self._settling.put(call)

    def is_settling(self) -> bool:
        """Return True on that thread."""
        return self._settling.is_current()

    def has_deliveries(self) -> bool:
        """Return True while something that was to be called on the delivery thread is not over."""
        return self._delivery.pending > 0

    def is_delivering(self) -> bool:
        """Return True on the delivery thread: in a callback, hook or listener."""
        return self._delivery.is_current()

    def infos(self) -> list[WorkerInfo]:
        """Return what a user may see of the workers."""
        self.check_owner()
        with self.dispatcher.lock:
            return self.supervisor.crew.infos()

    def listen(
        self, callback: Callable[[Any], object], kinds: tuple[type[Event], ...]
    ) -> Callable[[], None]:
        """Call back with events from now on; return what ends that."""
        self.check_owner()
        return self.supervisor.bus.listen(callback, *kinds)

    # -- how it is -----------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return what the pool has done so far. Any thread."""
        self.check_owner()
        with self.dispatcher.lock:
            return self.supervisor.stats()

    def dump_stacks(self, seconds: float) -> list[WorkerStack]:
        """Return where all workers are. Any thread but the supervisor's."""
        self.check_owner()
        return [] if self._stopped.is_set() else self.supervisor.stacks.of_all(seconds)

    @property
    def refusal(self) -> BaseException | None:
        """What a submission raises now, or None."""
        return self._refusal

    @property
    def has_stopped(self) -> bool:
        """True when nothing of the pool is left."""
        return self._stopped.is_set()

    def is_supervisor_thread(self) -> bool:
        """Return True in the supervisor's own thread: in a policy."""
        return threading.current_thread() is self._thread

    def can_deliver(self) -> bool:
        """Return True as long as somebody runs callbacks."""
        return self._delivery.is_alive()

    def callback_seconds(self) -> float:
        """Return for how long the user's code on the delivery thread has been running."""
        return 0.0 if self.is_delivering() else self._delivery.busy_seconds()

    # -- the supervisor's thread ---------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._relay is not None:
                self._loop.watch(self._relay, self._relay.on_readable)
            self._launchers.first.attach(self.supervisor, self._loop)
            self.supervisor.crew.maintain()
            self.supervisor.watch_for_stalls()
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
            self.supervisor.hosting.end()
            self.supervisor.crew.stop_hiring()
            self._launchers.stop(_STOP_SECONDS)
            with self.dispatcher.lock:
                self._refusal = self._refusal or ValueError("Pool not running")
                # A submission that had passed the check may have found a worker idle after the end.
                left = Terminated(_ENDED), JobState.TERMINATED
                self._end_all(*(self._ending or left))
                for worker in self.supervisor.crew.everybody():
                    worker.jobs.clear()
                    self.dispatcher.remove(worker, WorkerState.DEAD)
                    self.supervisor.ended_with_pool(worker)
                    self.supervisor.crew.forget(worker)
            self.supervisor.memory.stop()
            if self.supervisor.errors is not None:
                self.supervisor.errors.finish(_STOP_SECONDS)
            self._loop.close()
        finally:
            if self._relay is not None:
                self._relay.finish()
            self._encoder.stop()
            self._settling.stop(self._delivery.stop)  # callbacks come out of it
            _cores.pop(self._number, None)
            self.hired.set()
            self._stopped.set()

    def restart(self) -> None:
        """Replace all workers by ones that are made from the present program. Any thread.

        Raises:
            ValueError, PoolBroken: as :meth:`check_open`.
            OSError: no process or descriptor to be had.
        """
        self.check_open()
        # Before the fork: what is defined in between is then sent by value, and not found outdated.
        snapshot = Snapshot()
        launcher = self._launchers.add(lambda: self._share(snapshot))
        if launcher is None:
            self.check_open()
            return
        self.call_soon(lambda: self._restart(launcher, snapshot))

    def _share(self, snapshot: Snapshot) -> None:
        """Jobs may meet workers of both kinds."""
        self.snapshot = self.snapshot.common(snapshot)

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
            if self._terminating or not self._closed:
                return
            if not self._dismissed and not self._dismiss():
                return
            # What has been put in line since then does not count: whoever did so takes it back.
            if not crew.workers:
                self._running = False

    def _dismiss(self) -> bool:
        """Tell the workers to leave, if no job is unfinished. The lock is held."""
        crew = self.supervisor.crew
        self.dispatcher.take_arrivals()
        if self.dispatcher.unfinished or any(source.holds_open for source in self._inputs):
            return False
        self._dismissed = True
        self.dispatcher.accepting = False
        self._end_inputs(ValueError("Pool not running"))
        crew.stop_hiring()
        for worker in crew.everybody():
            crew.dismiss(worker)
        # For what nobody takes back, because a signal handler raised in its submission.
        self._loop.call_later(_LATE_SECONDS, self._end_late)
        return True

    def _end_late(self) -> None:
        """End what has been put in line too late, and is still there. No worker serves it."""
        self._end_all(Terminated(_ENDED), JobState.TERMINATED)

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
        self.supervisor.hosting.end()
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
        self.supervisor.hosting.end()
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
                    _finish_ending(job)
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
        settled = self._settling.join(bound)
        return (settled and self._delivery.join(bound)) or self._terminating

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
        closers: list[Callable[[], object]] = [
            self._loop.abandon,
            self.supervisor.hosting.abandon,
        ]
        closers += self._launchers.closers()
        if self._relay is not None:
            closers.append(self._relay.abandon)
        if self.supervisor.errors is not None:
            closers.append(self.supervisor.errors.abandon)
        for worker in self.supervisor.crew.everybody():
            closers += [worker.hands.abandon, worker.close_pidfd]
        for close in closers:
            try:
                close()
            except OSError:
                pass  # another thread was closing it at the moment of the fork


def _finish_ending(job: Job) -> None:
    """Let everybody know of an end that a signal handler has interrupted. The lock is held."""
    if not job.ready:
        if job.chunk is not None:
            job.chunk.ended(job)
        job.set_ready()


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
