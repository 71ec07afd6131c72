"""Takes the input of an ``imap`` a bounded way ahead of what the consumer has taken.

At most ``buffersize`` items are under way or wait for the consumer, the *window*. When half of it
is free, the input is read on; not for each item, because every wake-up costs more than a short job.

* A plain sequence (see ``SEQUENCES``) never blocks and is nobody's code: the consumer's own thread
  reads it, inside ``next()``.
* Anything else may block, and may wait for what the consumer does with results. A thread of its
  own reads it.

The window is *lifted* where nobody takes results out: ``join()`` of the pool waits for all of the
input, and an iterator that is dropped before anything was taken from it was called for its effects
(both as in multiprocessing). Then the input is read as fast as the workers get on with it.

Reading ends with the input, with its error, when the iterator is collected half-way, or with the
pool. A closed pool counts as not drained before.

In the consumer's thread a signal handler may raise anywhere (Ctrl-C). An item counts as taken from
the moment that it is in ``Feed._unsent``, and what is found there later is put on its way again,
which may be done twice. See ``imap_state`` for what "together" means.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from poolwatch.core import Core
from poolwatch.events import Trouble
from poolwatch.imap_state import IMapState
from poolwatch.job import Job
from poolwatch.mapping import Mapper, Unsendable, items_at_once

SEQUENCES = (list, tuple, range, str, bytes, bytearray)
"""Types that are read in the consumer's thread; not what is derived from them."""

_ITEMS_AHEAD = 128  # per worker: more of short jobs does not make it faster
_CHUNKS_AHEAD = 32  # likewise


def default_buffersize(processes: int, chunksize: int) -> int:
    """Return how many items the workers need to be kept busy with short jobs."""
    return processes * max(_ITEMS_AHEAD, _CHUNKS_AHEAD * chunksize)


class Feed:
    """Submits the items of one input, in order.

    Args:
        core: the pool.
        mapper: makes the jobs.
        state: where outcomes go.
        iterable: the input.
        chunksize: items that travel together.
        buffersize: the window, in items; at least chunksize.
        pool: held weakly, except by the jobs.

    Attributes:
        core: the pool.
        state: where outcomes go.

    Raises:
        TypeError: the input is not iterable.
    """

    holds_open = True  # whoever closes the pool and joins it may be the consumer

    def __init__(
        self,
        core: Core,
        mapper: Mapper,
        state: IMapState,
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int,
        pool: object,
    ) -> None:
        self.core = core
        self.state = state
        self._mapper = mapper
        self._pool = weakref.ref(pool)
        self._source: _Sequence | _Iterator
        if type(iterable) in SEQUENCES:
            self._source = _Sequence(iterable)  # type: ignore[arg-type]
        else:
            self._source = _Iterator(iter(iterable))
        self._size = chunksize
        self._at_once = items_at_once(chunksize)
        self._buffersize = buffersize
        self._enough = max(chunksize, buffersize // 2)  # room that is worth going on for
        self._taken = 0
        self._ended = False
        self._dropped = False  # the iterator is gone, and the rest of the input with it
        self._unsent: list[Job | Unsendable] = []  # the next one last
        self._thread: threading.Thread | None = None
        self._filling = threading.RLock()  # one thread reads at a time
        self._inside = False

    # -- beginning and end -----------------------------------------------------------------------

    def start(self) -> None:
        """Read the first window, or start the thread that does.

        Raises:
            ValueError, PoolBroken: the pool has ended meanwhile.
            RuntimeError: no more threads to be had.
        """
        self.core.add_input(self)
        try:
            if isinstance(self._source, _Sequence):
                self._fill()
            else:
                self._start_thread()
        except BaseException:
            self._end(None)  # nobody gets the iterator
            raise

    def _start_thread(self) -> None:
        name = f"{self.core.options.name}-feeder"
        self._thread = thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except BaseException:
            self._thread = None
            raise

    def _end(self, error: BaseException | None) -> None:
        """The input has ended, or nobody wants more of it."""
        with self.core.dispatcher.lock:
            if not self._ended:
                self.state.end(self._taken, error)
                self._close()

    def abort(self, error: BaseException) -> None:
        """The pool has ended. The dispatcher's lock is held.

        Args:
            error: what the consumer gets after all that has come.
        """
        if not self._ended:
            self.state.cut(error)
            self._close()

    def _close(self) -> None:
        self.state.refill_at = math.inf
        self.core.remove_input(self)
        self._ended = True  # now, and not when Ctrl-C came in between: then once more
        self.state.bell.ring()

    def lift(self) -> None:
        """Do not wait for the consumer any more, but for the workers only.

        Raises:
            RuntimeError: no more threads to be had.
        """
        with self.core.dispatcher.lock:
            if self._ended or self._dropped or self.state.lifted:
                return
            self.state.lifted = True
        if self._thread is None:
            self._start_thread()
        self.state.bell.ring()

    def stop(self, error: BaseException) -> None:
        """Read no more; what has been read runs.

        Args:
            error: what the consumer gets after the results of that.
        """
        self._end(error)

    def drop(self) -> None:
        """Nobody wants more of the input, whatever has been taken out. Takes no lock."""
        self._dropped = True
        self.abandon()

    def abandon(self) -> None:
        """The iterator has been collected. Takes no lock, as that may happen anywhere."""
        self.state.forget()
        if not self._ended and not self.core.foreign:
            self._dropped = self._dropped or self.state.delivered > 0
            self.state.bell.ring()
            self.core.call_soon(self._abandoned)

    def _abandoned(self) -> None:
        if self._dropped:
            self._end(None)
            return
        try:
            self.lift()
        except RuntimeError as error:
            bus = self.core.supervisor.bus
            bus.emit(Trouble(bus.pool, f"the input of an imap is not read to its end: {error}"))
            self._end(None)

    # -- reading ---------------------------------------------------------------------------------

    def go_on(self) -> None:
        """There is room enough: called by a consumer."""
        if self.core.foreign or self._ended:
            self.state.refill_at = math.inf
        elif self._thread is not None:
            self.state.bell.ring()
        else:
            self._fill()

    def _room(self) -> int:
        return self._buffersize - self._taken + self.state.progress

    def _next_count(self) -> int:
        """Return how many items to read next; 0 when there is no room."""
        room = self._room()
        return min(room, self._at_once) if room >= self._size else 0

    def _set_refill(self) -> None:
        self.state.refill_at = self._taken - self._buffersize + self._enough

    def _fill(self) -> None:
        """Read a sequence as far as there is room, in the consumer's thread."""
        with self._filling:
            if self._thread is not None or (self._inside and self._is_interrupted()):
                return  # a thread reads, or a signal handler has interrupted this very function
            self._inside = True
            try:
                self._fill_up()
            finally:
                self._inside = False

    def _is_interrupted(self) -> bool:
        """Return whether this thread is in :meth:`_fill_up` really.

        The flag says so as well when Ctrl-C came twice within microseconds: before Python 3.11 the
        second may strike where a ``finally`` begins, which then does nothing.
        """
        frame = sys._getframe(1).f_back
        while frame is not None:
            if frame.f_code is Feed._fill_up.__code__ and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False

    def _fill_up(self) -> None:
        self._complete()
        while not self._ended and (count := self._next_count()) and self._feed_some(count):
            pass
        self.core.dispatcher.top_up()
        if not self._ended:
            self._set_refill()

    def _run(self) -> None:
        """Read in a thread of its own, to the end."""
        try:
            with self._filling:
                self._complete()  # whoever was reading before has left, perhaps interrupted
            while self._wait_for_room() and self._feed_some(self._size):
                pass
        except BaseException as error:  # noqa: BLE001  (the consumer gets it)
            self._end(error)
        finally:
            self._source = _Sequence(())  # a generator ends now

    def _wait_for_room(self) -> bool:
        """Return True when an item may be read, False when no more are wanted."""
        if self._room() >= self._size:
            return not (self._ended or self._dropped)
        self.core.dispatcher.top_up()
        while not (self._ended or self._dropped):
            self._set_refill()
            if self.state.progress >= self.state.refill_at:
                self.state.refill_at = math.inf
                return True
            self.state.bell.wait()
        return False

    def _feed_some(self, count: int) -> bool:
        """Read and submit so many items; False when there are no more."""
        items, at_end, error = self._source.read(self._taken, count)
        pool = self._pool()
        if pool is None:
            at_end = True  # it has been collected: there are only workers that leave
        elif items:
            jobs = self._mapper.jobs(self.state, self._taken, items, pool)
            jobs.reverse()
            self._submit(jobs, len(items))
        if at_end:
            self._end(error)
        return not self._ended

    def _submit(self, jobs: list[Job | Unsendable], count: int) -> None:
        """Count items as taken, and submit them; not when the pool has ended meanwhile."""
        with self.core.dispatcher.lock:
            if self._ended or self._dropped:
                return
            self.state.expect(self._taken, count, len(jobs) < count)
            self._unsent = jobs  # these two together
            self._taken += count
            try:
                self._send_all()
            except BaseException:
                self._complete()
                raise

    def _send_all(self) -> None:
        jobs, submit = self._unsent, self.core.dispatcher.submit
        while jobs:
            job = jobs[-1]
            if isinstance(job, Job):
                submit(job)
            else:
                self.state.account_item(*job)
            del jobs[-1]

    def _complete(self) -> None:
        """Put the items on their way that an interruption has left, if any."""
        if self._unsent:
            first = self._unsent[-1]
            if isinstance(first, Job):  # perhaps it is on its way already
                self.core.call_soon(lambda: self.core.supervisor.repair(first))
                del self._unsent[-1]
            self._send_all()


class _Sequence:
    """An input that is there already."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def read(self, start: int, count: int) -> tuple[list[Any], bool, None]:
        """Return the next items, and whether that is all; may be done again."""
        return list(self._items[start : start + count]), start + count >= len(self._items), None


class _Iterator:
    """An input that is the user's code."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def read(self, start: int, count: int) -> tuple[list[Any], bool, BaseException | None]:
        """Return the next items, whether that is all, and the error that ended them."""
        items: list[Any] = []
        try:
            items.extend(itertools.islice(self._iterator, count))
        except BaseException as error:  # noqa: BLE001  (the consumer gets it)
            return items, True, error
        return items, len(items) < count, None
