"""Which functions the workers know as the caller knows them.

Workers see the program as it was when the pool was made. A function that has been defined again
since then exists in them in an older version, and stale code is worse than missing code: such a
function is sent by value. The same holds for the functions of a module that has been loaded again.

What is sent by value brings its own copies of the global variables that it uses, and does not see
what an initializer or an earlier job has put into the worker's. So of ``__main__`` only what has
changed goes by value, and what uses it (see ``main_uses``), not whatever else is called meanwhile.
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

from poolwatch.main_uses import attributes, uses_any
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


class _Verdicts(NamedTuple):
    """Whether functions use what has changed in ``__main__``, while it has changed like this."""

    values: tuple[Any, ...]
    changed: frozenset[str]
    by_function: weakref.WeakKeyDictionary[Any, bool]


class Snapshot:
    """What ``__main__`` and the loaded modules were at one moment."""

    def __init__(self) -> None:
        main = vars(sys.modules["__main__"])
        self._main = {
            name: value
            for name, value in main.items()
            if not name.startswith("__") and _is_definition(value)
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
        self._verdicts = _NO_VERDICTS

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
        both._verdicts = _NO_VERDICTS
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
                payload = calls.encode_plain(args)
                is_current = not in_main or not self._main_has_changed() or not self._uses(func)
            else:
                payload = calls.encode_arguments(args, kwds)
                is_current = not (in_main or _may_name_main(payload)) or self._knows(
                    (func, args, kwds)
                )
            if is_current:
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
            if not _may_name_main(payload) or self._knows(call):
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
            path = getattr(value, "__qualname__", None)
            if not isinstance(path, str):  # an instance that can be called
                path = type(value).__qualname__
            root = path.partition(".")[0]
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

    def _knows(self, call: tuple[Any, ...]) -> bool:
        """True when workers know all of ``__main__`` that a call by reference would use."""
        if not self._main_has_changed():
            return True
        named = codec.named_by_reference(call, "__main__")
        return named is not None and not any(
            self._is_stale(value) or self._uses(value) for value in named
        )

    def _uses(self, value: Any) -> bool:
        """True when a function or class uses what has changed in ``__main__``."""
        main = vars(sys.modules["__main__"])
        values = tuple(map(main.get, self._names))
        verdicts = self._verdicts
        if len(verdicts.values) != len(values) or any(
            map(operator.is_not, verdicts.values, values)
        ):
            pairs = zip(self._names, self._values, strict=True)
            changed = frozenset(name for name, known in pairs if main.get(name) is not known)
            verdicts = self._verdicts = _Verdicts(values, changed, weakref.WeakKeyDictionary())
        try:
            verdict = verdicts.by_function.get(value)
            if verdict is None:
                verdict = uses_any(value, verdicts.changed, main)
                verdicts.by_function[value] = verdict
        except TypeError:  # it cannot be a key there
            verdict = uses_any(value, verdicts.changed, main)
        return verdict


_NO_VERDICTS = _Verdicts((), frozenset(), weakref.WeakKeyDictionary())


def _is_definition(value: object) -> bool:
    """True for functions and classes, and for what a decorator has made of one in ``__main__``."""
    if isinstance(value, (FunctionType, type)):
        return True
    own = attributes(value)
    return own.get("__module__") == "__main__" and isinstance(own.get("__qualname__"), str)


def _may_name_main(payload: codec.Payload) -> bool:
    return type(payload) is not bytes or _MAIN in payload
