"""What the jobs of test_dropin.py call."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from helpers import DEADLINE

F = TypeVar("F", bound=Callable[..., Any])


def louder(function: F) -> F:
    """A decorator that leaves the function's name to what it returns."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return f"{function(*args)}!"

    return wrapper  # type: ignore[return-value]


@louder
def greet(name: str) -> str:
    return f"hello {name}"


def shadowed() -> str:
    return "first"


first_shadowed = shadowed


def shadowed() -> str:  # type: ignore[no-redef]
    return "second"


def two_then_error() -> Iterator[int]:
    yield 1
    yield 2
    raise LookupError("the input broke")


class PicklesSlowly:
    """An argument in whose pickling the submitter stays."""

    def __init__(self) -> None:
        self.is_pickled = False

    def __reduce__(self) -> Any:
        self.is_pickled = True
        threading.Event().wait(DEADLINE)
        return os.getpid, ()


_kept: Any = None


def keep(queue: Any, lock: Any) -> None:
    """An initializer: what it gets cannot be pickled."""
    global _kept
    _kept = queue, lock


def put(text: str) -> None:
    queue, lock = _kept
    with lock:
        queue.put(text)


def raises_in_worker(number: int) -> int:
    if number % 2:
        raise LookupError(number)
    return number
