"""What a pickled call looks like, without running anybody's code.

The arguments of a job that has killed its worker exist in the parent only as their pickle. To load
it would run the ``__setstate__`` that may have killed the worker, and to show what comes out a
``__repr__`` that may raise, or never return. So the pickle is read with stand-ins in the place of
all classes and functions but a few harmless ones, and the stand-ins are what is shown.
"""

from __future__ import annotations

import io
import itertools
import pickle
import reprlib
import struct
from typing import Any

from poolwatch.transport.bulk import Bulk
from poolwatch.transport.codec import Payload

_MOST_BYTES = 256 * 1024  # of a pickle that is read; more would take milliseconds
_LABELS = {"_reconstruct": "ndarray", "_frombuffer": "ndarray"}  # what NumPy's functions make
_LONGEST = 200  # characters that are shown
_LENGTH = struct.Struct("<Q")  # of the first part of a bulk payload

_HARMLESS = {
    "builtins": {"set", "frozenset", "complex", "bytearray", "range", "slice"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePath", "PurePosixPath"},  # Python 3.13
    "uuid": {"UUID"},
}


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 4
        self.maxlevel = 3  # lists within lists


_short = _Short()


class _StandIn:
    """Stands for an object of a class, or for what a function returned."""

    label = "object"

    def __new__(cls, *args: Any, **kwds: Any) -> Any:
        self = super().__new__(cls)
        self.args = args
        self.names = {}
        return self

    def __init__(self, *args: Any, **kwds: Any) -> None:
        self.args: tuple[Any, ...]
        self.names: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state = state[1]  # of a class with slots
        if isinstance(state, dict):
            self.names = state

    def __call__(self, *args: Any, **kwds: Any) -> Any:
        return _StandIn()

    def append(self, item: Any) -> None:
        """Items of a subclass of list: not shown."""

    def extend(self, items: Any) -> None:
        """Likewise."""

    def add(self, item: Any) -> None:
        """Items of a subclass of set: not shown."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of a subclass of dict: not shown."""

    def __repr__(self) -> str:
        shown = [_short.repr(arg) for arg in self.args[:4]]
        shown += [f"{name}={_short.repr(value)}" for name, value in list(self.names.items())[:4]]
        if len(self.args) + len(self.names) > len(shown):
            shown.append("...")
        return f"{self.label}({', '.join(shown)})"


class _Named(type):
    """Makes a class that stands for another, or for a function, show as that one's name."""

    label: str

    def __repr__(cls) -> str:
        return cls.label


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), buffers=itertools.repeat(b""))
        self._seen: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what is harmless, and a stand-in for everything else."""
        if name in _HARMLESS.get(module, ()):
            return super().find_class(module, name)
        key = (module, name)
        if key not in self._seen:
            self._seen[key] = _Named("_StandIn", (_StandIn,), {"label": _LABELS.get(name, name)})
        return self._seen[key]

    def persistent_load(self, pid: Any) -> Any:
        """There are none in a call."""
        return _StandIn()


def describe_call(name: str, has_head: bool, payload: Payload | None, item: int | None) -> str:
    """Return a call with its arguments, shortened; never raises.

    Args:
        name: of the function.
        has_head: the payload holds the arguments only, see ``transport.calls``.
        payload: the pickled call or arguments; None when they are not there any more.
        item: of a chunk of a map, which item; None for a call of its own.
    """
    try:
        size, data = _pickle_of(payload)
        if data is None:
            return f"{name}({'...' if payload is None else f'<{size} bytes of arguments>'})"
        args, kwds = _arguments(_Reader(data).load(), has_head, item)
        shown = [_short.repr(arg) for arg in args]
        shown += [f"{key}={_short.repr(value)}" for key, value in kwds.items()]
    except Exception:  # noqa: BLE001  (a pickle may hold anything; then it is not shown)
        return f"{name}(...)"
    text = f"{name}({', '.join(shown)})"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + "...)"


def _pickle_of(payload: Payload | None) -> tuple[int, bytes | None]:
    """Return the size of a payload, and its pickle unless that is too long to be read."""
    if payload is None:
        return 0, None
    if not isinstance(payload, Bulk):
        return len(payload), payload if len(payload) <= _MOST_BYTES else None
    with payload.contents() as contents:
        (length,) = _LENGTH.unpack_from(payload.table)
        return len(contents), contents[:length] if length <= _MOST_BYTES else None


def _arguments(
    loaded: Any, has_head: bool, item: int | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if item is not None:
        items, star = loaded if has_head else loaded[1:]
        return (tuple(items[item]) if star else (items[item],)), {}
    if not has_head:
        return loaded[1], loaded[2]
    return (loaded, {}) if type(loaded) is tuple else (loaded[0], loaded[1])
