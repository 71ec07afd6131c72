"""The pools that are measured, each behind the same few calls, with settings that suit it.

An adapter must not cost anything worth measuring: where a library's own method has the right shape
it is used as it is, elsewhere there is one lambda. Libraries are imported when their pool is made,
so that each process loads only the one that it measures.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any

Job = Callable[..., Any]
Items = Sequence[Any]

_CHUNKS_PER_WORKER = 4  # as multiprocessing.Pool divides a map, for those that do not by themselves


class NotOffered(Exception):
    """A peer has no such thing; the text says what is missing."""


class Hangs(Exception):
    """Nothing has come in all the time that was given; the text says how long that was."""


@dataclass(frozen=True, slots=True)
class OpenPool:
    """A pool of whatever library.

    Attributes:
        submit: as ``submit(job, args)``; returns a handle.
        value: as ``value(handle, seconds)``; returns the result, raises the job's exception, or
            raises after so many seconds.
        wait: as ``wait(handle, seconds)``; returns whether the job has ended by then.
        map: as ``map(job, items, chunksize)`` with None for the default; returns a list.
        imap_unordered: as ``imap_unordered(job, items)``, items travelling one by one.
        close: end the pool in peace, and wait for its end.
    """

    submit: Callable[[Job, tuple[Any, ...]], Any]
    value: Callable[[Any, float], Any]
    wait: Callable[[Any, float], bool]
    map: Callable[[Job, Items, int | None], list[Any]]
    imap_unordered: Callable[[Job, Items], Iterable[Any]]
    close: Callable[[], None]

    def values(self, handles: Iterable[Any], seconds: float = 300.0) -> list[Any]:
        """Return the results of many jobs."""
        value = self.value
        return [value(handle, seconds) for handle in handles]


@dataclass(frozen=True, slots=True)
class Peer:
    """A library.

    Attributes:
        name: for the table and the command line.
        open: makes a pool with so many workers.
        settings: how it is used, for the documentation.
        maps_quickly: whether an item that travels alone costs less than a future does.
        shareable: whether several threads may submit to a pool.
        is_quick: whether a quick run has it.
    """

    name: str
    open: Callable[[int], OpenPool]
    settings: str
    maps_quickly: bool = False
    shareable: bool = True
    is_quick: bool = True

    @property
    def module(self) -> str:
        """The top-level module that must be installed."""
        return self.name.partition(".")[0]

    @property
    def is_installed(self) -> bool:
        """Whether it can be measured."""
        return importlib.util.find_spec(self.module) is not None


def share(count: int, workers: int) -> int:
    """Return the items of a chunk when each worker gets four."""
    return max(1, -(-count // (workers * _CHUNKS_PER_WORKER)))


def _wait_for_result(handle: Any, seconds: float) -> bool:
    handle.wait(seconds)
    return bool(handle.ready())


def _wait_for_future(handle: futures.Future[Any], seconds: float) -> bool:
    return bool(futures.wait([handle], seconds).done)


# -- pools of multiprocessing's kind -----------------------------------------------------------


def _pool(pool: Any) -> OpenPool:
    def close() -> None:
        pool.close()
        pool.join()

    def imap_unordered(job: Job, items: Items) -> Iterator[Any]:
        if not hasattr(pool, "imap_unordered"):
            raise NotOffered("has no imap_unordered")
        iterator: Iterator[Any] = pool.imap_unordered(job, items, chunksize=1)
        return iterator

    return OpenPool(
        submit=pool.apply_async,
        value=lambda handle, seconds: handle.get(seconds),
        wait=_wait_for_result,
        map=lambda job, items, chunksize: pool.map(job, items, chunksize),
        imap_unordered=imap_unordered,
        close=close,
    )


def open_poolwatch(workers: int) -> OpenPool:
    """Make a pool with so many workers; so do the next functions."""
    import poolwatch

    return _pool(poolwatch.Pool(workers))


def open_multiprocessing(workers: int) -> OpenPool:
    """The standard library's older pool."""
    return _pool(multiprocessing.get_context("fork").Pool(workers))


def open_billiard(workers: int) -> OpenPool:
    """Celery's pool."""
    from billiard.pool import Pool

    return _pool(Pool(workers))


def open_mpire(workers: int) -> OpenPool:
    """MPIRE's pool; it starts its workers with the first job."""
    from mpire.pool import WorkerPool

    pool = WorkerPool(n_jobs=workers, start_method="fork", keep_alive=True)
    return OpenPool(
        submit=pool.apply_async,
        value=lambda handle, seconds: handle.get(seconds),
        wait=_wait_for_result,
        map=lambda job, items, chunksize: pool.map(
            job, items, chunk_size=chunksize, max_tasks_active=len(items)
        ),
        imap_unordered=lambda job, items: pool.imap_unordered(
            job, items, chunk_size=1, max_tasks_active=len(items)
        ),
        close=pool.stop_and_join,
    )


# -- executors ---------------------------------------------------------------------------------


def _no_imap_unordered(job: Job, items: Items) -> Iterator[Any]:
    raise NotOffered("has no imap_unordered")


def _executor(executor: Any, workers: int) -> OpenPool:
    def map_chunks(job: Job, items: Items, chunksize: int | None) -> list[Any]:
        size = chunksize or share(len(items), workers)
        return list(executor.map(job, items, chunksize=size))

    return OpenPool(
        submit=lambda job, args: executor.submit(job, *args),
        value=lambda handle, seconds: handle.result(seconds),
        wait=_wait_for_future,
        map=map_chunks,
        imap_unordered=_no_imap_unordered,
        close=lambda: executor.shutdown(wait=True),
    )


def open_futures(workers: int) -> OpenPool:
    """The standard library's newer pool."""
    context = multiprocessing.get_context("fork")
    return _executor(futures.ProcessPoolExecutor(workers, mp_context=context), workers)


def open_loky(workers: int) -> OpenPool:
    """The executor that loky keeps."""
    from loky import get_reusable_executor

    return _executor(get_reusable_executor(max_workers=workers), workers)


def open_deadpool(workers: int) -> OpenPool:
    """An executor with a thread for each running job."""
    from deadpool import Deadpool

    executor = Deadpool(max_workers=workers, max_backlog=0)

    def map_single(job: Job, items: Items, chunksize: int | None) -> list[Any]:
        if chunksize != 1:
            raise NotOffered("its map ignores chunksize")
        return list(executor.map(job, items))

    return OpenPool(
        submit=lambda job, args: executor.submit(job, *args),
        value=lambda handle, seconds: handle.result(seconds),
        wait=_wait_for_future,
        map=map_single,
        imap_unordered=_no_imap_unordered,
        close=lambda: executor.shutdown(wait=True),
    )


def open_pebble(workers: int) -> OpenPool:
    """Pebble's pool; it starts its workers with the first job."""
    from pebble import ProcessPool

    pool = ProcessPool(max_workers=workers, context=multiprocessing.get_context("fork"))

    def map_chunks(job: Job, items: Items, chunksize: int | None) -> list[Any]:
        size = chunksize or share(len(items), workers)
        return list(pool.map(job, items, chunksize=size).result())

    def close() -> None:
        pool.close()
        pool.join()

    return OpenPool(
        submit=pool.schedule,
        value=lambda handle, seconds: handle.result(seconds),
        wait=_wait_for_future,
        map=map_chunks,
        imap_unordered=_no_imap_unordered,
        close=close,
    )


# -- all of them -------------------------------------------------------------------------------

OWN = "poolwatch"
MULTIPROCESSING = "multiprocessing.Pool"
BILLIARD = "billiard.Pool"

PEERS = (
    Peer(OWN, open_poolwatch, "`Pool(n)`, all defaults", maps_quickly=True),
    Peer(MULTIPROCESSING, open_multiprocessing, '`get_context("fork").Pool(n)`', maps_quickly=True),
    Peer(
        "concurrent.futures.ProcessPoolExecutor",
        open_futures,
        '`ProcessPoolExecutor(n, mp_context=get_context("fork"))`',
    ),
    Peer(BILLIARD, open_billiard, "`Pool(n)`, with its threads, as by default", maps_quickly=True),
    Peer(
        "pebble.ProcessPool",
        open_pebble,
        '`ProcessPool(max_workers=n, context=get_context("fork"))`, `schedule`',
    ),
    Peer("loky", open_loky, "`get_reusable_executor(max_workers=n)`", is_quick=False),
    Peer(
        "mpire.WorkerPool",
        open_mpire,
        '`WorkerPool(n_jobs=n, start_method="fork", keep_alive=True)`; maps with `chunk_size` and '
        "with `max_tasks_active` as large as the input, else it stops to wait",
        shareable=False,  # a job is two messages, and those of two threads may interleave
        is_quick=False,
    ),
    Peer(
        "deadpool.Deadpool",
        open_deadpool,
        "`Deadpool(max_workers=n, max_backlog=0)`: a backlog without a bound, else `submit` waits; "
        "its default start method, forkserver",
        is_quick=False,
    ),
)


def peer_named(name: str) -> Peer:
    """Return the peer of that name.

    Raises:
        KeyError: there is none.
    """
    return {peer.name: peer for peer in PEERS}[name]
