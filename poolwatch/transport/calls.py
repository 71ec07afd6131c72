"""How a call travels: the function's own pickle, then that of the arguments.

Most calls of a pool are of few functions. Pickling a function by reference costs more than pickling
a few plain arguments, and finding it again in the worker costs more still, so both sides remember
it. A call that cannot be taken apart (a function by value shares objects with its arguments, say)
travels as one pickle of the three parts; its head is empty.
"""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
from typing import Any

from poolwatch.transport import bulk, codec
from poolwatch.transport.codec import PROTOCOL, Payload

_NO_ARGUMENTS = pickle.dumps((), PROTOCOL)
_NO_NAMES: dict[str, Any] = {}
_MOST_FUNCTIONS = 256  # that are remembered


def encode_plain(args: tuple[Any, ...]) -> Payload:
    """Pickle arguments that are all of the types in ``codec.PLAIN``."""
    if not args:
        return _NO_ARGUMENTS
    data = pickle.dumps(args, PROTOCOL)
    return data if len(data) < bulk.THRESHOLD else codec.encode(args)


def encode_arguments(args: tuple[Any, ...], kwds: dict[str, Any]) -> Payload:
    """Pickle arguments, which travel behind a function's own pickle.

    Raises:
        Exception: whatever pickling them raised.
    """
    return codec.encode([args, kwds] if kwds else args)


def home_of(func: Any) -> tuple[ModuleType, dict[str, Any], str] | None:
    """Return the module, its dictionary and the name by which a function is found, if any."""
    name = getattr(func, "__qualname__", None)
    module = sys.modules.get(getattr(func, "__module__", None) or "")
    if not isinstance(name, str) or not isinstance(module, ModuleType):
        return None
    names = vars(module)
    return (module, names, name) if names.get(name) is func else None


class Functions:
    """The functions that a worker has been sent, by their pickles.

    One is found again only as long as it is what its module knows by its name: a job may have put
    another in its place, or loaded the module anew.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Any, ModuleType, dict[str, Any], str]] = {}

    def load(self, head: bytes) -> Any:
        """Return the function behind a pickle.

        Raises:
            Exception: whatever unpickling raised.
        """
        known = self._known.get(head)
        if known is not None:
            func, module, names, name = known
            if names.get(name) is func and sys.modules.get(module.__name__) is module:
                return func
        func = pickle.loads(head)
        home = home_of(func)
        if home is not None:
            if len(self._known) >= _MOST_FUNCTIONS:
                self._known.clear()
            self._known[head] = (func, *home)
        return func

    def decode(
        self, head: bytes, payload: bytes, fd: int | None, is_bulk: bool
    ) -> tuple[Any, Any, Any]:
        """Return a call: the function, its arguments, its keyword arguments.

        A descriptor is used up, whether that succeeds or not.

        Raises:
            Exception: whatever unpickling raised.
        """
        if is_bulk:
            arguments = codec.decode(payload, fd, True)
            func = self.load(head) if head else None
        elif payload == _NO_ARGUMENTS:
            return self.load(head), (), _NO_NAMES
        else:
            func = self.load(head) if head else None
            arguments = pickle.loads(payload)
        if func is None:
            whole: tuple[Any, Any, Any] = arguments
            return whole
        if type(arguments) is tuple:
            return func, arguments, _NO_NAMES
        return func, arguments[0], arguments[1]
