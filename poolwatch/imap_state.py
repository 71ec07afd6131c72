"""What has come back for one ``imap``, and how it is handed out: each item once, whatever happens.

Outcomes are put here by whoever takes them in (the supervisor, or a caller that helps), with the
dispatcher's lock held. Consumers take them out under a lock of their own, and sleep only when there
is nothing: no lock is shared per item, and nobody is woken who is not asleep.

Two things may be interrupted by a signal handler that raises (Ctrl-C):

* Taking an outcome in. It is done again then, so an outcome may be put here twice.
* Handing it out. An item that has been taken out stays in ``handed`` under the consumer's thread
  until the statement before ``next()`` returns. If that is not reached, the thread's next call
  finds it there.

Python runs signal handlers after calls, at the beginning of a function and at the end of a loop's
round, not between two plain statements. Where statements belong together here ("together"), there
is no call between them, and for the same reason no other thread comes in between. From Python 3.12
on, the end of a round may be outside of the ``with`` that the loop is in, which would not let go of
its lock then: so loops under a lock have functions of their own.
"""

from __future__ import annotations

import math
import threading
from _thread import allocate_lock
from collections import deque
from typing import Any, NamedTuple

from poolwatch.outcome import Outcome
from poolwatch.pieces import Piece, new_piece
from poolwatch.sleep import acquire


class Loaded(NamedTuple):
    """An item that is unpickled, or an error.

    Attributes:
        succeeded: it has a value.
        value: the value or the exception.
    """

    succeeded: bool
    value: Any

    def result(self) -> tuple[bool, Any]:
        """Return ``(True, value)`` or ``(False, exception)``."""
        return self


class InputError(Loaded):
    """What the input has raised, or the pool's end: not the outcome of an item."""

    __slots__ = ()


class Bell:
    """Wakes one thread. Ringing takes no lock: it may be done anywhere, also in ``__del__``."""

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Let the thread go on that waits, or that will wait next."""
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:
                pass  # another thread has just rung

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is rung; in vain wake-ups are possible."""
        acquire(self._lock, timeout)


class IMapState:
    """The outcomes of one ``imap`` that nobody has taken yet; an ``Accounts`` of its jobs.

    Attributes:
        values: items of a chunk that are unpickled and have succeeded, in reverse. Whoever finds
            ``handed`` empty may take the last one, in statements that belong together.
        handed: what a thread is about to return, by thread.
        delivered: how many items have been taken out.
        accounted: how many have come in; after an interruption it may count one twice.
        lifted: the input does not wait for the consumer, but for the workers only.
        unwanted: nobody will take anything out any more.
        refill_at: how much of :attr:`progress` lets the input go on.
        bell: wakes the thread that reads the input.
        over: everything has been taken out.
        sleepers: rung when something may be there, then forgotten.
    """

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.handed: dict[int, Piece | Loaded] = {}
        self.delivered = 0
        self.accounted = 0
        self.lifted = False
        self.unwanted = False
        self.refill_at = math.inf
        self.bell = Bell()
        self.over = False
        # The rest of what was unpickled together: values as above, and items that have failed.
        self._loaded: deque[list[Any] | Loaded] = deque()
        self._length: int | None = None  # known when the input has ended
        self._cut = False
        self._error: BaseException | None = None  # raised after all items
        self._taking = threading.RLock()  # unpickling may come back here
        self.sleepers: dict[Bell, None] = {}

    @property
    def progress(self) -> int:
        """How many items do not count for the window any more."""
        return self.accounted if self.lifted else self.delivered

    @property
    def length(self) -> int | None:
        """How many items the input had; None before it has ended."""
        return self._length

    # -- the pool's side: may be done again, see above ------------------------------------------

    def expect(self, start: int, count: int, together: bool) -> None:
        """Neighbouring items are about to be submitted, as one job or each as its own."""

    def account(self, start: int, count: int, outcome: Outcome | BaseException) -> None:
        """Take the outcomes of neighbouring items that travelled together."""
        if count:
            self._put(Piece(start, count, outcome, False))
            self._came(count)

    def account_item(self, index: int, outcome: Outcome | BaseException) -> None:
        """Take the outcome of an item that travelled alone."""
        self._put(new_piece(Piece, (index, 1, outcome, True)))
        self._came(1)

    def _put(self, piece: Piece) -> None:
        raise NotImplementedError

    def _came(self, count: int) -> None:
        self.accounted += count
        if self.sleepers and self.has_next():
            self._wake()
        if self.lifted and self.accounted >= self.refill_at:
            self.bell.ring()

    def recount(self) -> None:
        """Nothing here is counted that matters; see ``Accounts``."""

    def abort(self, error: BaseException) -> None:
        """The pool has ended; every item gets its own error, and :meth:`cut` tells the rest."""

    def silence(self) -> None:
        """Nobody is called back; see ``Accounts``."""

    def cut(self, error: BaseException | None) -> None:
        """The pool has ended before the input: nothing more comes.

        Args:
            error: raised when all that has come has been taken out; None to end without one.
        """
        self._error = error
        self._cut = True
        self._wake()

    def end(self, length: int, error: BaseException | None) -> None:
        """The input has ended.

        Args:
            length: how many items it had.
            error: what it raised, if anything; raised after all items.
        """
        self._error = error
        self._length = length
        self._wake()

    def forget(self) -> None:
        """Nobody will take anything out any more. Takes no lock: called by ``__del__``."""
        self.unwanted = True
        self.values = []
        self._loaded = deque()

    # -- the consumer's side ---------------------------------------------------------------------

    def take(self, thread: int) -> bool:
        """Put the next item into ``handed`` for a thread; False when there is none now."""
        raise NotImplementedError

    def has_next(self) -> bool:
        """Return True when a call of :meth:`take` may be worth it."""
        return bool(self.values or self._loaded) or self._is_at_end()

    def _is_at_end(self) -> bool:
        return self._cut or (self._length is not None and self.delivered >= self._length)

    def _take_loaded(self, thread: int) -> bool:
        """Hand out an item that is unpickled, if there is any."""
        while self.values or self._loaded:
            if self.values:
                value = self.values[-1]
                item = Loaded(True, value)
                if self.values and self.values[-1] is value:  # no other thread has taken it
                    self.handed[thread] = item  # these three together
                    self.delivered += 1
                    del self.values[-1]
                    return True
                continue
            first = self._loaded[0]
            if isinstance(first, Loaded):
                self.handed[thread] = first  # these three together
                self.delivered += 1
                del self._loaded[0]
                return True
            self.values = first  # these two together
            del self._loaded[0]
        return False

    def _take_error(self, thread: int) -> bool:
        """Nothing has come: hand out the input's own error at the end, once."""
        if not self._is_at_end():
            return False
        if self._error is None:
            self.over = True
            return False
        self.handed[thread] = InputError(False, self._error)
        self._error = None
        return True

    def wait(self, timeout: float | None) -> None:
        """Sleep until something may be there, no longer than so many seconds."""
        bell = Bell()
        self.sleepers[bell] = None
        try:
            if not self.has_next():
                bell.wait(timeout)
        finally:
            self.sleepers.pop(bell, None)

    def _wake(self) -> None:
        for bell in list(self.sleepers):
            bell.ring()
            self.sleepers.pop(bell, None)


def _load(piece: Piece) -> deque[list[Any] | Loaded]:
    values, failures = piece.load()
    loaded: deque[list[Any] | Loaded] = deque()
    start = 0
    for place in sorted(failures):
        if place > start:
            loaded.append(values[start:place][::-1])
        loaded.append(Loaded(False, failures[place]))
        start = place + 1
    if start < len(values):
        loaded.append(values[start:][::-1])
    return loaded


class InOrder(IMapState):
    """Hands items out in input order."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: dict[int, Piece] = {}  # by start
        self._next = 0  # where the piece starts that is taken out next

    def _put(self, piece: Piece) -> None:
        # What starts before that has come twice.
        if piece.start >= self._next and not self.unwanted:
            self._pieces[piece.start] = piece

    def has_next(self) -> bool:
        """See :meth:`IMapState.has_next`."""
        return self._next in self._pieces or super().has_next()

    def take(self, thread: int) -> bool:
        """See :meth:`IMapState.take`."""
        with self._taking:
            return self._take_next(thread)

    def _take_next(self, thread: int) -> bool:
        while not self._take_loaded(thread):
            start = self._next
            piece = self._pieces.get(start)
            if piece is None:
                return self._take_error(thread)
            if piece.alone:
                self.handed[thread] = piece  # these four together
                self.delivered += 1
                self._next = start + 1
                del self._pieces[start]
                return True
            loaded = _load(piece)
            self._loaded = loaded  # these three together
            self._next = start + piece.length
            del self._pieces[start]
        return True

    def forget(self) -> None:
        """See :meth:`IMapState.forget`."""
        super().forget()
        self._pieces = {}


class AsCompleted(IMapState):
    """Hands items out as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: deque[Piece] = deque()
        # What has not been taken out, to tell what has come twice: index of an item -> None, or
        # start of neighbouring items -> their end.
        self._outstanding: dict[int, int | None] = {}

    def expect(self, start: int, count: int, together: bool) -> None:
        """See :meth:`IMapState.expect`."""
        if self.unwanted:
            return
        if together:
            self._outstanding[start] = start + count
        else:
            self._outstanding.update(dict.fromkeys(range(start, start + count)))

    def _put(self, piece: Piece) -> None:
        if not self.unwanted:
            self._pieces.append(piece)

    def has_next(self) -> bool:
        """See :meth:`IMapState.has_next`."""
        return bool(self._pieces) or super().has_next()

    def take(self, thread: int) -> bool:
        """See :meth:`IMapState.take`."""
        with self._taking:
            return self._take_next(thread)

    def _take_next(self, thread: int) -> bool:
        while not self._take_loaded(thread):
            if not self._pieces:
                return self._take_error(thread)
            piece = self._pieces[0]
            if not piece.alone:
                self._load_first(piece)
            elif piece.start in self._outstanding:
                self.handed[thread] = piece  # these four together
                self.delivered += 1
                del self._outstanding[piece.start]
                del self._pieces[0]
                return True
            else:
                del self._pieces[0]
        return True

    def _load_first(self, piece: Piece) -> None:
        """Unpickle items that travelled together, unless they have come twice."""
        outstanding, start, stop = self._outstanding, piece.start, piece.start + piece.length
        home = self._home_of(start)
        end = outstanding.get(home)
        loaded = _load(piece) if end is not None and start < end else deque()
        self._loaded = loaded  # these together
        del self._pieces[0]
        if end is None or start >= end:
            return
        if home == start:
            del outstanding[start]
        else:
            outstanding[home] = start
        if stop < end:
            outstanding[stop] = end

    def _home_of(self, start: int) -> int:
        """Return where the neighbouring items begin to which an outstanding one belongs."""
        if start in self._outstanding:
            return start
        # Only those behind an item that has killed its worker come before the ones before them.
        return max((other for other in list(self._outstanding) if other < start), default=start)

    def forget(self) -> None:
        """See :meth:`IMapState.forget`."""
        super().forget()
        self._pieces = deque()
        self._outstanding = {}
