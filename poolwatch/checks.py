"""Checks of single arguments; the error names the argument."""

from __future__ import annotations

import functools
import inspect
import math
import signal
import threading
from types import FunctionType, MethodType
from typing import Any

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def whole(argument: str, value: object, least: int = 1, unit: str = "") -> int:
    """Return a whole number of at least ``least``; the error about a wrong type names the unit.

    Raises:
        TypeError: not a whole number.
        ValueError: too small.
    """
    number = integer(argument, value, unit)
    if number < least:
        raise ValueError(f"{argument} must be at least {least}: {number}")
    return number


def integer(argument: str, value: object, unit: str = "") -> int:
    """Return a whole number, also a negative one.

    Raises:
        TypeError: not a whole number.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        of_what = f" of {unit}" if unit else ""
        raise TypeError(f"{argument} must be a whole number{of_what}, not {value!r}")
    number: int = value.__index__()
    return number


def flag(argument: str, value: object) -> bool:
    """Return a bool.

    Raises:
        TypeError: anything else, None included.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, not {value!r}")
    return value


def seconds(
    argument: str, value: object, *, positive: bool = True, negative: bool = False
) -> float:
    """Return a number of seconds.

    Args:
        argument: its name, for the error.
        value: what was given.
        positive: zero is refused too.
        negative: negative seconds stand for zero (as where multiprocessing waits).

    Raises:
        TypeError: not a number.
        ValueError: not a number of the right size.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number of seconds, not {value!r}")
    if negative and not math.isnan(value):
        return min(max(0.0, float(value)), threading.TIMEOUT_MAX)
    if not math.isfinite(value) or value < 0 or (positive and not negative and value == 0):
        raise ValueError(f"{argument} must be {'positive' if positive else 'at least 0'}: {value}")
    return float(value)


def optional_seconds(argument: str, value: object, *, positive: bool = True) -> float | None:
    """Return a number of seconds, or None for None; raises as :func:`seconds`."""
    return None if value is None else seconds(argument, value, positive=positive)


def callable_or_none(argument: str, value: Any) -> Any:
    """Return the value.

    Raises:
        TypeError: neither callable nor None.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{argument} must be callable, not {value!r}")
    return value


def function(argument: str, value: Any) -> None:
    """Check that a value can be a job's function.

    Raises:
        TypeError: not callable, or a coroutine function: nothing would await what it returns.
    """
    kind = type(value)  # looked at first, as this is done for every job
    if kind is FunctionType:
        if value.__code__.co_flags & _ASYNC:
            raise TypeError(
                f"{argument} must be a plain function, not the coroutine function "
                f"{value.__qualname__}: workers run no event loop. A function that calls "
                f"asyncio.run() can be a job"
            )
    elif kind is MethodType:
        function(argument, value.__func__)
    elif kind is functools.partial:
        function(argument, value.func)
    elif not callable(value):
        raise TypeError(f"{argument} must be callable, not {value!r}")


def signal_number(argument: str, signum: object) -> int:
    """Return the number of a signal.

    Raises:
        TypeError: not a whole number.
        ValueError: no such signal.
    """
    number = whole(argument, signum)
    if number not in signal.valid_signals():
        raise ValueError(f"{argument} must be a signal: {number}")
    return number


def exception_classes(argument: str, value: object) -> None:
    """Check that a value is a class of exceptions, or a tuple of such.

    Raises:
        TypeError: anything else.
    """
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if not isinstance(item, type) or not issubclass(item, BaseException):
            raise TypeError(f"{argument} must hold classes of exceptions, not {item!r}")
