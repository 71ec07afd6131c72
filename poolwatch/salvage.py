"""What can be unpickled of outcomes that travelled together, when one of them cannot.

They are one pickle, so that one object that raises while it is unpickled (its class is not to be
found here, its ``__setstate__`` fails) keeps all of them from being seen. Then, and only then, the
pickle is read once more, by the unpickler that is written in Python: what raises is replaced, the
others are built, and each failure is charged to the item that it belongs to.

Which that is cannot be seen at the moment of the failure: on the unpickler's stack a finished item
looks like a part of the next. It can when the items are put into their list. Item ``j`` is what has
been done since the stack was last no higher than ``j`` until it was last no higher than ``j + 1``.
"""

from __future__ import annotations

import io
import pickle
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


def load(
    data: bytes | memoryview, buffers: Iterable[memoryview]
) -> tuple[Any, dict[int, BaseException]]:
    """Unpickle a pair of which the first is a list; the items that fail are None in it.

    Args:
        data: the pickle.
        buffers: its buffers out of band.

    Returns:
        The pair, and what the items that failed have raised, by index.

    Raises:
        Exception: the pickle cannot be read at all.
    """
    unpickler = _Salvager(io.BytesIO(data), buffers=buffers)
    pair = unpickler.load()
    if unpickler.errors:
        raise unpickler.errors[0].error  # of none of the items
    for index in unpickler.failed:
        pair[0][index] = None
    return pair, unpickler.failed


_Unpickler: Any = pickle._Unpickler  # the one that is written in Python


class _Broken:
    """Stands for an object that could not be built; takes what would be put into that.

    No object of the user's is built out of one: that is broken, too.
    """

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    append = extend = add = update = __setstate__


def _broken_in(value: object) -> _Broken | None:
    """Return one that a value is, or that its containers hold."""
    seen: set[int] = set()
    ahead = [value]
    while ahead:
        found = ahead.pop()
        if isinstance(found, _Broken):
            return found
        if isinstance(found, _CONTAINERS) and id(found) not in seen:
            seen.add(id(found))
            if isinstance(found, dict):
                ahead.extend(dict.keys(found))
                ahead.extend(dict.values(found))
            else:
                kind: Any = next(kind for kind in _ITERATED if isinstance(found, kind))
                ahead.extend(kind.__iter__(found))
    return None


class _Failure(NamedTuple):
    """Something raised, at that time."""

    time: int
    error: BaseException


class _Salvager(_Unpickler):  # type: ignore[misc]
    """Unpickles a pair of which the first is a list.

    Attributes:
        failed: what each item that failed has raised, by index.
        errors: what has been raised and not been charged to an item yet.
    """

    # In the base class, a mark puts the stack aside and begins another. The list lies on the lowest
    # stack; its items are put on the one above that, some hundreds at a time. Time is counted in
    # operations.

    def __init__(self, file: io.BytesIO, *, buffers: Iterable[memoryview]) -> None:
        super().__init__(file, buffers=buffers)
        self.failed: dict[int, BaseException] = {}
        self.errors: list[_Failure] = []
        self._is_broken = False  # something is, by now
        self._time = 0
        self._begun = 0  # when the first of the items on the stack was begun
        self._heights: list[int] = []  # of the stack with items, after each operation since then

    def perform(self, code: int, operation: Callable[[_Salvager], None]) -> None:
        """Carry out one operation of the pickle."""
        if code == _APPENDS:
            if self._is_among_items() and len(self.metastack) == 1:
                self._charge_items(len(self.metastack[0][0]), self._begins(len(self.stack)))
        elif code == _APPEND and not self.metastack and len(self.stack) == 2:
            self._charge_items(len(self.stack[0]), [self._begun])
        try:
            if not (self._is_broken and code in _TAKING and self._takes_broken(code)):
                operation(self)
        except (Exception, SystemExit) as error:  # the user's code
            if code not in _BUILDING:
                raise
            self._note(error)
            self._replace(code, _Broken(error))
        if self._is_broken and code in _REFERRING and (broken := _broken_in(self.stack[-1])):
            self._note(broken.error)
        self._time += 1
        height = 0
        if self._is_among_items():
            height = len(self.stack if len(self.metastack) == 1 else self.metastack[1])
        self._heights.append(height)

    def _is_among_items(self) -> bool:
        """True while items are put on a stack above that with their list."""
        return bool(self.metastack) and len(self.metastack[0]) == 1

    def _note(self, error: BaseException) -> None:
        self._is_broken = True
        self.errors.append(_Failure(self._time, error))

    def _takes_broken(self, code: int) -> bool:
        """If an object is to be built out of something that is broken, it is broken as well."""
        count = _TAKING[code]
        broken = _broken_in(self.stack[-count:])
        if broken is None:
            return False
        del self.stack[-count:]
        if code in _PUSHING:
            self.stack.pop()  # the class
        self._replace(code, broken)
        return True

    def _replace(self, code: int, broken: _Broken) -> None:
        """Put what is broken in the place of what was being built.

        Of that, all but what it is put into has been taken from the stack.
        """
        if code in _PUSHING:
            self.append(broken)
            return
        old, self.stack[-1] = self.stack[-1], broken
        if code != pickle.REDUCE[0]:  # there it is the function, which others may call as well
            for key, value in list(self.memo.items()):
                if value is old:
                    self.memo[key] = broken

    # -- whose failure it is ---------------------------------------------------------------------

    def _charge_items(self, first: int, begun: list[int]) -> None:
        """Items are about to be put into their list: say which of them have failed.

        Args:
            first: index of the first of them.
            begun: when each was begun.
        """
        for time, error in self.errors:
            self.failed.setdefault(first + bisect_right(begun, time) - 1, error)
        self.errors.clear()
        self._heights.clear()
        self._begun = self._time

    def _begins(self, count: int) -> list[int]:
        """Return when each of the items on the stack was begun."""
        begins = [self._begun] * count
        lowest = count
        for time in reversed(range(len(self._heights))):
            while lowest > self._heights[time]:
                lowest -= 1
                begins[lowest] = self._begun + time + 1
        return begins


def _codes(*names: str) -> frozenset[int]:
    return frozenset(getattr(pickle, name)[0] for name in names)


_ITERATED = (list, tuple, set, frozenset)
_CONTAINERS = (*_ITERATED, dict)
_PUSHING = _codes("NEWOBJ", "NEWOBJ_EX", "GLOBAL", "STACK_GLOBAL", "FROZENSET")
_BUILDING = _PUSHING | _codes(
    "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"
)
_APPEND, _APPENDS = pickle.APPEND[0], pickle.APPENDS[0]
_REFERRING = _codes("GET", "BINGET", "LONG_BINGET")
# How many arguments lie on top of the stack.
_TAKING = {pickle.REDUCE[0]: 1, pickle.NEWOBJ[0]: 1, pickle.NEWOBJ_EX[0]: 2, pickle.BUILD[0]: 1}


def _watched(code: int, operation: Callable[[_Salvager], None]) -> Callable[[_Salvager], None]:
    return lambda self: self.perform(code, operation)


_Salvager.dispatch = {
    code: _watched(code, operation) for code, operation in _Unpickler.dispatch.items()
}
