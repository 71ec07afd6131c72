"""Which functions the workers know as the caller knows them.

Workers see the program as it was when the pool was made. A function that has been defined again
since then exists in them in an older version, and stale code is worse than missing code: such a
function is sent by value. The same holds for the functions of a module that has been loaded again.
"""

from __future__ import annotations

import copy
import functools
import operator
import sys
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

from poolwatch.transport import calls, codec
from poolwatch.transport.codec import PLAIN

_MAIN = b"__main__"
_FUNCTIONS = (FunctionType, BuiltinFunctionType)
_CODE = (FunctionType, type, functools.partial)


class Call(NamedTuple):
    """A pickled call, see ``transport.calls``."""

    head: bytes
    payload: codec.Payload
    by_value: bool


class _Known(NamedTuple):
    """A function that is up to date, how it is found, and its pickle."""

    ref: Callable[[], object]
    names: dict[str, Any]
    name: str
    head: bytes
    in_main: bool


_NOTHING_KNOWN = _Known(lambda: None, {}, "", b"", False)
_DIFFERS: Any = object()  # no module's own
_new_call = tuple.__new__  # Call(...) takes twice as long


class Snapshot:
    """What ``__main__`` and the loaded modules were at one moment."""

    def __init__(self) -> None:
        main = vars(sys.modules["__main__"])
        self._main = {
            name: value
            for name, value in main.items()
            if isinstance(value, (FunctionType, type)) and not name.startswith("__")
        }
        self._names = tuple(self._main)
        self._values = tuple(self._main.values())
        self._specs = {
            name: getattr(module, "__spec__", None)
            for name, module in list(sys.modules.items())
            if isinstance(module, ModuleType)
        }
        # The function asked about last. One value, for several threads read and replace it.
        self._last = _NOTHING_KNOWN

    def common(self, other: Snapshot) -> Snapshot:
        """Return what is the same here and there: for jobs that may meet workers of both kinds."""
        both = copy.copy(self)
        both._main = {
            name: value for name, value in self._main.items() if other._main.get(name) is value
        }
        # Nothing of __main__ that uses what differs goes by name: that is told by these.
        both._names = self._names + other._names
        both._values = self._values + other._values
        both._specs = {**self._specs, **other._specs}
        for name in self._specs.keys() & other._specs.keys():
            if self._specs[name] is not other._specs[name]:
                both._specs[name] = _DIFFERS
        both._last = _NOTHING_KNOWN
        return both

    def encode(self, func: Any, args: tuple[Any, ...], kwds: dict[str, Any]) -> Call:
        """Pickle a call.

        Args:
            func: the function that is called.
            args: its arguments; they may be functions themselves.
            kwds: its keyword arguments.

        Raises:
            Exception: whatever pickling raised.
        """
        head, in_main = self._head_of(func)
        is_plain = not kwds
        for arg in args:
            if type(arg) not in PLAIN:
                is_plain = False
                if isinstance(arg, _CODE) and self._is_stale(arg):
                    head = b""
        if head:
            # An argument may be of a class that was defined again, or a function may call one.
            if is_plain:
                payload, names_main = calls.encode_plain(args), in_main
            else:
                payload = calls.encode_arguments(args, kwds)
                names_main = in_main or (type(payload) is bytes and _MAIN in payload)
            if not names_main or not self._main_has_changed():
                return _new_call(Call, (head, payload, False))
        elif not self._is_stale(func) and not any(
            isinstance(arg, _CODE) and self._is_stale(arg) for arg in args
        ):
            return self.encode_whole(func, (func, args, kwds))
        modules = [module for value in (func, *args) for module in codec.modules_of(value)]
        return Call(b"", codec.encode_by_value((func, args, kwds), *modules), True)

    def encode_whole(self, func: Any, call: tuple[Any, ...]) -> Call:
        """Pickle a call as it is, the function among the rest.

        Args:
            func: the function that is called.
            call: what to pickle.

        Raises:
            Exception: whatever pickling raised.
        """
        if not self._is_stale(func):
            payload = codec.encode(call)
            if type(payload) is not bytes or _MAIN not in payload or not self._main_has_changed():
                return Call(b"", payload, False)
        return Call(b"", codec.encode_by_value(call, *codec.modules_of(func)), True)

    def _head_of(self, func: Any) -> tuple[bytes, bool]:
        """Return a function's own pickle, and whether it is one of ``__main__``.

        The pickle is empty when the function must travel in one with its arguments.
        """
        ref, names, name, head, in_main = self._last
        if func is ref() and names.get(name) is func:
            return head, in_main
        home = calls.home_of(func) if isinstance(func, _FUNCTIONS) else None
        if home is None or self._is_stale(func):
            return b"", False
        payload = codec.encode(func)
        if not isinstance(payload, bytes):
            return b"", False
        in_main = _MAIN in payload
        # Weak: it may hold whatever it closes over.
        self._last = _Known(weakref.ref(func), home[1], home[2], payload, in_main)
        return payload, in_main

    def _is_stale(self, value: Any) -> bool:
        if isinstance(value, functools.partial):
            return self._is_stale(value.func)
        name = getattr(value, "__module__", None)
        if not isinstance(name, str):
            return False
        if name == "__main__":
            root = getattr(value, "__qualname__", "").partition(".")[0]
            known = self._main.get(root)
            return known is None or known is not vars(sys.modules["__main__"]).get(root)
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        # A module that was loaded later is loaded by the worker itself, as it is at that time.
        return self._specs.setdefault(name, spec) is not spec

    def _main_has_changed(self) -> bool:
        """True when a function or class of ``__main__`` is not what it was; asked for each job."""
        now = map(vars(sys.modules["__main__"]).get, self._names)
        return any(map(operator.is_not, now, self._values))
