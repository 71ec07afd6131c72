"""The user's callbacks and hooks, called on the delivery thread and guarded by name.

One that raises is reported as an event and in the log, and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolwatch.bus import Bus
from poolwatch.config import PoolOptions, name_of
from poolwatch.delivery import Delivery
from poolwatch.events import HookFailed
from poolwatch.exceptions import JobDecodingError
from poolwatch.job import Job
from poolwatch.results import ApplyResult
from poolwatch.transport import codec
from poolwatch.transport.bulk import Bulk
from poolwatch.transport.calls import Functions
from poolwatch.watch import Watch
from poolwatch.workers import WorkerProcess


def hook_failed(
    pool: str, hook: str, error: BaseException, callback: Any, job: Job | None
) -> HookFailed:
    """Return the event that tells of the user's own code having raised.

    Args:
        pool: name of the pool.
        hook: role of what was called.
        error: what it raised.
        callback: what was called.
        job: the job for which it was called.
    """
    number, name = (None, None) if job is None else (job.id, job.name)
    return HookFailed(pool, hook, error, name_of(callback), number, name)


class Hooks:
    """Calls what the user gave to the pool and to its jobs."""

    def __init__(
        self, options: PoolOptions, delivery: Delivery, encoder: Delivery, bus: Bus
    ) -> None:
        self._options = options
        self._delivery = delivery
        self._encoder = encoder
        self._bus = bus
        self.handle_of: Callable[[Job], ApplyResult[Any]]  # set by the core

    def _guarded(
        self, name: str, job: Job | None, hook: Callable[..., object], *args: Any, **kwds: Any
    ) -> None:
        try:
            hook(*args, **kwds)
        except BaseException as error:  # noqa: BLE001  (the user's code, even exit(); reported)
            self._bus.emit_here(hook_failed(self._bus.pool, name, error, hook, job))

    def _put(
        self, name: str, job: Job | None, hook: Callable[..., object], *args: Any, **kwds: Any
    ) -> None:
        self._delivery.put(lambda: self._guarded(name, job, hook, *args, **kwds))

    def deliver(self, job: Job) -> None:
        """A job has ended: its callbacks, if it has any, then it is ready."""
        options = job.options
        if job.chunk is not None:
            job.chunk.ended(job)
            job.set_ready()
        elif options.callback is None and options.error_callback is None:
            job.set_ready()
        else:
            self._delivery.put(lambda: self._deliver(job))

    def _deliver(self, job: Job) -> None:
        try:
            succeeded, value = job.result()
            options = job.options
            if succeeded and options.callback is not None:
                self._guarded("callback", job, options.callback, value)
            elif not succeeded and options.error_callback is not None:
                self._guarded("error_callback", job, options.error_callback, value)
        finally:
            job.set_ready()

    def accepted(self, job: Job, pid: int, when: float) -> None:
        """A job has begun in a worker."""
        if job.options.accept_callback is not None:
            self._put("accept_callback", job, job.options.accept_callback, pid, when)
        if isinstance(job.chunk, Watch) and job.chunk.accepted is not None:
            job.chunk.accepted(pid, when)

    def limits_on(self, job: Job) -> None:
        """A job that has limits is on its way to a worker."""
        hook = self._options.on_timeout_set
        if hook is not None:
            soft, hard = job.options.soft_timeout, job.options.timeout
            self._put("on_timeout_set", job, hook, self.handle_of(job), soft, hard)

    def limit_hit(self, job: Job, soft: bool, limit: float) -> None:
        """A limit of a job has passed."""
        if job.options.timeout_callback is not None:
            self._put(
                "timeout_callback", job, job.options.timeout_callback, soft=soft, timeout=limit
            )

    def limits_off(self, job: Job) -> None:
        """A job that had limits has ended."""
        if self._options.on_timeout_cancel is not None:
            self._put(
                "on_timeout_cancel", job, self._options.on_timeout_cancel, self.handle_of(job)
            )

    def worker_up(self, worker: WorkerProcess) -> None:
        """A worker takes jobs."""
        if self._options.on_process_up is not None:
            self._put("on_process_up", None, self._options.on_process_up, worker)

    def worker_down(self, worker: WorkerProcess) -> None:
        """A worker has ended."""
        if self._options.on_process_down is not None:
            self._put("on_process_down", None, self._options.on_process_down, worker)

    def encode(self, job: Job, then: Callable[[BaseException | None], None]) -> None:
        """Pickle a job's call anew; then say how that went."""
        self._encoder.put(lambda: self._encode(job, then))

    def _encode(self, job: Job, then: Callable[[BaseException | None], None]) -> None:
        error: BaseException | None = None
        try:
            call = None if job.chunk is None else job.chunk.call()
            if call is None and job.payload is not None:
                call = _decode_call(job.head, job.payload)
            if call is not None:
                payload = _encode_call(call, job.by_value)
                job.head, job.payload = b"", payload
        except BaseException as problem:  # noqa: BLE001  (the user's code; the job fails with it)
            error = JobDecodingError(f"the call of {job.name} could not be sent again: {problem!r}")
            error.__cause__ = problem
        then(error)


def _encode_call(call: tuple[Any, ...], by_value: bool) -> codec.Payload:
    if by_value:
        return codec.encode_by_value(call, *codec.modules_of(call[0]))
    return codec.encode(call)


def _decode_call(head: bytes, payload: codec.Payload) -> tuple[Any, ...]:
    if isinstance(payload, Bulk):
        return Functions().decode(head, payload.table, payload.duplicate(), True)
    return Functions().decode(head, payload, None, False)
