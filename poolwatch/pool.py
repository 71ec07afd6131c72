"""``Pool``: the face that programs written for multiprocessing.Pool and billiard.Pool know."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from multiprocessing.context import BaseContext
from types import FrameType, TracebackType
from typing import Any, TypeVar

from poolwatch import call_types, checks, config
from poolwatch.bounded import BoundedCore
from poolwatch.config import PoolOptions
from poolwatch.core import Core
from poolwatch.exceptions import TimeoutError
from poolwatch.hints import OF_CALLS, OF_POOL, hinting, note_call, wrong_keyword
from poolwatch.job import NO_OPTIONS
from poolwatch.launch.contexts import start_method
from poolwatch.policies import LostWorkerPolicy
from poolwatch.pool_control import PoolControl
from poolwatch.pool_insides import PoolInsides
from poolwatch.pool_maps import PoolMaps
from poolwatch.results import ApplyResult
from poolwatch.slots import is_bounded
from poolwatch.worker.main import WorkerSetup

T = TypeVar("T")

_PACKAGE = os.path.dirname(__file__) + os.sep


class Pool(PoolMaps, PoolControl, PoolInsides):
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
        boot_timeout: seconds that a worker has until it is there, 30 by default; the initializer
            is not counted.
        initializer_timeout: seconds that the initializer may take; a worker that is at it for
            longer is killed and has failed to boot. None, the default, for no bound; an event tells
            of one that takes longer than ``boot_timeout``.
        terminate_grace: seconds between SIGTERM and SIGKILL when a job is terminated, 0.5 by
            default.
        leave_timeout: seconds that a worker which takes no more jobs has to end, before it is
            killed. It does not end while ``on_process_exit`` runs, nor while threads run that its
            jobs have left behind, other than daemons. By default 10 where it is replaced or not
            needed any more; without bound after :meth:`close`, when :meth:`join` waits for those
            threads (as in multiprocessing), and an event tells when it takes long.
        on_process_up: called in the parent with the record of a worker that has booted.
        on_process_down: called in the parent with the record of a worker that has ended, also with
            its pool.
        on_process_exit: called in the worker as ``(pid, exitcode)`` when it leaves in peace.
        on_timeout_set: called as ``(result, soft, hard)`` when a job with limits is sent.
        on_timeout_cancel: called as ``(result,)`` when such a job has ended.
        min_processes: how many workers stay when there is little to do; the others leave after
            ``idle_timeout`` and come back on demand. By default the number of workers is fixed; 1
            when only ``idle_timeout`` is given.
        idle_timeout: seconds without work after which a worker leaves that is not needed; by
            default 60 when ``min_processes`` is given.
        cpu_affinity: True to pin each worker to one of the processors that this process may use, in
            turn; or the numbers of those to use.
        max_pending: bound on unfinished jobs of ``apply_async``; beyond it, submissions wait, in
            order of arrival, or raise ``PoolFull``. A wait ends with the pool, with what a
            submission raises then. Maps and imaps neither wait nor count: an imap has its window.
        block: with ``max_pending``, whether a submission waits for its turn (the default). In a
            callback it never does.
        putlocks: short for ``max_pending`` with as many jobs as there are workers to be, also after
            their number has changed (from billiard); ``max_pending`` has precedence.
        max_memory_per_child: KiB of resident set, looked at after each job, above which a worker is
            replaced (from billiard, which looks at the peak). What a worker shares with the parent
            from its beginning counts; a chunk of a map is one job.
        contextvars: context variables whose values in the submitter are visible in its jobs; the
            values must pickle, and one that does not fails its own submission. A variable that the
            submitter has not set is unset in the job. With ``"spawn"`` and ``"forkserver"`` they
            must be global variables of a module.
        relay_logs: True to have the log records of the workers handled by the loggers of the parent
            that have the same names; or the level from which on. Handlers that forked workers have
            inherited are put away there; those that the initializer adds stay. Records that nobody
            can keep up with are dropped, and their number is logged.
        memory_limit: bytes that a worker and its children may have together while a job runs; see
            ``MemoryLimitExceeded``. Resident sets are sampled some fifty times a second, with
            psutil and only while such a job runs, so that a job may go beyond it for a moment. What
            processes share counts for each of them, and so does what earlier jobs have left in the
            worker; of a map, the item that runs is guilty.
        stall_after: seconds after which a job that runs, a worker that is stopped and one that does
            not boot are reported, once each, as an event and in the log; nothing is ended for it.
            See also :meth:`health`.
        capture_stderr: True to keep what each worker last wrote to standard error, for the
            postmortem. It is passed on to the parent's standard error all the same.
        usage: ``"memory"`` to measure every job's own peak of memory
            (``ApplyResult.usage.max_rss``), which costs some fifty microseconds a job. Without it
            only jobs of more than 5 ms are measured, and not the one that is long for the first
            time after the same function was short. Times are always measured.
        synack: accepted for code written for billiard, without meaning: every job is acknowledged
            in shared memory.
        threads: likewise; the pool has its own threads.
        semaphore: likewise; slots are derived from the states of jobs.
        allow_restart: likewise; :meth:`restart` is always allowed.
        enable_timeouts: likewise; limits always hold.
        name: for process names, logs and events.

    Raises:
        TypeError: an argument of the wrong kind, or one that does not exist.
        ValueError: a value out of range; the text names the argument. Also a ``maxtasksperchild``
            of the wrong kind, as in multiprocessing.
        OSError: no process or descriptor to be had.
    """

    _before_fork: Callable[[], object] | None = None  # for integrations, see ``WorkerSetup``

    @hinting(OF_POOL)
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
        initializer_timeout: float | None = None,
        terminate_grace: float = 0.5,
        leave_timeout: float | None = None,
        on_process_up: Callable[[Any], object] | None = None,
        on_process_down: Callable[[Any], object] | None = None,
        on_process_exit: Callable[[int, int], object] | None = None,
        on_timeout_set: Callable[..., object] | None = None,
        on_timeout_cancel: Callable[..., object] | None = None,
        min_processes: int | None = None,
        idle_timeout: float | None = None,
        cpu_affinity: bool | Sequence[int] = False,
        max_pending: int | None = None,
        block: bool = True,
        putlocks: bool = False,
        max_memory_per_child: int | None = None,
        contextvars: Iterable[ContextVar[Any]] = (),
        relay_logs: bool | int = False,
        usage: str | None = None,
        memory_limit: int | None = None,
        stall_after: float | None = None,
        capture_stderr: bool = False,
        synack: bool = False,
        threads: bool = True,
        semaphore: object = None,
        allow_restart: bool = False,
        enable_timeouts: bool = True,
        name: str = "poolwatch",
    ) -> None:
        soft, hard = config.limits(soft_timeout, timeout)
        check = checks.callable_or_none
        setup = WorkerSetup(
            initializer=check("initializer", initializer),
            initargs=config.initargs(initargs),
            maxtasksperchild=config.maxtasksperchild(maxtasksperchild),
            on_process_exit=check("on_process_exit", on_process_exit),
            max_memory_per_child=_optional_whole("max_memory_per_child", max_memory_per_child),
            usage_memory=config.usage_memory(usage),
            capture_stderr=checks.flag("capture_stderr", capture_stderr),
            before_fork=self._before_fork,
        )
        count = config.processes(processes)
        least, idle_seconds = config.elasticity(count, min_processes, idle_timeout)
        options = PoolOptions(
            processes=count,
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
            initializer_timeout=checks.optional_seconds("initializer_timeout", initializer_timeout),
            terminate_grace=checks.seconds("terminate_grace", terminate_grace, positive=False),
            leave_timeout=checks.optional_seconds("leave_timeout", leave_timeout),
            min_processes=least,
            idle_timeout=idle_seconds,
            cpu_affinity=config.processors(cpu_affinity),
            max_pending=_optional_whole("max_pending", max_pending),
            block=checks.flag("block", block),
            putlocks=checks.flag("putlocks", putlocks),
            contextvars=config.context_variables(contextvars),
            relay_logs=config.log_level(relay_logs),
            memory_limit=config.memory(memory_limit),
            stall_after=checks.optional_seconds("stall_after", stall_after),
            capture_stderr=capture_stderr,
            on_process_up=check("on_process_up", on_process_up),
            on_process_down=check("on_process_down", on_process_down),
            on_timeout_set=check("on_timeout_set", on_timeout_set),
            on_timeout_cancel=check("on_timeout_cancel", on_timeout_cancel),
        )
        self._core = (BoundedCore if is_bounded(options) else Core)(options, setup)
        self._has_defaults = hard is not None or soft is not None or bool(options.contextvars)
        self._finalizer = weakref.finalize(self, _abandoned, self._core, name, _place())
        self._finalizer.atexit = False  # the core has its own way to end with the interpreter

    # -- single jobs ---------------------------------------------------------------------------

    @call_types.apply_async
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
        priority: int = 0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        memory_limit: int | None = None,
        **unknown: object,
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
            waitforslot: whether to wait where ``max_pending`` is reached, or to raise ``PoolFull``;
                by default as the pool's ``block`` says (from billiard, where False goes beyond the
                bound). In a callback, and in a signal handler that has interrupted a submission, it
                never waits.
            soft_timeout: seconds after which ``SoftTimeLimitExceeded`` is raised in the job; by
                default the pool's.
            timeout: seconds after which the job's worker is killed; by default the pool's.
            lost_worker_timeout: seconds; short for ``GracePeriod(seconds)`` (from billiard).
            callbacks_propagate: classes of exceptions; accepted for code written for billiard,
                where they stop the thread that reads results. A callback's exception is logged and
                reported as an event, never raised in the pool's thread.
            correlation_id: the caller's own mark (from billiard).
            lost_worker_policy: what to do when the worker dies; by default the pool's.
            tag: the caller's own mark.
            priority: waiting jobs of a higher priority go first, those of the same in the order in
                which they were submitted.
            env: variables that are added to the worker's environment while the job runs. Other
                variables that the job itself changes stay changed in that worker.
            cwd: the worker's working directory while the job runs. Where it cannot be entered, the
                job fails with that ``OSError``.
            memory_limit: bytes that the worker and its children may have together while the job
                runs; by default the pool's.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a value out of range, or the pool is closed.
            PoolBroken: the pool cannot go on.
            PoolFull: ``max_pending`` jobs are unfinished, and the submission may not wait.
        """
        core = self._core
        if core.is_closed or core.foreign:
            core.check_open()
        if unknown:
            raise wrong_keyword("Pool.apply_async", unknown, OF_CALLS, Pool.apply_async)
        args, kwds = config.call(func, args, kwds)
        options = NO_OPTIONS
        if (
            self._has_defaults
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
            or priority
            or env is not None
            or cwd is not None
            or memory_limit is not None
            or callbacks_propagate
        ):
            checks.exception_classes("callbacks_propagate", callbacks_propagate)
            soft, hard = config.job_limits(core.options, soft_timeout, timeout)
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
                priority,
                env,
                cwd,
                memory_limit,
            )
        name = config.name_of(func)
        try:
            if options is not NO_OPTIONS:
                config.add_settings(options, core.options.contextvars)
            call = core.snapshot.encode(func, args, kwds)
        except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            note_call(error, name, args, kwds)
            return core.handle_of(core.failed_job(name, error, options))
        return ApplyResult(core.submit(name, call, options, self, waitforslot), core.access)

    @call_types.apply
    @hinting(OF_CALLS)
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


def _place() -> str:
    """Return the line of the user's program that is making a pool."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _abandoned(core: Core, name: str, place: str) -> None:
    """The pool has been collected without having been closed."""
    if core.foreign:
        return
    left_open = not core.is_closed
    core.terminate()
    if left_open:
        # The text begins as multiprocessing's, by which programs filter.
        text = f"unclosed running multiprocessing pool {name}, made at {place}"
        warnings.warn(text, ResourceWarning, stacklevel=2, source=core)


def _optional_whole(argument: str, value: object) -> int | None:
    return None if value is None else checks.whole(argument, value)


def _restarts(max_restarts: object) -> int:
    return checks.whole("max_restarts", max_restarts, 0)
