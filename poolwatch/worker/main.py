"""A worker: takes jobs from its stream, runs them, writes each result at once.

The order of the stores in :meth:`Worker._run_job` is what the supervisor relies on after a death
(see ``transport.ledger``): the start clock and the phase, then ``STARTED``, then the arguments are
unpickled. Arguments that kill the worker while they load are therefore the guilty job's doing. A
result leaves before the next job begins; one that waited in memory could be lost with the next job.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGTERM
from time import monotonic_ns, thread_time_ns
from typing import Any

from poolwatch.exceptions import MaybeEncodingError
from poolwatch.transport import codec, frames, kernel, ledger
from poolwatch.transport.bulk import Bulk
from poolwatch.transport.frames import Frame, FrameReader
from poolwatch.worker.signals import Orders, die_of


@dataclass(slots=True)
class WorkerSetup:
    """What all workers of a pool have in common; reaches forked workers by inheritance.

    Attributes:
        initializer: called once per worker before its first job.
        initargs: its arguments.
        maxtasksperchild: jobs after which the worker leaves; None for no bound.
        on_process_exit: called in the worker as ``(pid, exitcode)`` when it leaves.
    """

    initializer: Callable[..., object] | None = None
    initargs: tuple[Any, ...] = ()
    maxtasksperchild: int | None = None
    on_process_exit: Callable[[int, int], object] | None = None


@dataclass(slots=True)
class WorkerEnds:
    """The worker's own descriptors: its stream, its row and the files of faulthandler."""

    sock: socket.socket
    ledger_fd: int
    crash_fd: int
    stack_fd: int


class Worker:
    """The state of this process while it serves its pool."""

    def __init__(self, setup: WorkerSetup, ends: WorkerEnds) -> None:
        self._setup = setup
        self._ends = ends
        self._row = ledger.Row(ends.ledger_fd)
        os.close(ends.ledger_fd)
        self._fields = self._row.fields
        self._orders = Orders(self._fields)
        self._reader = FrameReader(ends.sock)
        self._pid = os.getpid()
        self._done = 0
        self._cpu = 0

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
        if self._initialize():
            self._fields[ledger.PHASE] = ledger.IDLE
            self._send(frames.READY, b"", 0, first=self._pid)
            self._cpu = thread_time_ns()
            self._loop()
        self._leave()

    def _forget_pool(self) -> None:
        """In a process that a job forks: the stream is not its own, nor are our signals."""
        self._orders.uninstall()
        self._orders.unblock()
        try:
            self._ends.sock.close()
        except OSError:
            pass  # the job has closed it already

    def _initialize(self) -> bool:
        if self._setup.initializer is not None:
            try:
                self._setup.initializer(*self._setup.initargs)
            except BaseException as error:  # noqa: BLE001  (told to the parent, which decides)
                self._send(frames.BOOT_FAILED, codec.encode_failure(error), 0)
                return False
        # The initializer may have changed the user id, which clears the death signal.
        kernel.set_death_signal()
        return True

    def _loop(self) -> None:
        fields, reader = self._fields, self._reader
        bound = self._setup.maxtasksperchild
        while True:
            try:
                batch = reader.read()
            except ConnectionError:
                return
            if batch is None:
                return
            if reader.receiving:
                fields[ledger.RECEIVING] = reader.receiving
            for frame in batch:
                if frame.kind == frames.JOB:
                    self._run_job(frame)
                    if self._done == bound:
                        return
                elif frame.kind == frames.PING:
                    self._send(frames.PONG, b"", frame.serial)
                elif frame.kind == frames.LEAVE:
                    return

    def _run_job(self, frame: Frame) -> None:
        fields, serial = self._fields, frame.serial
        if serial <= fields[ledger.VOID]:
            _drop(frame)
            return
        started = monotonic_ns()
        if frame.flags & frames.CHUNK:
            fields[ledger.ITEM] = ledger.NO_ITEM
        fields[ledger.STARTED_AT] = started
        fields[ledger.PHASE] = ledger.RUNNING
        fields[ledger.STARTED] = serial
        if serial <= fields[ledger.VOID]:
            _drop(frame)
            fields[ledger.PHASE] = ledger.IDLE
            self._send(frames.DROPPED, b"", serial)
            return
        if frame.flags & frames.WANT_ACCEPT:
            self._send(frames.ACCEPTED, b"", serial, first=started)
        kind, payload = self._outcome(frame)
        self._leave_if_forked()
        _flush_stdout()
        cpu, self._cpu = self._cpu, thread_time_ns()
        fields[ledger.PHASE] = ledger.SENDING
        self._send(kind, payload, serial, first=monotonic_ns() - started, second=self._cpu - cpu)
        fields[ledger.FINISHED] = serial
        self._done += 1
        fields[ledger.JOBS_DONE] = self._done
        fields[ledger.PHASE] = ledger.IDLE

    def _outcome(self, frame: Frame) -> tuple[int, codec.Payload]:
        """Run one job; return the kind of frame and the payload that tell how it went."""
        try:
            call = codec.decode(frame.payload, frame.fd, bool(frame.flags & frames.BULK))
            func, args, kwds = call
        except BaseException as error:  # noqa: BLE001  (the job's own; told to the parent)
            missing = isinstance(error, (AttributeError, ImportError))
            if missing and not frame.flags & frames.BY_VALUE:
                return frames.NOT_FOUND, b""
            return frames.DECODING_FAILED, codec.encode_failure(error)
        try:
            if frame.flags & frames.CHUNK:
                value = self._run_chunk(func, args, kwds, frame.serial)
            else:
                value = self._call(func, args, kwds, frame.serial)
        except BaseException as error:  # noqa: BLE001  (the job's own; told to the parent)
            if self._orders.terminating and isinstance(error, SystemExit):
                die_of(SIGTERM)  # a job that swallowed it has lived on, and its result counts
            error.__traceback__ = _without_own_frames(error)
            return frames.FAILURE, codec.encode_failure(error)
        if value is None:
            return frames.RESULT, _PICKLED_NONE
        return _encode_result(value)

    def _leave_if_forked(self) -> None:
        """A job forked, and its child has come back here: this is not the worker."""
        if os.getpid() != self._pid:
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

    def _run_chunk(
        self, func: Callable[..., Any], items: list[Any], star: bool, serial: int
    ) -> ChunkOutcomes:
        """Run the items of a map's chunk; their outcomes leave at least every millisecond.

        Returns:
            The outcomes that have not been sent yet.
        """
        fields, orders = self._fields, self._orders
        outcomes = ChunkOutcomes()
        sent = monotonic_ns()
        for index, item in enumerate(items):
            fields[ledger.ITEM] = index
            try:
                try:
                    orders.begin(serial)
                    value = func(*item) if star else func(item)
                finally:
                    orders.serial = 0  # a signal must not interrupt anything but the item's code
                outcomes.append((True, value))
            except BaseException as error:
                self._leave_if_forked()
                if orders.terminating and isinstance(error, SystemExit):
                    raise
                error.__traceback__ = _without_own_frames(error)
                outcomes.append((False, codec.encode_failure(error)))
            self._leave_if_forked()
            now = monotonic_ns()
            if now - sent > _PARTIAL_AFTER:
                _, payload = _encode_result(outcomes)
                self._send(frames.PARTIAL, payload, serial, first=len(outcomes))
                outcomes = ChunkOutcomes()
                sent = now
            fields[ledger.STARTED_AT] = now  # limits hold for each item
        return outcomes

    def _send(
        self, kind: int, payload: codec.Payload, serial: int, *, first: int = 0, second: int = 0
    ) -> None:
        try:
            if isinstance(payload, Bulk):
                header = frames.pack(
                    kind,
                    payload.table,
                    serial,
                    flags=frames.BULK,
                    fds=1,
                    first=first,
                    second=second,
                )
                sent = socket.send_fds(self._ends.sock, [header], [payload.fd])
                self._ends.sock.sendall(memoryview(header)[sent:])
            else:
                data = frames.pack(kind, payload, serial, first=first, second=second)
                self._ends.sock.sendall(data)
        except ConnectionError:
            os._exit(1)  # the pool is gone, and nobody is left to tell

    def _leave(self) -> None:
        self._fields[ledger.PHASE] = ledger.LEAVING
        self._send(frames.LEAVING, b"", 0)
        if self._setup.on_process_exit is not None:
            self._setup.on_process_exit(self._pid, 0)


class ChunkOutcomes(list[tuple[bool, Any]]):
    """``(True, value)`` or ``(False, pickled failure)`` of neighbouring items; sent as a list."""

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
        return list, (list(self),)

    def without_the_unpicklable(self) -> ChunkOutcomes:
        """Replace the values that cannot be pickled by failures that say so."""
        return ChunkOutcomes(
            (True, value)
            if succeeded and _pickles(value)
            else (False, _failure_of(value))
            if succeeded
            else (False, value)
            for succeeded, value in self
        )


_PICKLED_NONE = codec.encode(None)
_PARTIAL_AFTER = 1_000_000  # ns


def _encode_result(value: object) -> tuple[int, codec.Payload]:
    try:
        return frames.RESULT, codec.encode(value)
    except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        if isinstance(value, ChunkOutcomes):
            return frames.RESULT, codec.encode(value.without_the_unpicklable())
        return frames.FAILURE, _failure_of(value)


def _pickles(value: object) -> bool:
    try:
        codec.encode(value)
    except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        return False
    return True


def _failure_of(value: object) -> bytes:
    """Return the failure that tells why a value cannot be pickled."""
    try:
        codec.encode(value)
    except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        problem = MaybeEncodingError(codec.safe_repr(error), codec.safe_repr(value))
    else:
        problem = MaybeEncodingError("it pickled only at the second attempt", type(value).__name__)
    return codec.encode_failure(problem)


def _without_own_frames(error: BaseException) -> Any:
    """Drop this module's frames from the top of the traceback; the user's own begin below."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _drop(frame: Frame) -> None:
    if frame.fd is not None:
        os.close(frame.fd)


def _flush_stdout() -> None:
    """What the job printed must not be lost with a later job's crash."""
    try:
        sys.stdout.flush()
    except Exception:  # noqa: BLE001
        pass  # closed, replaced, or its reader is gone: the job's own affair


def _reseed() -> None:
    """Give this worker random streams of its own."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
