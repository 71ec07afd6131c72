"""``ProcessPoolExecutor``: the face that programs written for ``concurrent.futures`` know."""

from __future__ import annotations

import atexit
import concurrent.futures
import inspect
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from poolwatch import call_types, checks, config, hints
from poolwatch.core import Core
from poolwatch.executor_map import Maps, ResultIterator
from poolwatch.futures import Future, Settler
from poolwatch.job import Job
from poolwatch.pool import Pool

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolwatch.keywords import PoolKeywords

P = ParamSpec("P")
T = TypeVar("T")

_OF_POOL = inspect.signature(Pool).parameters.keys()
_AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"  # as the standard library says it
_AFTER_EXIT = "cannot schedule new futures after interpreter shutdown"

_PATIENCE = 20  # looks for a worker, 50 ms each

_exiting = False
_executors: weakref.WeakSet[ProcessPoolExecutor] = weakref.WeakSet()
_owned: weakref.WeakSet[Core] = weakref.WeakSet()  # alive as long as their supervisors


class ProcessPoolExecutor(concurrent.futures.Executor):
    """An executor in which a death fails one future (as ``concurrent.futures``, and better).

    A ``with`` block waits at its end for what was submitted. When it is left by KeyboardInterrupt
    (Ctrl-C) or SystemExit, it does not: what has not begun is cancelled, what runs is stopped as by
    :meth:`terminate_workers`.

    Args:
        max_workers: number of workers; by default the processors that this process may use.
        mp_context: how workers are made, see ``Pool``'s ``context``.
        initializer: called once per worker before its first job, see ``Pool``.
        initargs: its arguments.
        max_tasks_per_child: jobs after which a worker is replaced; None for no bound.
        cancel_running: whether ``Future.cancel()`` also stops a job that runs; it costs the worker,
            which is replaced.
        **options: all other keyword arguments of ``Pool``, by the same names.

    Raises:
        TypeError: an argument of the wrong kind, or one that does not exist.
        ValueError: a value out of range.
        OSError: no process or descriptor to be had.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: str | BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        cancel_running: bool = False,
        **options: Unpack[PoolKeywords],
    ) -> None:
        if max_workers is not None and checks.integer("max_workers", max_workers) <= 0:
            raise ValueError("max_workers must be greater than 0")
        if max_tasks_per_child is not None:
            checks.whole("max_tasks_per_child", max_tasks_per_child)
        checks.flag("cancel_running", cancel_running)
        for name in options:
            if name in hints.OF_EXECUTOR or name not in _OF_POOL:
                raise hints.wrong_keyword(
                    "ProcessPoolExecutor", [name], hints.OF_EXECUTOR, type(self), Pool
                )
        pool = Pool(max_workers, initializer, initargs, max_tasks_per_child, mp_context, **options)
        self._take(pool, cancel_running, owned=True)

    @classmethod
    def from_pool(cls, pool: Pool, *, cancel_running: bool = False) -> ProcessPoolExecutor:
        """Return an executor that shares a pool; shutting it down leaves the pool open.

        Args:
            pool: an open pool.
            cancel_running: as for the class.

        Raises:
            TypeError: no pool.
            ValueError: the pool is closed.
        """
        if not isinstance(pool, Pool):
            raise TypeError(f"pool must be a poolwatch.Pool, not {pool!r}")
        checks.flag("cancel_running", cancel_running)
        pool._core.check_open()
        self = cls.__new__(cls)
        self._take(pool, cancel_running, owned=False)
        return self

    def _take(self, pool: Pool, cancel_running: bool, owned: bool) -> None:
        self._pool = pool
        self._core = pool._core
        self._owned = owned
        self._shut_down = False
        self._settler = Settler(pool._core, cancel_running)
        self._maps = Maps()
        _executors.add(self)
        if owned:
            _owned.add(pool._core)
            if _is_barren_at_exit(pool._core):
                _await_forks(pool._core)
        # Collected without having been shut down: what was submitted runs, then the workers go.
        self._finalizer = weakref.finalize(self, _collected, pool if owned else None, self._maps)
        self._finalizer.atexit = False

    @property
    def pool(self) -> Pool:
        """The pool behind this face: its workers, its events, its health."""
        return self._pool

    @property
    def _max_workers(self) -> int:
        """Number of workers; other libraries read it by this name."""
        return self._pool.processes

    # -- jobs ------------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a worker; return a :class:`Future` at once.

        If the call does not pickle, the future tells so; what is raised meanwhile and is no
        ``Exception`` (Ctrl-C, say) leaves at once.

        Raises:
            TypeError: not callable, or a coroutine function.
            RuntimeError: after ``shutdown()``, or at the interpreter's end.
            PoolBroken: the pool cannot go on; it is a ``BrokenProcessPool``.
            PoolFull: ``max_pending`` jobs are unfinished, and it may not wait, see ``Pool``.
        """
        checks.function("fn", fn)
        self._check_open()
        core = self._core
        future: Future[T] = Future(self._settler)
        try:
            options = core.with_surroundings(core.plain_options())
            call = core.snapshot.encode(fn, args, kwargs)
        except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
            hints.note_call(error, config.name_of(fn), args, kwargs)
            future.set_exception(error)
            return future
        name, watch = config.name_of(fn), self._settler.watch(future)
        try:
            future._job = core.submit(name, call, options, self._pool, part=watch)
        except ValueError:
            raise RuntimeError(_AFTER_SHUTDOWN) from None
        return future

    def _check_open(self) -> None:
        if self._core.is_closed or self._core.foreign:
            try:
                self._core.check_open()  # first of all that it is broken, as the standard library
            except ValueError:
                pass
            else:
                return
        elif not self._shut_down and not _exiting:
            return
        raise RuntimeError(_AFTER_EXIT if _exiting else _AFTER_SHUTDOWN)

    @call_types.executor_map
    def map(  # type: ignore[override]
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> ResultIterator[T]:
        """Return an iterator over ``fn(*items)`` for the items of all iterables side by side.

        It ends with the shortest. The first error raised ends the iterator; what has not begun then
        is cancelled, as when the iterator is closed or dropped half-way. Dropped before anything
        was taken from it, what has been read runs (all as in the standard library). A worker's
        death costs the item that it was at; of items that travel together, also those that had
        finished within the last millisecond.

        With ``buffersize`` (as in Python 3.14, where it counts chunks) a thread reads the input
        unless it is a single list, tuple, range or string; ``shutdown()`` ends the reading, and the
        iterator raises RuntimeError after the results of what has been read.

        Args:
            fn: called with one item of each iterable.
            *iterables: read to their end at once; with ``buffersize`` as results are taken.
            timeout: seconds from now until the last result; None for no bound.
            chunksize: items that travel together.
            buffersize: how many items may be read beyond those whose results have been taken.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: chunksize or buffersize below 1.
            RuntimeError, PoolBroken: as :meth:`submit`.
        """
        checks.function("fn", fn)
        size = checks.whole("chunksize", chunksize)
        if timeout is not None:
            timeout = time.monotonic() + checks.seconds("timeout", timeout, negative=True)
        if buffersize is not None:
            checks.whole("buffersize", buffersize)
        self._check_open()
        items: Iterable[Any] = zip(*iterables)  # noqa: B905  (as the standard library: the shortest)
        if buffersize is None:
            items = list(items)
        try:
            results = self._maps.start(self._pool, fn, items, timeout, size, buffersize)
        except ValueError:
            raise RuntimeError(_AFTER_SHUTDOWN) from None
        if self._shut_down:  # in another thread, which may not have seen this map
            self._maps.stop(RuntimeError(_AFTER_SHUTDOWN))
        return results

    # -- the end ---------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; may be called more than once, in any thread, also in callbacks.

        Args:
            wait: return when all futures are done and the workers have gone. With False they go on
                by themselves. Called by a signal handler that has interrupted a method of this
                executor, it does not wait: that method must end first.
            cancel_futures: cancel the futures and the items of maps that have not begun.
        """
        self._shut_down = True
        core = self._core
        if core.foreign:
            return
        self._maps.stop(RuntimeError(_AFTER_SHUTDOWN))
        if cancel_futures:
            core.access.orders.take_back_all(self._jobs())
        if self._owned:
            self._pool.close()
            self._finalizer.detach()
        if not wait or core.is_interrupted:
            return
        if self._owned:
            self._pool.join()
            return
        while jobs := self._jobs():
            for job in jobs:
                job.wait(None)
        self._settler.wait_for_delivery()

    def _jobs(self) -> list[Job]:
        """Return the unfinished jobs of all futures and maps."""
        return self._core.unfinished_jobs(self._settler, *self._maps.owners())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down, and wait, as the standard library does; after Ctrl-C end everything at once.

        Workers do not hear the Ctrl-C of a terminal, so it has to be passed on to their jobs. A
        program that ends itself with ``sys.exit()`` waits for them.
        """
        if isinstance(error, KeyboardInterrupt) and not self._core.foreign:
            self._stop()
        else:
            self.shutdown(wait=True)

    def _stop(self) -> None:
        """End what is unfinished, and return when nothing of it is left."""
        self._end(signal.SIGTERM)
        for job in self._jobs():
            job.wait(None)  # no longer than terminate_grace, and for its process to die
        if self._owned:
            self._core.terminate()  # workers that are still booting need not go on with it
            self._pool.join()

    def terminate_workers(self) -> None:
        """End the executor at once; running jobs get SIGTERM first (as in Python 3.14).

        Jobs that have not begun are cancelled. Those that run get ``SystemExit``, and SIGKILL after
        the pool's ``terminate_grace``; their futures end with ``Terminated``, where Python's end
        with ``BrokenProcessPool``. With :meth:`from_pool` only this executor's jobs are ended.
        Returns at once.

        Raises:
            RuntimeError: in a forked child, which inherited the executor.
        """
        self._end(signal.SIGTERM)

    def kill_workers(self) -> None:
        """End the executor at once, with SIGKILL (as in Python 3.14).

        Jobs that have not begun are cancelled, futures of jobs that run end with ``Terminated``.
        With :meth:`from_pool` only this executor's jobs are ended. Returns at once.

        Raises:
            RuntimeError: in a forked child, which inherited the executor.
        """
        self._end(signal.SIGKILL)

    def _end(self, signum: int) -> None:
        core = self._core
        core.check_owner()
        self._shut_down = True
        self._maps.stop(RuntimeError(_AFTER_SHUTDOWN))
        orders = core.access.orders
        for job in orders.take_back_all(self._jobs()):
            orders.terminate(job, signum)
        if self._owned and signum == signal.SIGKILL:
            core.terminate()
        self.shutdown(wait=False)

    def __reduce__(self) -> Any:
        raise TypeError("executors cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else "open"
        return f"<ProcessPoolExecutor {self._pool.name} {self._max_workers} workers, {state}>"


def _collected(pool: Pool | None, maps: Maps) -> None:
    """An executor has been collected without having been shut down; no locks: see ``Core``."""
    if pool is None or pool._core.foreign:
        return
    pool._core.call_soon(lambda: maps.stop(RuntimeError(_AFTER_SHUTDOWN)))
    pool.close()


def _at_exit() -> None:
    """What was submitted before the interpreter's end runs (as in the standard library).

    That includes jobs of executors that have been collected meanwhile.
    """
    global _exiting
    _exiting = True
    for executor in list(_executors):
        executor.shutdown(wait=not executor._owned)
    for core in list(_owned):
        if not core.foreign:
            core.close()
            _await_end(core)


def _await_end(core: Core) -> None:
    """Wait for a core's end, or end it where its jobs cannot run any more."""
    if not _is_barren_at_exit(core):
        core.join()
        return
    in_vain = 0
    while not core.join(0.05) and in_vain < _PATIENCE:
        in_vain = 0 if any(worker.pid is not None for worker in core.infos()) else in_vain + 1
    if in_vain == _PATIENCE:
        core.terminate()
        core.join()


def _await_forks(core: Core) -> None:
    """Let the workers be there, so that a program that ends at once finds some for its jobs."""
    pause = threading.Event()
    least = core.options.min_processes
    wanted = core.size if least is None else least
    for _ in range(_PATIENCE * 50):
        if sum(worker.pid is not None for worker in core.infos()) >= wanted:
            return
        pause.wait(0.001)


def _is_barren_at_exit(core: Core) -> bool:
    """True where no workers can be made once the interpreter ends: Python 3.12 does not fork."""
    return core.options.start_method == "fork" and sys.version_info[:2] == (3, 12)


# Where the standard library's own executors end as well: threads can still be started then.
_register_atexit = getattr(threading, "_register_atexit", atexit.register)
_register_atexit(_at_exit)
