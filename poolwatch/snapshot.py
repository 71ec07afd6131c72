"""Which functions the workers know as the caller knows them.

Workers see the program as it was when the pool was made. A function that has been defined again
since then exists in them in an older version, and stale code is worse than missing code: such a
function is sent by value. The same holds for the functions of a module that has been loaded again.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from poolwatch.transport import codec

_MAIN = b"__main__"
_CODE = (FunctionType, type, functools.partial)


class Snapshot:
    """What ``__main__`` and the loaded modules were at one moment."""

    def __init__(self) -> None:
        self._main = {
            name: weakref.ref(value)
            for name, value in vars(sys.modules["__main__"]).items()
            if isinstance(value, (FunctionType, type))
        }
        self._specs = {
            name: getattr(module, "__spec__", None)
            for name, module in list(sys.modules.items())
            if isinstance(module, ModuleType)
        }
        # The function asked about last, known to be up to date.
        self._last: Callable[[], object] = lambda: None

    def encode(
        self, func: Any, call: tuple[Any, ...], args: tuple[Any, ...]
    ) -> tuple[codec.Payload, bool]:
        """Pickle a call; the second value tells whether it went by value.

        Args:
            func: the function that is called.
            call: what to pickle: the function and its arguments.
            args: arguments that may be functions themselves.

        Raises:
            Exception: whatever pickling raised.
        """
        stale = func is not self._last() and self._is_stale(func)
        for arg in args:
            if isinstance(arg, _CODE) and self._is_stale(arg):
                stale = True
        if not stale:
            if isinstance(func, FunctionType):
                self._last = weakref.ref(func)  # weak: it may hold whatever it closes over
            payload = codec.encode(call)
            # An argument may be of a class that was defined again.
            if type(payload) is not bytes or _MAIN not in payload or not self._main_has_changed():
                return payload, False
        modules = [module for value in (func, *args) for module in codec.modules_of(value)]
        return codec.encode_by_value(call, *modules), True

    def _is_stale(self, value: Any) -> bool:
        if isinstance(value, functools.partial):
            return self._is_stale(value.func)
        name = getattr(value, "__module__", None)
        if not isinstance(name, str):
            return False
        if name == "__main__":
            root = getattr(value, "__qualname__", "").partition(".")[0]
            known = self._main.get(root)
            return known is None or known() is not vars(sys.modules["__main__"]).get(root)
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        # A module that was loaded later is loaded by the worker itself, as it is at that time.
        return self._specs.setdefault(name, spec) is not spec

    def _main_has_changed(self) -> bool:
        main = vars(sys.modules["__main__"])
        return any(known() is not main.get(name) for name, known in self._main.items())
