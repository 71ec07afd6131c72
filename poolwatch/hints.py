"""What errors say beyond what is wrong: the argument that was meant, the call that it was."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from poolwatch.transport import codec

F = TypeVar("F", bound=Callable[..., Any])

_LIMITS = (
    "a limit for each item is the pool's: Pool(timeout=...); "
    "to wait no longer, use the _async method and get(timeout)"
)
_IN_JOB = "apply_async(..., {0}=...) takes it"

OF_POOL = {
    "max_workers": "processes",
    "workers": "processes",
    "n_jobs": "processes",
    "num_workers": "processes",
    "mp_context": "context",
    "max_tasks_per_child": "maxtasksperchild",
}
OF_EXECUTOR = {
    "processes": "max_workers",
    "n_jobs": "max_workers",
    "num_workers": "max_workers",
    "context": "mp_context",
    "maxtasksperchild": "max_tasks_per_child",
}
OF_CALLS = {"kwargs": "kwds", "fn": "func", "function": "func"}


def wrong_keyword(
    callee: str, given: Iterable[str], right: Mapping[str, str], *methods: Callable[..., Any]
) -> TypeError:
    """Return the error about a keyword argument that does not exist, with the name that was meant.

    Args:
        callee: what was called.
        given: the unknown names; the first is named.
        right: names that are known to be used elsewhere for the same thing.
        methods: take the arguments that there are, together.
    """
    parameters = [name for method in methods for name in inspect.signature(method).parameters]
    known = [name for name in parameters if name not in right]
    name = next(iter(given))
    text = f"{callee}() got an unexpected keyword argument {name!r}"
    meant = right.get(name) or next(iter(difflib.get_close_matches(name, known, 1)), None)
    if meant is not None:
        text += f"; did you mean {meant!r}?"
    elif name in ("timeout", "soft_timeout", "memory_limit"):
        text += f"; {_IN_JOB.format(name) if callee.endswith('apply') else _LIMITS}"
    return TypeError(text)


def hinting(right: Mapping[str, str]) -> Callable[[F], F]:
    """Decorate a method: a wrong keyword argument is refused with a hint at the right one.

    Args:
        right: see :func:`wrong_keyword`.
    """

    def decorate(method: F) -> F:
        known = inspect.signature(method).parameters.keys()
        name = method.__qualname__.rpartition(".")[2]
        callee = "Pool" if name == "__init__" else f"Pool.{name}"

        @functools.wraps(method)
        def checked(*args: Any, **kwds: Any) -> Any:
            if not kwds.keys() <= known:
                given = [key for key in kwds if key not in known]
                raise wrong_keyword(callee, given, right, method)
            return method(*args, **kwds)

        return cast(F, checked)

    return decorate


def note_call(
    error: BaseException, name: str, args: object, kwds: Mapping[str, Any], place: str = ""
) -> None:
    """Add to an error of pickling which function's call it was, and which argument is guilty.

    Args:
        error: what pickling raised; its class is what programs look for, and stays.
        name: of the function.
        args: its arguments.
        kwds: its keyword arguments.
        place: of a map, which item.
    """
    if not isinstance(args, (tuple, list)):
        args = (args,)  # an item of a starmap that is no iterable, which is what the error is about
    named = [*((f"argument {index}", arg) for index, arg in enumerate(args)), *kwds.items()]
    guilty = ""
    if place == "" or len(named) > 1:
        found = next(((label, arg) for label, arg in named if not _pickles(arg)), None)
        if found is not None:
            guilty = f", for its {found[0]}, of type {type(found[1]).__qualname__}"
    note = f"while pickling the call of {name}{guilty}{place}"
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} ({note})",)  # before Python 3.11 there are no notes


def _pickles(value: Any) -> bool:
    try:
        codec.encode(value)
    except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        return False
    return True
