"""``TaskPool``: the pool as a Celery worker sees it."""

from __future__ import annotations

import functools
import gc
from _thread import get_ident
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from poolwatch import config
from poolwatch.exceptions import PoolBroken, TimeoutError
from poolwatch.hosting import Hosting
from poolwatch.integrations.celery import child
from poolwatch.integrations.celery.account import Account
from poolwatch.integrations.celery.draining import drain
from poolwatch.integrations.celery.errors import signal_number
from poolwatch.integrations.celery.handles import TaskHandle, name_of
from poolwatch.integrations.celery.mailbox import Mailbox
from poolwatch.integrations.celery.options import (
    SETTING,
    own_options,
    pool_options,
    sensible_soft,
    starts_fresh,
)
from poolwatch.integrations.celery.sizing import Sizing
from poolwatch.integrations.celery.slots import Slots
from poolwatch.job import Job, JobOptions
from poolwatch.job_state import JobState
from poolwatch.pool import Pool
from poolwatch.results import ApplyResult
from poolwatch.watch import Watch

logger = get_logger("celery.pool")

_LONGEST_JOIN = 0.2  # seconds; in between, signal handlers have their turn


class _Pool(Pool):
    """A pool that tells Celery's receivers of each fork."""

    def __init__(self, before_fork: Callable[[], object] | None, **options: Any) -> None:
        self._before_fork = before_fork
        super().__init__(**options)


class TaskPool(Sizing, BasePool):  # type: ignore[misc]  # Celery has no types
    """A Celery worker's pool of processes, made of a ``poolwatch.Pool``.

    Chosen by ``CELERY_CUSTOM_WORKER_POOL=poolwatch.integrations.celery:TaskPool`` and
    ``celery worker -P custom``, or by the setting ``worker_pool`` with that name. It takes what
    Celery passes to prefork, and ``worker_pool_options``, keyword arguments of ``poolwatch.Pool``.

    Where it differs from prefork: a lost task is known at once, whatever ``worker_lost_wait`` says;
    a terminated one that does not heed its signal is killed after ``terminate_grace`` (0.5 s);
    ``shrink`` never fails for busy processes, it drains; a revoked task's flag belongs to the task;
    tasks may have child processes.

    Raises:
        ImproperlyConfigured: ``worker_pool_options`` names what does not exist, or what has a
            setting of Celery's own.
    """

    uses_semaphore = True
    signal_safe = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = own_options(self.app)
        self._pool: Pool | None = None
        self._target = config.usable_cpus() if self.limit is None else self.limit
        self._handles: set[TaskHandle] = set()
        self._by_pid: dict[int, TaskHandle] = {}  # the task that each process is known to run
        self._slots = Slots(self.options.get("semaphore"))
        self._mailbox: Mailbox | None = None  # None: callbacks may come on any thread
        self.account = Account()
        self._hub: Any = None
        self._lent: Any = None  # what the hub watches in the pool's place
        self._stopping = 0  # the thread that waits for the end
        self._over = False
        self.silent = False  # nobody is to be called back any more

    # -- beginning -----------------------------------------------------------------------------

    def on_start(self) -> None:
        """Make the processes.

        Raises:
            ImproperlyConfigured: the pool refuses the value of an option.
        """
        chosen = pool_options(self.options, self.app, self.putlocks, self.forking_enable, self._own)
        fresh = starts_fresh(chosen["context"])
        if fresh:
            child.mark_as_fresh()
        before_fork = functools.partial(child.before_fork, type(self))
        before_fork()
        gc.collect()  # what is garbage now would be copied by each process that collects it
        try:
            self._pool = _Pool(
                None if fresh else before_fork,
                processes=max(1, self._target),
                initializer=child.initialize,
                initargs=self.options.get("initargs", (self.app, None)),
                on_process_exit=child.leave,
                **chosen,
            )
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"{SETTING}, or a setting of the pool: {error}") from error
        if not self.options.get("threads", True):
            self._mailbox = Mailbox()
        self._pool._core.on_broken = lambda error: self._post(lambda: self.give_up(error))

    def did_start_ok(self) -> bool:
        """Return True when a process has come up, or is still coming up."""
        return self._pool is not None and self._pool.did_start_ok()

    def register_with_event_loop(self, loop: Any) -> None:
        """Have the hub look into our mailbox, and read what processes say of simple tasks.

        Again after each reconnect, when it has forgotten.
        """
        if self._mailbox is not None and not self._over:
            self._hub = loop
            loop.add_reader(self._mailbox, self._mailbox.empty)
            hosting = self._hosting
            self._lent = None if hosting is None else hosting.claim()
            if self._lent is not None:
                loop.add_reader(self._lent, self._take_in)

    @property
    def _hosting(self) -> Hosting | None:
        return None if self._pool is None else self._pool._core.supervisor.hosting

    def _take_in(self) -> None:
        """The hub has seen that processes have written something."""
        if self._mailbox is not None and self._hosting is not None:
            self._mailbox.fill(self._hosting.take_in)

    def _leave_event_loop(self) -> None:
        """The hub loops no more, or for others only: the pool reads everything itself again."""
        if self._hosting is not None:
            self._hosting.release()
        if self._hub is not None and self._lent is not None:
            self._hub.remove_reader(self._lent)
        self._lent = None

    # -- tasks ---------------------------------------------------------------------------------

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        callback: Callable[..., object] | None = None,
        error_callback: Callable[..., object] | None = None,
        accept_callback: Callable[..., object] | None = None,
        timeout_callback: Callable[..., object] | None = None,
        waitforslot: bool | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        callbacks_propagate: tuple[type[BaseException], ...] = (),
        correlation_id: str | None = None,
        **options: Any,
    ) -> TaskHandle | None:
        """Run ``target(*args, **kwargs)`` in a process.

        Args:
            target: what to call.
            args: its arguments.
            kwargs: its keyword arguments.
            callback: called with the value.
            error_callback: called with an ``ExceptionInfo`` when there is none.
            accept_callback: called as ``(pid, time)`` when the task has begun, always before the
                others; it may call :meth:`terminate_job`.
            timeout_callback: called as ``(soft=..., timeout=...)`` when a limit has passed; for the
                hard one after ``error_callback``, when the process has been killed.
            waitforslot: in the blocking loop, whether to wait until a process is free.
            soft_timeout: seconds; by default the worker's.
            timeout: seconds; by default the worker's.
            callbacks_propagate: exceptions of callbacks that are raised, not logged.
            correlation_id: the task's id.
            **options: what else Celery may pass, without meaning here.

        Returns:
            The task's handle; None when the pool takes no more: the broker delivers it again.
        """
        pool = self._pool
        if pool is None:
            return None
        args = tuple(args)
        defaults = pool._core.options
        handle = TaskHandle(
            self,
            name_of(target, args, correlation_id),
            callback,
            error_callback,
            accept_callback,
            timeout_callback,
            soft_timeout or defaults.soft_timeout,
            timeout or defaults.timeout,
            callbacks_propagate,
            correlation_id,
        )
        self._handles.add(handle)
        try:
            self._submit(pool, handle, target, args, dict(kwargs or {}), waitforslot)
        except PoolBroken as error:
            self._handles.discard(handle)
            self.give_up(error)
            return None
        except BaseException as error:
            self._handles.discard(handle)
            if isinstance(error, ValueError) and pool._core.is_closed:
                return None
            raise
        return handle

    def _submit(
        self,
        pool: Pool,
        handle: TaskHandle,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwds: dict[str, Any],
        wait: bool | None,
    ) -> None:
        core = pool._core
        core.check_open()
        try:
            handle.soft_limit = sensible_soft(handle.soft_limit, handle.limit)
            soft, hard = config.limits(handle.soft_limit, handle.limit)
            options = JobOptions(
                timeout_callback=lambda soft, timeout: self._limit_hit(handle, soft),
                soft_timeout=soft,
                timeout=hard,
                correlation_id=handle.correlation_id,
            )
            config.add_settings(options, core.options.contextvars)
            call = core.snapshot.encode(target, args, kwds)
        except Exception as error:  # noqa: BLE001  (the arguments' own code; the task fails)
            self._post(functools.partial(handle.fail, error))
            return
        watch = Watch(
            handle,
            lambda job: self._post(lambda: handle.settle(job)),
            lambda pid, when: self._post(lambda: handle.accept(pid, when)),
        )
        self.account.submitted += 1
        handle.submitted(core.submit(handle.name, call, options, pool, wait, watch))

    def _limit_hit(self, handle: TaskHandle, soft: bool) -> None:
        if soft:  # of the hard one Celery is told once it is certain that it ended the task
            self._hand_on(handle.soft_limit_hit)

    def _hand_on(self, call: Callable[[], object]) -> None:
        """Have Celery called back in the right thread, from the delivery thread, without locks."""
        if self._mailbox is not None:
            self._mailbox.post(call)
        else:
            self._guarded(call)

    def _post(self, call: Callable[[], object]) -> None:
        """Have Celery called back in the right thread. Any thread, with locks held.

        What the pool tells of by its delivery thread, a soft limit, is not overtaken.
        """
        if self._pool is None:
            return
        core, mailbox = self._pool._core, self._mailbox
        if mailbox is None:
            core.deliver(lambda: self._guarded(call))
        elif core.has_deliveries():
            core.deliver(lambda: mailbox.post(call))
        else:
            mailbox.post(call)

    def _guarded(self, call: Callable[[], object]) -> None:
        """In the blocking loop: what a callback raises to end the worker ends it."""
        try:
            call()
        except BaseException as error:
            logger.critical("Pool callback raised exception: %r", error, exc_info=True)
            worker_state.should_stop = getattr(error, "code", None) or EX_FAILURE

    def note_process(self, handle: TaskHandle, pid: int | None) -> None:
        """A process is known to run this task now, and the one that it had before does not."""
        if handle.pid is not None and self._by_pid.get(handle.pid) is handle:
            del self._by_pid[handle.pid]
        if pid is not None:
            self._by_pid[pid] = handle

    def forget(self, handle: TaskHandle) -> None:
        """A task has ended: another may be handed over."""
        self._handles.discard(handle)
        self.note_process(handle, None)
        self._slots.release()

    # -- ending tasks ----------------------------------------------------------------------------

    def stop_job(self, job: Job, signum: int) -> bool:
        """End a job, running or not; return False when it has ended already."""
        pool = self._pool
        return pool is not None and pool._core.access.orders.terminate(job, signum)

    def terminate_job(self, pid: int, signal: Any = None) -> bool:
        """End the task that the process with this id runs, as far as Celery has been told.

        When that task has ended meanwhile and another runs there, nothing happens: a signal to the
        process would hit a neighbour.

        Args:
            pid: process id, as the task's ``accept_callback`` was told.
            signal: the signal that the task gets, by number or name; SIGTERM by default.

        Returns:
            Whether there was such a task.

        Raises:
            ValueError: no signal.
        """
        number = signal_number(signal)
        handle = self._by_pid.get(pid)
        return handle is not None and handle.terminate(number)

    def flush(self) -> None:
        """Drop the tasks that have not begun, without callbacks; the broker delivers them again."""
        if self._pool is None:
            return
        self._pool.flush()
        if self._mailbox is None:
            return  # the delivery thread puts them away
        for handle in list(self._handles):
            job = handle.job
            if job is not None and job.state is JobState.CANCELLED:
                handle.settle(job)
        self._slots.recount(len(self._handles))

    # -- the end ---------------------------------------------------------------------------------

    def on_close(self) -> None:
        """Take no more tasks."""
        if self._pool is not None:
            self._pool.close()

    def on_stop(self) -> None:
        """Wait until all tasks have ended, and all processes. May be called again, and any time.

        A cold shutdown calls it in a signal handler, having terminated what it knows to run; what
        has not begun, or has begun without Celery's knowing, is left to the broker. Where the
        handler has interrupted this very method, that goes on waiting afterwards. Where it has
        interrupted the pool's own bookkeeping it cannot wait either: the pool is closed, and the
        worker terminates it next.
        """
        pool = self._pool
        if pool is None or self._over:
            return
        pool.close()
        self._leave_event_loop()
        if pool._core.is_interrupted:
            return
        if worker_state.should_terminate not in (None, False):
            self.flush()
            self._end_unnoticed()
        if self._stopping == get_ident():
            return
        self._stopping = get_ident()
        try:
            if self._mailbox is None:
                while not self._is_over(_LONGEST_JOIN):
                    pass
            else:
                drain(self._mailbox, self._hub, self._is_over)
            self._put_away()
        finally:
            self._stopping = 0

    def _end_unnoticed(self) -> None:
        """End what runs, also where Celery, which did not know that it runs, has not done so."""
        for handle in list(self._handles):
            if self._mailbox is None:  # the delivery thread may be calling it back just now
                self._post(handle.end_unnoticed)
            else:
                handle.end_unnoticed()

    def _is_over(self, seconds: float) -> bool:
        """Wait no longer than so many seconds; return whether nothing is left of the pool."""
        if self._mailbox is not None and self._handles:
            return False
        try:
            if self._pool is not None:
                self._pool.join(seconds)
        except TimeoutError:
            return False
        return True

    def on_terminate(self) -> None:
        """End everything at once, within about a second; nobody is called back.

        So nothing is acknowledged: the broker delivers again what was running.
        """
        pool = self._pool
        if pool is None or self._over:
            return
        self.silent = True
        self._leave_event_loop()
        pool.terminate()
        if not pool._core.is_interrupted:
            self._put_away()

    def _put_away(self) -> None:
        self._over = True
        self._handles.clear()
        if self._mailbox is not None:
            if self._hub is not None:
                self._hub.remove_reader(self._mailbox)
            self._mailbox.close()

    def give_up(self, error: BaseException) -> None:
        """The pool cannot go on: have the worker stop, so that somebody notices."""
        if self._state == self.RUN and not self.silent:
            logger.critical("The pool is broken, the worker stops: %s", error, exc_info=error)
            if worker_state.should_stop in (None, False):
                worker_state.should_stop = EX_FAILURE

    # -- what there is to see --------------------------------------------------------------------

    def result_of(self, job: Job) -> ApplyResult[Any] | None:
        """Return the pool's own handle of a job."""
        return None if self._pool is None else self._pool._core.handle_of(job)

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        pool = self._pool
        if pool is None:
            return info
        options = pool._core.options
        info.update(
            {
                "max-concurrency": self.limit,
                "num-processes": self._target,
                "processes": [worker.pid for worker in pool.workers],
                "max-tasks-per-child": options.maxtasksperchild or "N/A",
                "put-guarded-by-semaphore": self.putlocks,
                "timeouts": (options.soft_timeout or 0, options.timeout or 0),
                "writes": self.account.writes(pool),
                "poolwatch": self.account.info(pool),
            }
        )
        return info
