"""Two pools behind one small face: poolwatch's, and the standard library's for comparison."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import Pool as MultiprocessingPool
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Protocol

from poolwatch import ApplyResult, Pool, TimeoutError, WorkerInfo
from poolwatch.cli.demo.options import DemoOptions
from poolwatch.cli.demo.pages import PageOrder, prepare_worker, read_page
from poolwatch.cli.demo.records import Ended, Events, WorkerRow, WorkerStarted

_STOP_SECONDS = 10.0
_STANDARD_STOP_SECONDS = 3.0


class CrawlPool(Protocol):
    """What the crawl needs of a pool. Ends are put into the queue given when it is made."""

    @property
    def processes(self) -> int:
        """Number of workers asked for."""

    @property
    def ends_every_job(self) -> bool:
        """Whether stopping it ends the jobs under way, so that it is right to wait for them."""

    def submit(self, order: PageOrder) -> None:
        """Have a worker read the page."""

    def workers(self) -> list[WorkerRow]:
        """Return the workers that live now."""

    def stop(self) -> None:
        """End the pool and its workers, within seconds, whatever they are doing; twice is once."""

    def __enter__(self) -> CrawlPool:
        """Return the pool."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""


def make_pool(options: DemoOptions, events: Events) -> CrawlPool:
    """Return the pool that the options ask for; it reports to ``events``."""
    kind: Callable[[DemoOptions, Events], CrawlPool]
    kind = StandardPool if options.pool == "multiprocessing" else PoolwatchPool
    return kind(options, events)


class _Reporting:
    """Puts what happens to a page's job into the queue; common to both pools."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def _succeeded(self, path: str, result: object) -> None:
        self._events.put(Ended(path, result, None))

    def _failed(self, path: str, error: BaseException) -> None:
        self._events.put(Ended(path, None, error))


class PoolwatchPool(_Reporting):
    """The crawl on ``poolwatch.Pool``."""

    ends_every_job = True

    def __init__(self, options: DemoOptions, events: Events) -> None:
        super().__init__(events)
        self._timeout = options.timeout
        self._jobs: dict[int, str] = {}
        self._pool = Pool(
            options.workers,
            prepare_worker,
            (False,),
            on_process_up=self._worker_started,
            name="poolwatch-demo",
        )

    @property
    def processes(self) -> int:
        return self._pool.processes

    def submit(self, order: PageOrder) -> None:
        result: ApplyResult[object] = self._pool.apply_async(
            read_page,
            (order,),
            callback=partial(self._succeeded, order.path),
            error_callback=partial(self._failed, order.path),
            timeout=self._timeout,
        )
        self._jobs[result.job_id] = order.path

    def workers(self) -> list[WorkerRow]:
        return [self._row(info, info.pid) for info in self._pool.workers if info.pid is not None]

    def stop(self) -> None:
        self._pool.terminate()
        try:
            self._pool.join(_STOP_SECONDS)
        except TimeoutError as error:
            # The account must still be printed; it names the processes that were left behind.
            print(f"the pool did not end: {error}", file=sys.stderr)

    def __enter__(self) -> PoolwatchPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _row(self, info: WorkerInfo, pid: int) -> WorkerRow:
        page = None if info.job_id is None else self._jobs.get(info.job_id)
        return WorkerRow(pid, info.phase, page, info.job_seconds, info.age)

    def _worker_started(self, worker: object) -> None:
        self._events.put(WorkerStarted())


class StandardPool(_Reporting):
    """The crawl on ``multiprocessing.Pool``, which knows no time limits and reports no deaths."""

    ends_every_job = False

    def __init__(self, options: DemoOptions, events: Events) -> None:
        super().__init__(events)
        self.processes = options.workers
        self._others = set(multiprocessing.active_children())
        self._pool: MultiprocessingPool = multiprocessing.Pool(
            options.workers, prepare_worker, (True,)
        )

    def submit(self, order: PageOrder) -> None:
        self._pool.apply_async(
            read_page,
            (order,),
            callback=partial(self._succeeded, order.path),
            error_callback=partial(self._failed, order.path),
        )

    def workers(self) -> list[WorkerRow]:
        return [WorkerRow(child.pid) for child in self._children() if child.pid is not None]

    def stop(self) -> None:
        """Terminate the pool; where that hangs, as it may after a death, kill its workers."""
        thread = threading.Thread(target=self._pool.terminate, daemon=True)
        thread.start()
        thread.join(_STANDARD_STOP_SECONDS)
        for child in self._children():
            child.kill()
            child.join(_STANDARD_STOP_SECONDS)

    def __enter__(self) -> StandardPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _children(self) -> list[BaseProcess]:
        children = sorted(set(multiprocessing.active_children()) - self._others, key=_pid)
        return [child for child in children if child.is_alive()]


def _pid(process: BaseProcess) -> int:
    return process.pid or 0
