"""How the items of a map become jobs: each a job of its own, or many that travel as one chunk."""

from __future__ import annotations

from collections.abc import Callable
from pickle import PicklingError
from typing import Any, NamedTuple

from poolwatch import config
from poolwatch.chunks import Accounts, Chunk, Item
from poolwatch.core import Core
from poolwatch.hints import note_call
from poolwatch.job import Job
from poolwatch.map_results import MapResult
from poolwatch.transport import frames

_CHUNKS_PER_WORKER = 4  # as multiprocessing.Pool divides a map
_AT_ONCE = 64  # items that travel alone are pickled and submitted so many at a time


def default_chunksize(length: int, processes: int) -> int:
    """Return how many items of a map travel together: a quarter of a worker's share."""
    return max(1, -(-length // (processes * _CHUNKS_PER_WORKER)))


def items_at_once(size: int) -> int:
    """Return for how many items :meth:`Mapper.jobs` is best called.

    Args:
        size: how many items travel together.
    """
    return size if size > 1 else _AT_ONCE


class Unsendable(NamedTuple):
    """An item that does not pickle; it stands where its job would.

    Attributes:
        place: index of the item.
        error: what pickling raised.
    """

    place: int
    error: BaseException


class Mapper:
    """Makes the jobs of one map.

    Args:
        core: the pool.
        func: called with each item.
        star: an item is an iterable of arguments, as for ``starmap``.
        size: how many items travel together.
        prompt: somebody waits for the first outcomes of a chunk while its last items run.
    """

    def __init__(
        self, core: Core, func: Callable[..., Any], star: bool, size: int, prompt: bool = False
    ) -> None:
        self._core = core
        self._func = func
        self._star = star
        self._size = size
        self._name = config.name_of(func)
        self._options = options = core.plain_options()
        self._flags = frames.PROMPT if prompt else 0
        if options.soft_timeout is not None or options.timeout is not None:
            self._flags |= frames.LIMITED
        self._unsendable: BaseException | None = None  # why no item can be sent
        try:
            self._options = core.with_surroundings(options)
        except PicklingError as error:
            self._unsendable = error

    def submit(self, result: MapResult[Any], items: list[Any], pool: object) -> None:
        """Put all items on their way.

        Args:
            result: where the outcomes go.
            items: the items.
            pool: must not be collected while any is unfinished.

        Raises:
            ValueError, PoolBroken: the pool has ended meanwhile.
        """
        core, step = self._core, items_at_once(self._size)
        for start in range(0, len(items), step):
            for job in self.jobs(result, start, items[start : start + step], pool):
                if isinstance(job, Job):
                    core.submit_job(job)
                else:
                    with core.dispatcher.lock:
                        result.account_item(*job)
        core.dispatcher.top_up()

    def jobs(
        self, accounts: Accounts, start: int, items: list[Any], pool: object
    ) -> list[Job | Unsendable]:
        """Pickle neighbouring items.

        Items that travel together become one job, unless they do not pickle: then each becomes one,
        so that only the guilty item pays.

        Args:
            accounts: where the outcomes go.
            start: index of the first item.
            items: as many as travel together, or fewer; any number of items that travel alone.
            pool: must not be collected while a job is unfinished.
        """
        if self._unsendable is not None:
            error = self._unsendable
            return [Unsendable(index, error) for index in range(start, start + len(items))]
        if self._size > 1 and len(items) > 1:
            try:
                return [self._chunk(accounts, start, items, pool)]
            except (Exception, SystemExit):  # noqa: BLE001  (a user's __reduce__)
                pass  # raised again for the item that is guilty
        core, encode, star = self._core, self._core.snapshot.encode, self._star
        func, name, options = self._func, self._name, self._options
        jobs: list[Job | Unsendable] = []
        for index, item in enumerate(items, start):
            try:
                call = encode(func, tuple(item) if star else (item,), {})
            except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's __reduce__)
                note_call(error, name, item if star else (item,), {}, f", item {index} of its map")
                jobs.append(Unsendable(index, error))
            else:
                jobs.append(core.part_job(name, call, Item(accounts, index), options, pool))
        return jobs

    def _chunk(self, accounts: Accounts, start: int, items: list[Any], pool: object) -> Job:
        chunk = Chunk(accounts, start, self._func, items, self._star, self._flags)
        call = self._core.snapshot.encode_whole(self._func, chunk.call())
        return self._core.part_job(self._name, call, chunk, self._options, pool)
