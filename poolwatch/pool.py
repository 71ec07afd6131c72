"""``Pool``: the face that programs written for multiprocessing.Pool and billiard.Pool know."""

from __future__ import annotations

import signal
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, TypeVar

from poolwatch import checks, config
from poolwatch.chunks import Chunk, Item
from poolwatch.config import PoolOptions
from poolwatch.core import Core
from poolwatch.crew import WorkerInfo
from poolwatch.events import Event, HookFailed
from poolwatch.exceptions import TimeoutError
from poolwatch.job import NO_OPTIONS, JobOptions
from poolwatch.launch.contexts import start_method
from poolwatch.map_results import MapResult
from poolwatch.policies import LostWorkerPolicy
from poolwatch.results import ApplyResult
from poolwatch.worker.main import WorkerSetup

T = TypeVar("T")
S = TypeVar("S")

_CHUNKS_PER_WORKER = 4  # as multiprocessing.Pool divides a map


class Pool:
    """A pool of worker processes in which every job ends.

    Each job ends with its result, its own exception, or a loss that says why. Only the job that
    killed its worker pays for it, and the pool goes on with as many workers as were asked for.

    Args:
        processes: number of workers; by default the processors that this process may use.
        initializer: called once per worker before its first job. If it raises, the worker is
            replaced; after ``max_boot_failures`` in a row the pool is broken with that cause.
        initargs: arguments of the initializer. With the default start method they reach the workers
            by inheritance and are never pickled.
        maxtasksperchild: jobs after which a worker is replaced; None for no bound.
        context: how workers are made: ``"zygote"`` (the default on Linux), ``"fork"``, ``"spawn"``,
            ``"forkserver"``, or a multiprocessing context, which stands for its start method.
        timeout: hard limit in seconds for every job that names none; None for no limit.
        soft_timeout: soft limit in seconds, likewise.
        lost_worker_policy: what becomes of a job whose worker dies; ``FailFast()`` by default.
        lost_worker_timeout: seconds; short for ``GracePeriod(seconds)`` (from billiard).
        max_restarts: deaths at work within ``max_restart_freq`` that are tolerated; one more breaks
            the pool with ``RestartFreqExceeded`` (from billiard). By default deaths at work never
            break the pool.
        max_restart_freq: seconds, 1 by default (from billiard).
        max_boot_failures: workers in a row that may fail to boot, 10 by default.
        boot_timeout: seconds that a worker has to boot, 30 by default.
        terminate_grace: seconds between SIGTERM and SIGKILL when a job is terminated, 0.5 by
            default.
        on_process_up: called in the parent with the record of a worker that has booted.
        on_process_down: called in the parent with the record of a worker that has ended.
        on_process_exit: called in the worker as ``(pid, exitcode)`` when it leaves in peace.
        on_timeout_set: called as ``(result, soft, hard)`` when a job with limits is sent.
        on_timeout_cancel: called as ``(result,)`` when such a job has ended.
        name: for process names, logs and events.

    Raises:
        TypeError: an argument of the wrong kind, or one that does not exist.
        ValueError: a value out of range; the text names the argument.
        OSError: no process or descriptor to be had.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: str | BaseContext | None = None,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        lost_worker_policy: LostWorkerPolicy | None = None,
        lost_worker_timeout: float | None = None,
        max_restarts: int | None = None,
        max_restart_freq: float = 1.0,
        max_boot_failures: int = 10,
        boot_timeout: float = 30.0,
        terminate_grace: float = 0.5,
        on_process_up: Callable[[Any], object] | None = None,
        on_process_down: Callable[[Any], object] | None = None,
        on_process_exit: Callable[[int, int], object] | None = None,
        on_timeout_set: Callable[..., object] | None = None,
        on_timeout_cancel: Callable[..., object] | None = None,
        name: str = "poolwatch",
    ) -> None:
        bound = maxtasksperchild
        soft, hard = config.limits(soft_timeout, timeout)
        check = checks.callable_or_none
        setup = WorkerSetup(
            initializer=check("initializer", initializer),
            initargs=config.initargs(initargs),
            maxtasksperchild=None if bound is None else checks.whole("maxtasksperchild", bound),
            on_process_exit=check("on_process_exit", on_process_exit),
        )
        options = PoolOptions(
            processes=config.processes(processes),
            start_method=start_method(context),
            name=config.name(name),
            maxtasksperchild=setup.maxtasksperchild,
            timeout=hard,
            soft_timeout=soft,
            policy=config.pool_policy(lost_worker_policy, lost_worker_timeout),
            max_restarts=None if max_restarts is None else _restarts(max_restarts),
            max_restart_freq=checks.seconds("max_restart_freq", max_restart_freq),
            max_boot_failures=checks.whole("max_boot_failures", max_boot_failures),
            boot_timeout=checks.seconds("boot_timeout", boot_timeout),
            terminate_grace=checks.seconds("terminate_grace", terminate_grace, positive=False),
            on_process_up=check("on_process_up", on_process_up),
            on_process_down=check("on_process_down", on_process_down),
            on_timeout_set=check("on_timeout_set", on_timeout_set),
            on_timeout_cancel=check("on_timeout_cancel", on_timeout_cancel),
        )
        self._core = Core(options, setup)
        self._has_limits = hard is not None or soft is not None
        self._finalizer = weakref.finalize(self, _abandoned, self._core, name)
        self._finalizer.atexit = False  # the core has its own way to end with the interpreter

    # -- single jobs ---------------------------------------------------------------------------

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        accept_callback: Callable[[int, float], object] | None = None,
        timeout_callback: Callable[..., object] | None = None,
        waitforslot: bool | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        lost_worker_timeout: float | None = None,
        callbacks_propagate: tuple[type[BaseException], ...] = (),
        correlation_id: str | None = None,
        *,
        lost_worker_policy: LostWorkerPolicy | None = None,
        tag: object = None,
    ) -> ApplyResult[T]:
        """Run ``func(*args, **kwds)`` in a worker; return at once.

        The call is pickled here, in the caller's thread; what changes later does not show. If it
        does not pickle, the result tells so (as in multiprocessing).

        Args:
            func: what to call.
            args: its arguments.
            kwds: its keyword arguments.
            callback: called with the value; callbacks run on a thread of the pool, in order,
                before the result becomes ready.
            error_callback: called with the exception when the job does not succeed.
            accept_callback: called as ``(pid, time)`` when the job has really begun; the time is
                the worker's monotonic clock in seconds (from billiard).
            timeout_callback: called as ``(soft=..., timeout=...)`` when a limit has passed (from
                billiard).
            waitforslot: accepted for code written for billiard; submissions do not wait.
            soft_timeout: seconds after which ``SoftTimeLimitExceeded`` is raised in the job; by
                default the pool's.
            timeout: seconds after which the job's worker is killed; by default the pool's.
            lost_worker_timeout: seconds; short for ``GracePeriod(seconds)`` (from billiard).
            callbacks_propagate: accepted for code written for billiard; a callback's exception is
                logged and reported as an event, never raised in the pool's thread.
            correlation_id: the caller's own mark (from billiard).
            lost_worker_policy: what to do when the worker dies; by default the pool's.
            tag: the caller's own mark.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a value out of range, or the pool is closed.
            PoolBroken: the pool cannot go on.
        """
        core = self._core
        if core.is_closed or core.foreign:
            core.check_open()
        args, kwds = config.call(func, args, kwds)
        options = NO_OPTIONS
        if (
            self._has_limits
            or callback is not None
            or error_callback is not None
            or accept_callback is not None
            or timeout_callback is not None
            or soft_timeout is not None
            or timeout is not None
            or lost_worker_timeout is not None
            or lost_worker_policy is not None
            or correlation_id is not None
            or tag is not None
        ):
            soft, hard = self._limits(soft_timeout, timeout)
            options = config.job_options(
                callback,
                error_callback,
                accept_callback,
                timeout_callback,
                soft,
                hard,
                config.policy(lost_worker_policy, lost_worker_timeout),
                tag,
                correlation_id,
            )
        name = _name_of(func)
        try:
            call = core.snapshot.encode(func, args, kwds)
        except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            return core.handle_of(core.failed_job(name, error, options))
        return ApplyResult(core.submit(name, call, options, self), core.access)

    def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
    ) -> T:
        """Run ``func(*args, **kwds)`` in a worker and return its value.

        Raises:
            Exception: as :meth:`apply_async` and :meth:`ApplyResult.get`.
        """
        return self.apply_async(func, args, kwds).get()

    def _limits(self, soft: float | None, hard: float | None) -> tuple[float | None, float | None]:
        """Return a job's limits, with the pool's where it names none."""
        soft, hard = config.limits(soft, hard)
        options = self._core.options
        if hard is None:
            hard = options.timeout
        if soft is None and (options.soft_timeout or 0) <= (hard or float("inf")):
            soft = options.soft_timeout
        return soft, hard

    # -- many jobs -----------------------------------------------------------------------------

    def map(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int | None = None
    ) -> list[T]:
        """Return ``[func(item) for item in iterable]``, computed by the workers.

        Args:
            func: called with each item.
            iterable: the items; read to its end at once.
            chunksize: items that travel together; by default a quarter of a worker's share (as in
                multiprocessing).

        Raises:
            Exception: the error of the first item, in input order, that failed; after all items
                are accounted for (as in multiprocessing).
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[T]:
        """Do what :meth:`map` does, and return at once.

        Args:
            func: called with each item.
            iterable: the items; read to its end at once.
            chunksize: as for :meth:`map`.
            callback: called with the list of values when all items have succeeded.
            error_callback: called with the first error in input order when one has not.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: chunksize out of range, or the pool is closed.
            PoolBroken: the pool cannot go on.
        """
        self._core.check_open()
        if not callable(func):
            raise TypeError(f"func must be callable, not {func!r}")
        items = list(iterable)
        if chunksize is None:
            size, extra = divmod(len(items), self._core.options.processes * _CHUNKS_PER_WORKER)
            size = max(1, size + bool(extra))
        else:
            size = checks.whole("chunksize", chunksize)
        core = self._core
        result: MapResult[T] = MapResult(
            len(items),
            checks.callable_or_none("callback", callback),
            checks.callable_or_none("error_callback", error_callback),
            core.deliver,
            self._hook_failed,
            core.access.assist,
        )
        if size == 1:
            self._submit_items(result, func, items)
        else:
            limited = self._has_limits
            for start in range(0, len(items), size):
                part = items[start : start + size]
                self._submit_chunk(Chunk(result, start, func, part, False, limited), func)
        core.dispatcher.top_up()
        return result

    def _submit_items(
        self, result: MapResult[Any], func: Callable[..., Any], items: list[Any]
    ) -> None:
        """Submit each item as a job of its own."""
        core, name = self._core, _name_of(func)
        options = self._map_options()
        for index, item in enumerate(items):
            part = Item(result, index)
            try:
                call = core.snapshot.encode(func, (item,), {})
            except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
                with core.dispatcher.lock:
                    result.account_item(index, error)
            else:
                core.submit_part(name, call, part, options, self)

    def _submit_chunk(self, chunk: Chunk, func: Callable[..., Any]) -> None:
        core = self._core
        try:
            call = core.snapshot.encode_whole(func, chunk.call())
        except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            with core.dispatcher.lock:
                chunk.fail(error)
        else:
            core.submit_part(_name_of(func), call, chunk, self._map_options(), self)

    def _map_options(self) -> JobOptions:
        if not self._has_limits:
            return NO_OPTIONS
        soft, hard = self._limits(None, None)
        return JobOptions(soft_timeout=soft, timeout=hard)

    def _hook_failed(self, hook: str, error: BaseException) -> None:
        bus = self._core.supervisor.bus
        bus.emit(HookFailed(bus.pool, hook, error))

    # -- looking in ----------------------------------------------------------------------------

    @property
    def processes(self) -> int:
        """Number of workers that were asked for."""
        return self._core.supervisor.crew.target

    @property
    def workers(self) -> list[WorkerInfo]:
        """The worker processes as they are now, those included that boot or leave."""
        return self._core.infos()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._core.options.name

    def listen(self, callback: Callable[[Event], object]) -> None:
        """Call back with every event from now on, on a thread of the pool (see ``events``).

        Raises:
            TypeError: not callable.
        """
        if not callable(callback):
            raise TypeError(f"callback must be callable, not {callback!r}")
        self._core.listen(callback)

    def terminate_job(self, pid: int, sig: int = signal.SIGTERM) -> bool:
        """End the job that the worker with this process id runs (from billiard).

        The job ends with ``Terminated``. A worker that runs none is left alone.

        Args:
            pid: process id of the worker.
            sig: the signal that the job gets; SIGKILL follows after ``terminate_grace``.

        Returns:
            False when no worker with this process id runs a job.

        Raises:
            TypeError: not a whole number.
            ValueError: not a signal.
        """
        checks.whole("pid", pid)
        return self._core.supervisor.orders.terminate_worker_job(
            pid, checks.signal_number("sig", sig)
        )

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more jobs. Those that were taken run, also when workers die meanwhile."""
        self._core.close()

    def terminate(self) -> None:
        """End everything at once: workers are killed, unfinished jobs end with ``Terminated``.

        Returns when nothing of the pool is left, within about a second. Called from a signal
        handler that has interrupted a method of this pool, it does not wait: that method must end
        first.
        """
        self._core.check_owner()
        self._core.terminate()
        if not self._core.is_interrupted:
            self._core.join()
        self._finalizer.detach()

    def join(self, timeout: float | None = None) -> None:
        """Wait until all jobs have ended and all workers have gone.

        Args:
            timeout: seconds to wait; None to wait for ever.

        Raises:
            ValueError: the pool is still open (as in multiprocessing).
            TimeoutError: it is not finished after that time.
        """
        if not self._core.is_closed:
            raise ValueError("Pool is still running")
        if not self._core.join(checks.optional_seconds("timeout", timeout, positive=False)):
            raise TimeoutError(f"the pool is not finished after {timeout:g} s")
        self._finalizer.detach()

    def __enter__(self) -> Pool:
        self._core.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._core.foreign:
            self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        core = self._core
        state = "closed" if core.is_closed else "open"
        return f"<Pool {self.name} {self.processes} workers, {state}>"


def _abandoned(core: Core, name: str) -> None:
    """The pool has been collected without having been closed."""
    if core.foreign:
        return
    left_open = not core.is_closed
    core.terminate()
    if left_open:
        warnings.warn(f"unclosed pool {name}", ResourceWarning, stacklevel=2)


def _restarts(max_restarts: object) -> int:
    return checks.whole("max_restarts", max_restarts, 0)


def _name_of(func: Callable[..., Any]) -> str:
    name = getattr(func, "__qualname__", None)
    return name if isinstance(name, str) else type(func).__qualname__
