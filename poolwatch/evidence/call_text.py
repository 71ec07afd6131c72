"""What a pickled call looks like, without running anybody's code.

The arguments of a job that has killed its worker exist in the parent only as their pickle. To load
it would run the ``__setstate__`` that may have killed the worker, and to show what comes out a
``__repr__`` that may raise, or never return. So the pickle is read with stand-ins in the place of
all classes and functions but a few harmless ones, and the stand-ins are what is shown.

All of it is bounded, whatever the pickle holds: objects that refer to each other are shown no
deeper than a few levels, and no more than some dozens of them in all.
"""

from __future__ import annotations

import importlib
import io
import itertools
import pickle
import struct
from typing import Any

from poolwatch.transport.bulk import Bulk
from poolwatch.transport.codec import Payload

_MOST_BYTES = 256 * 1024  # of a pickle that is read; more would take milliseconds
_LONGEST = 200  # characters that are shown
_LENGTH = struct.Struct("<Q")  # of the first part of a bulk payload
_LABELS = {"_reconstruct": "ndarray", "_frombuffer": "ndarray"}  # what NumPy's functions make
_DEEPEST = 3  # levels of things within things
_WIDEST = 4  # things within one
_MOST = 40  # things in one call
_TEXT = 60  # characters of one thing
_DIGITS = 200  # bits of a number that is shown

_HARMLESS = {
    "builtins": {"complex", "range", "slice"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePath", "PurePosixPath"},  # Python 3.13
}
_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")")}
_SHOWN_BY_REPR = (float, bool, type(None), complex, range)


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


class _Named(type):
    """A class that stands for another one, or for a function, known by that one's name."""

    label: str


class _Maker:
    """Stands for a harmless class: makes what that makes, or a stand-in where it refuses."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __call__(self, *args: Any) -> Any:
        try:
            return self.kind(*args)
        except Exception:  # noqa: BLE001  (its arguments are stand-ins, or nonsense)
            return _named(self.kind.__name__)(*args)


def _named(label: str) -> Any:
    return _Named("_StandIn", (_StandIn,), {"label": label})


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), buffers=itertools.repeat(b""))
        self._seen: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function."""
        key = (module, name)
        if key not in self._seen:
            if name in _HARMLESS.get(module, ()):
                self._seen[key] = _Maker(getattr(importlib.import_module(module), name))
            else:
                self._seen[key] = _named(_LABELS.get(name, name))
        return self._seen[key]

    def persistent_load(self, pid: Any) -> Any:
        """There are none in a call."""
        return _StandIn()


class _Shower:
    """Puts what a reader made into words, within bounds."""

    def __init__(self) -> None:
        self._left = _MOST

    def show(self, thing: Any, depth: int = 0) -> str:
        """Return a thing in words; never raises."""
        self._left -= 1
        if self._left < 0:
            return "..."
        try:
            return self._show(thing, depth)
        except Exception:  # noqa: BLE001  (a pickle may hold anything; then it is not shown)
            return "..."

    def _show(self, thing: Any, depth: int) -> str:
        kind = type(thing)
        if kind is str or kind is bytes:
            return _cut(repr(thing[: _TEXT + 1]))
        if kind is int:
            bits = thing.bit_length()
            return repr(thing) if bits <= _DIGITS else f"<int of {bits} bits>"
        if kind in _SHOWN_BY_REPR:
            return repr(thing)
        if isinstance(thing, _Named):
            return thing.label
        if isinstance(thing, _Maker):
            return thing.kind.__name__
        if isinstance(thing, _StandIn):
            return self._call(thing.label, thing.args, thing.names, depth)
        if kind is dict:
            return self._dict(thing, depth)
        if kind in (list, tuple, set, frozenset):
            return self._items(thing, depth)
        if kind is bytearray:
            return f"bytearray({self._show(bytes(thing[: _TEXT + 1]), depth)})"
        return _cut(repr(thing))  # of a harmless class

    def _call(self, label: str, args: Any, names: dict[Any, Any], depth: int) -> str:
        if depth >= _DEEPEST and (args or names):
            return f"{label}(...)"
        shown = [self.show(arg, depth + 1) for arg in args[:_WIDEST]]
        some = itertools.islice(names.items(), _WIDEST)
        shown += [f"{name}={self.show(value, depth + 1)}" for name, value in some]
        more = ["..."] if len(args) + len(names) > len(shown) else []
        return f"{label}({', '.join([*shown, *more])})"

    def _dict(self, thing: dict[Any, Any], depth: int) -> str:
        if depth >= _DEEPEST and thing:
            return "{...}"
        some = itertools.islice(thing.items(), _WIDEST)
        shown = [f"{self.show(k, depth + 1)}: {self.show(v, depth + 1)}" for k, v in some]
        more = ["..."] if len(thing) > len(shown) else []
        return f"{{{', '.join([*shown, *more])}}}"

    def _items(self, thing: Any, depth: int) -> str:
        kind: type = type(thing)
        if not thing and kind in (set, frozenset):
            return f"{kind.__name__}()"
        start, end = _BRACKETS.get(kind, ("{", "}"))
        if depth >= _DEEPEST and thing:
            return f"{start}...{end}"
        shown = [self.show(item, depth + 1) for item in itertools.islice(thing, _WIDEST)]
        more = ["..."] if len(thing) > len(shown) else []
        comma = "," if kind is tuple and len(thing) == 1 else ""
        text = f"{start}{', '.join([*shown, *more])}{comma}{end}"
        return f"frozenset({text})" if kind is frozenset else text


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT // 2]}...{text[-3:]}"


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
    except Exception:  # noqa: BLE001  (a pickle may hold anything; then it is not shown)
        return f"{name}(...)"
    shower = _Shower()
    shown = [shower.show(arg) for arg in args[:_MOST]]
    shown += [f"{key}={shower.show(value)}" for key, value in kwds.items()]
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
