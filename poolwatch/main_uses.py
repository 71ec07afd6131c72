"""Whether what a call goes to uses one of some names of ``__main__``.

A function uses the names that its code reads, those of functions within it too, and whatever the
functions, classes and containers behind these names use in their turn; also its defaults, what it
closes over and what it wraps. Attributes are not names: ``text.upper()`` does not use ``upper``.
"""

from __future__ import annotations

import dis
import functools
import weakref
from collections.abc import Collection, Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

_READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_MOST_THINGS = 10_000  # that are looked at; a table of data may stand behind a name
_LARGEST_CONTAINER = 1000

_names_by_code: weakref.WeakKeyDictionary[CodeType, frozenset[str]] = weakref.WeakKeyDictionary()


def uses_any(value: object, names: Collection[str], main: Mapping[str, Any]) -> bool:
    """Tell whether a function, or whatever else is called, uses one of the names.

    Args:
        value: what is called, or what is given to it.
        names: names in ``__main__``.
        main: the dictionary of ``__main__``.
    """
    seen: dict[int, object] = {}  # kept alive, or their ids would be given to others
    waiting = [value]
    while waiting and len(seen) < _MOST_THINGS:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, FunctionType) and value.__globals__ is main:
            read = global_names(value.__code__)
            if not read.isdisjoint(names):
                return True
            waiting += [main[name] for name in read if name in main]
        waiting += _parts(value)
    return False


def global_names(code: CodeType) -> frozenset[str]:
    """Return the global names that a piece of code reads, or code within it."""
    found = _names_by_code.get(code)
    if found is None:
        read = {step.argval for step in dis.get_instructions(code) if step.opname in _READS}
        within = [global_names(part) for part in code.co_consts if isinstance(part, CodeType)]
        found = _names_by_code[code] = frozenset(read.union(*within))
    return found


def attributes(value: object) -> dict[str, Any]:
    """Return an instance's own attributes, without running code of its class."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return own if type(own) is dict else {}


def _parts(value: Any) -> Iterable[Any]:
    """Return what comes along with a thing whoever uses it."""
    if isinstance(value, FunctionType):
        parts = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*parts, *_contents(value), *value.__dict__.values()]
    if isinstance(value, type):
        # Classes of other modules know nothing of __main__.
        return [*vars(value).values(), *value.__bases__] if value.__module__ == "__main__" else ()
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if type(value) is dict:
        return list(value.values()) if len(value) <= _LARGEST_CONTAINER else ()
    if type(value) in (list, tuple, set, frozenset):
        return list(value) if len(value) <= _LARGEST_CONTAINER else ()
    wrapped = attributes(value).get("__wrapped__")  # as functools.cache and decorators leave it
    return [type(value)] if wrapped is None else [type(value), wrapped]


def _contents(func: FunctionType) -> list[Any]:
    contents = []
    for cell in func.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:
            pass  # nothing in it yet
    return contents
