"""What a job finds around it: variables of the environment, a directory, context variables.

Jobs that have settings carry them in a section of their own at the front of their frame's payload:
its length, then a pickle. It is no part of the call, so a call that is pickled anew (by value, for
a retry) keeps it. The value of each context variable is a pickle in that pickle, so that one that
does not load is known by name.
"""

from __future__ import annotations

import importlib
import pickle
import struct
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from poolwatch.exceptions import JobDecodingError
from poolwatch.transport import codec

_LENGTH = struct.Struct("<I")
_UNSET = object()


class Settings(NamedTuple):
    """The content of a section.

    Attributes:
        env: variables that are added to the environment.
        cwd: the working directory, or None.
        values: pickled values of context variables, by index in the pool's list of them.
    """

    env: dict[str, str]
    cwd: str | None
    values: dict[int, bytes]


class TravellingVariable:
    """A context variable on its way to a worker that is started afresh, where it has a twin.

    Context variables do not pickle: they are their module's, and found there by name.
    """

    __slots__ = ("variable",)

    def __init__(self, variable: ContextVar[Any]) -> None:
        self.variable = variable

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        for module_name, module in list(sys.modules.items()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if value is self.variable:
                    return _find, (module_name, name)
        raise pickle.PicklingError(
            f"contextvars: {self.variable.name!r} is no global variable of a module, so workers "
            "that are started afresh cannot find it"
        )


def _find(module: str, name: str) -> TravellingVariable:
    return TravellingVariable(getattr(importlib.import_module(module), name))


def encode(
    env: dict[str, str] | None, cwd: str | None, variables: Sequence[ContextVar[Any]]
) -> bytes:
    """Return a section, with the values that the variables have in the caller's context.

    Raises:
        pickle.PicklingError: the value of a variable does not pickle; the text names it.
    """
    values = {}
    for index, variable in enumerate(variables):
        value = variable.get(_UNSET)
        if value is not _UNSET:
            values[index] = _encode_value(variable, value)
    section = pickle.dumps((env or {}, cwd, values), codec.PROTOCOL)
    return _LENGTH.pack(len(section)) + section


def _encode_value(variable: ContextVar[Any], value: object) -> bytes:
    try:
        try:
            return codec.dumps(value)
        except Exception:  # noqa: BLE001  (a lambda, or what a user's __reduce__ raised)
            return codec.dumps_by_value(value)
    except Exception as error:
        raise pickle.PicklingError(
            f"the value of context variable {variable.name!r} does not pickle: "
            f"{codec.safe_repr(error)}"
        ) from error


def split(head: bytes) -> tuple[bytes, bytes]:
    """Return the section at the front, and what comes behind it."""
    (length,) = _LENGTH.unpack_from(head)
    end = _LENGTH.size + length
    return head[_LENGTH.size : end], head[end:]


def decode(section: bytes) -> Settings:
    """Return the content of a section; values of context variables stay pickled."""
    return Settings(*pickle.loads(section))


def decode_value(variable: ContextVar[Any], value: bytes) -> Any:
    """Return the value of a context variable.

    Raises:
        JobDecodingError: it does not unpickle; the text names the variable.
    """
    try:
        return pickle.loads(value)
    except (Exception, SystemExit) as error:
        raise JobDecodingError(
            f"the value of context variable {variable.name!r} could not be unpickled in the "
            f"worker: {codec.safe_repr(error)}"
        ) from error
