"""Jobs of the tests of ``AsyncPool`` that end in ways that mean something to an event loop."""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn

ERRORS: dict[str, type[BaseException]] = {
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
}


def raise_by_name(name: str) -> NoReturn:
    raise ERRORS[name]("mine")


def raise_some(name: str | None) -> str | None:
    """An item of a map: fine for None, else it raises that error."""
    if name is not None:
        raise_by_name(name)
    return name


class Unusual(BaseException):
    """Neither an ``Exception`` nor one that Python knows."""


class RefusesToLoad:
    """Raises while it is unpickled."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return _raise, (self._kind,)


def _raise(kind: type[BaseException]) -> NoReturn:
    raise kind("while unpickling")


def refuse_to_load(interrupting: bool = False) -> RefusesToLoad:
    return RefusesToLoad(KeyboardInterrupt if interrupting else Unusual)


class SlowToLoad:
    """Takes a millisecond to be unpickled; comes out as a number."""

    def __reduce__(self) -> tuple[object, ...]:
        return _after_a_millisecond, ()


def _after_a_millisecond() -> int:
    until = time.monotonic() + 0.001
    while time.monotonic() < until:
        pass
    return 1


def slow_to_load() -> SlowToLoad:
    return SlowToLoad()
