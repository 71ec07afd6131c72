"""A worker: takes jobs from its stream, runs them, writes each result at once.

The order of the stores in :meth:`Worker._run_job` is what the supervisor relies on after a death
(see ``transport.ledger``): the start clock and the phase, then ``STARTED``, then the arguments are
unpickled. Arguments that kill the worker while they load are therefore the guilty job's doing. A
result leaves before the next job begins; one that waited in memory could be lost with the next job.
"""

from __future__ import annotations

import faulthandler
import os
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from os import getpid
from signal import SIGTERM
from time import monotonic_ns, process_time_ns
from typing import Any

from poolwatch.transport import codec, frames, kernel, ledger, settings, usage
from poolwatch.transport.calls import Functions
from poolwatch.transport.frames import Frame, FrameReader
from poolwatch.transport.kernel import yield_processor
from poolwatch.transport.relay import RelayEnd
from poolwatch.transport.settings import TravellingVariable
from poolwatch.worker import chunks, current, relay, surroundings, title
from poolwatch.worker.chunks import ChunkRunner
from poolwatch.worker.memory import Resident, be_first_to_go, control_groups
from poolwatch.worker.outbox import Outbox
from poolwatch.worker.signals import Orders, die_of

_SHORT_NS = 50_000  # what counts as a short job
_MOST_PATIENCE = 64
_IN_VAIN = 16  # patience that a look in vain costs
_LONG_NS = 5_000_000  # what counts as a long job, whose peak of memory is worth a few system calls
_MOST_SHORT = 256  # functions that are remembered to be short


@dataclass(slots=True)
class WorkerSetup:
    """What all workers of a pool have in common; reaches forked workers by inheritance.

    Attributes:
        initializer: called once per worker before its first job.
        initargs: its arguments.
        maxtasksperchild: jobs after which the worker leaves; None for no bound.
        on_process_exit: called in the worker as ``(pid, exitcode)`` when it leaves.
        max_memory_per_child: KiB of resident set, looked at after each job, above which the worker
            leaves; None for no bound.
        contextvars: those whose values travel with each job.
        pool: name of the pool.
        relay: where log records go, or None.
        usage_memory: every job's own peak of memory is measured, also of the shortest.
        capture_stderr: standard error goes to the parent through a pipe.
        before_fork: called before each worker is forked, in the process that forks it.
    """

    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    maxtasksperchild: int | None = None
    on_process_exit: Callable[[int, int], object] | None = None
    max_memory_per_child: int | None = None
    contextvars: tuple[TravellingVariable, ...] = ()
    pool: str = "poolwatch"
    relay: RelayEnd | None = None
    usage_memory: bool = False
    capture_stderr: bool = False
    before_fork: Callable[[], object] | None = None


@dataclass(slots=True)
class WorkerEnds:
    """The worker's own descriptors: its stream, its row and the files of faulthandler.

    And the pipe that takes the place of its standard error, where that is captured.
    """

    sock: socket.socket
    ledger_fd: int
    crash_fd: int
    stack_fd: int
    stderr_fd: int = -1


class Worker:
    """The state of this process while it serves its pool."""

    def __init__(self, setup: WorkerSetup, ends: WorkerEnds, name: str) -> None:
        self._setup = setup
        self._ends = ends
        self._name = name
        self._row = ledger.Row.map(ends.ledger_fd)
        os.close(ends.ledger_fd)
        self._fields = self._row.fields
        self._orders = Orders(self._fields)
        self._reader = FrameReader(ends.sock)
        self._outbox = Outbox(ends.sock, self._row)
        self._functions = Functions()
        self._variables = [travelling.variable for travelling in setup.contextvars]
        self._chunks = ChunkRunner(self._outbox, self._fields, self._orders, self._leave_if_forked)
        self._pid = getpid()
        self._done = 0
        self._cpu = 0  # ns of processor time when the last job had ended
        self._system = 0  # of which in the kernel, when that was looked at last
        self._divide_at = 0  # when it is looked at again
        self._last = 0  # serial of the job that has come last
        self._memory = usage.PeakMemory.open()
        self._long_ns = -1 if setup.usage_memory else _LONG_NS
        self._short: set[bytes] = set()  # pickles of functions whose last job was no long one
        self._patience = 1

    def serve(self) -> None:
        """Boot, then run jobs until told to leave, or until the pool is gone."""
        self._orders.install(self._ends.crash_fd, self._ends.stack_fd)
        os.register_at_fork(
            before=self._orders.block,
            after_in_parent=self._orders.unblock,
            after_in_child=self._forget_pool,
        )
        kernel.become_subreaper()
        kernel.register_membarrier()
        _reseed()
        be_first_to_go()
        title.set_title(self._setup.pool, self._name)
        if self._setup.relay is not None:
            relay.install(self._setup.relay)
        current.enter(
            self, self._name, self._setup.pool, self._fields, Worker._run_job, Worker._outcome
        )
        if self._initialize():
            self._fields[ledger.PHASE] = ledger.IDLE
            self._outbox.send_through_stream(frames.READY, control_groups(), 0, self._pid)
            self._cpu = process_time_ns()
            self._system = usage.system_ns()
            self._divide_at = monotonic_ns() + usage.SPLIT_NS
            self._loop()
        self._leave()

    def _forget_pool(self) -> None:
        """In a process that a job forks: the stream is not its own, nor are our signals."""
        current.leave()
        try:
            faulthandler.enable(file=2)  # its crashes are not the worker's
        except (OSError, ValueError, RuntimeError):
            faulthandler.disable()
        self._orders.uninstall()
        self._orders.unblock()
        self._outbox.forget()
        self._fields.release()

    def _initialize(self) -> bool:
        if self._setup.initializer is not None:
            self._outbox.send_through_stream(frames.INITIALIZING, b"", 0)
            try:
                self._setup.initializer(*self._setup.initargs)
            except BaseException as error:  # noqa: BLE001  (told to the parent, which decides)
                saying = f"its initializer raised {codec.safe_repr(error)}"
                failure = codec.encode_failure(error, saying)
                self._outbox.send_through_stream(frames.BOOT_FAILED, failure, 0)
                return False
        # The initializer may have changed the user id, which clears the death signal.
        kernel.set_death_signal()
        return True

    def _loop(self) -> None:
        reader, bound = self._reader, self._setup.maxtasksperchild
        resident = Resident(self._setup.max_memory_per_child)
        while True:
            if self._patience > 0:
                self._await_next()
            try:
                batch = reader.read()
            except ConnectionError:
                return
            if batch is None:
                return
            if reader.receiving:
                self._fields[ledger.RECEIVING] = reader.receiving
            for frame in batch:
                if frame.kind == frames.JOB:
                    self._run_job(frame)
                    if self._done == bound or (resident.bound and resident.is_above()):
                        return
                elif frame.kind == frames.PING:
                    self._outbox.send_through_stream(frames.PONG, b"", frame.serial)
                elif frame.kind == frames.LEAVE:
                    return

    def _await_next(self) -> None:
        """Look for the next job for a moment before going to sleep; being woken costs more.

        Only after jobs that came one upon the other: each look in vain is paid for with patience.
        """
        fields, last = self._fields, self._last
        if fields[ledger.SENT] == last:
            deadline = monotonic_ns() + fields[ledger.LOOK_NS]
            while fields[ledger.SENT] == last:
                if monotonic_ns() > deadline:
                    self._patience -= _IN_VAIN
                    return
                yield_processor()
        self._patience = min(self._patience + 1, _MOST_PATIENCE)

    def _run_job(self, frame: Frame) -> None:
        _, flags, serial, split, label, payload, fd = frame  # noqa: RUF059  (label: see current)
        fields = self._fields
        self._last = serial
        if serial <= fields[ledger.VOID]:
            _drop(fd)
            return
        started = monotonic_ns()
        if flags and flags & frames.CHUNK:
            fields[ledger.ITEM] = ledger.NO_ITEM
            fields[ledger.CHUNK_AT] = started
        fields[ledger.STARTED_AT] = started
        fields[ledger.PHASE] = ledger.RUNNING
        fields[ledger.STARTED] = serial
        if serial <= fields[ledger.VOID]:
            _drop(fd)
            fields[ledger.PHASE] = ledger.IDLE
            self._outbox.send(frames.DROPPED, b"", serial)
            return
        if flags and flags & frames.WANT_ACCEPT:
            self._outbox.send(frames.ACCEPTED, b"", serial, started)
        head = payload[:split]
        measured = head not in self._short and self._memory is not None and self._memory.reset()
        kind, outcome = self._outcome(flags, serial, head, payload[split:], fd)
        self._leave_if_forked()
        _flush_stdout()
        before, self._cpu = self._cpu, process_time_ns()
        fields[ledger.PHASE] = ledger.SENDING
        ended = monotonic_ns()
        cpu, wall = self._cpu - before, ended - started
        if measured or wall > self._long_ns:
            self._tell_peak(kind, serial, head, wall, measured)
        if ended > self._divide_at:
            cpu = self._divided(cpu, ended)
        self._outbox.send(kind, outcome, serial, wall, cpu)
        fields[ledger.FINISHED] = serial
        fields[ledger.PHASE] = ledger.IDLE
        self._done += 1
        if wall < _SHORT_NS and self._patience <= 0:
            self._patience += 1  # after some short jobs it is worth another look

    def _tell_peak(self, kind: int, serial: int, head: bytes, wall: int, measured: bool) -> None:
        """Tell a long job's own peak of memory, and note which functions are short.

        The mark must be reset before the job, when nobody knows how long it will take: it is for
        functions that were long the last time, or are new to this worker.
        """
        if wall > self._long_ns:
            self._short.discard(head)
            if measured and self._memory is not None and kind != frames.NOT_FOUND:
                self._outbox.send(frames.PEAK, b"", serial, self._memory.read())
        else:
            if len(self._short) >= _MOST_SHORT:
                self._short.clear()
            self._short.add(head)

    def _divided(self, cpu: int, now: int) -> int:
        before, self._system = self._system, usage.system_ns()
        self._divide_at = now + usage.SPLIT_NS
        return usage.divided(cpu, self._system - before)

    def _outcome(
        self, flags: int, serial: int, head: bytes, payload: bytes, fd: int | None
    ) -> tuple[int, codec.Payload]:
        """Run one job; return the kind of frame and the payload that tell how it went.

        What the job was given and what it returns die here, within its limits and surroundings: a
        finaliser is code of the job.
        """
        if flags and flags & frames.SETTINGS:
            return self._outcome_in_surroundings(flags, serial, head, payload, fd)
        try:
            call = self._functions.decode(head, payload, fd, bool(flags & frames.BULK))
            func, args, kwds = call
        except BaseException as error:  # noqa: BLE001  (the job's own; told to the parent)
            missing = isinstance(error, (AttributeError, ImportError))
            if missing and not flags & frames.BY_VALUE:
                return frames.NOT_FOUND, b""
            return frames.DECODING_FAILED, codec.encode_failure(error)
        try:
            if flags and flags & frames.CHUNK:
                return frames.RESULT, self._chunks.run(func, args, kwds, serial, flags)
            value = self._call(func, args, kwds, serial)
        except BaseException as error:  # noqa: BLE001  (the job's own; told to the parent)
            if self._orders.terminating and isinstance(error, SystemExit):
                die_of(SIGTERM)  # a job that swallowed it has lived on, and its result counts
            error.__traceback__ = chunks.without_frames_of(error, __file__, chunks.__file__)
            return frames.FAILURE, codec.encode_failure(error)
        if value is None:
            return frames.RESULT, codec.PICKLED_NONE
        try:
            return frames.RESULT, codec.encode(value)
        except BaseException:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            return frames.FAILURE, chunks.failure_of(value)

    def _outcome_in_surroundings(
        self, flags: int, serial: int, head: bytes, payload: bytes, fd: int | None
    ) -> tuple[int, codec.Payload]:
        section, head = settings.split(head)
        begun = False

        def run() -> tuple[int, codec.Payload]:
            nonlocal begun
            begun = True
            return self._outcome(flags & ~frames.SETTINGS, serial, head, payload, fd)

        try:
            return surroundings.run_in(section, self._variables, run)
        except BaseException as error:  # noqa: BLE001  (the job's own; told to the parent)
            if not begun:
                _drop(fd)
            error.__traceback__ = None  # nothing of the user's own is in it
            return frames.FAILURE, codec.encode_failure(error)

    def _leave_if_forked(self) -> None:
        """A job forked, and its child has come back here: this is not the worker."""
        if getpid() != self._pid:
            os._exit(0)

    def _call(self, func: Any, args: Any, kwds: Any, serial: int) -> Any:
        # Signals of the pool act while orders.serial is set. A handler that raises between the
        # job's return and the reset makes the job fail by that limit, which is what it hit.
        orders = self._orders
        try:
            orders.begin(serial)
            return func(*args, **kwds)
        except BaseException:
            orders.serial = 0  # a second order must not break out of the handling of the first
            raise
        finally:
            orders.serial = 0

    def _leave(self) -> None:
        self._fields[ledger.PHASE] = ledger.LEAVING
        self._outbox.send_through_stream(frames.LEAVING, b"", 0)
        if self._setup.on_process_exit is not None:
            self._setup.on_process_exit(self._pid, 0)


def _drop(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _flush_stdout() -> None:
    """What the job printed must not be lost with a later job's crash."""
    try:
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001
        pass  # closed, replaced, or its reader is gone: the job's own affair


def _reseed() -> None:
    """Give this worker random streams of its own."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
