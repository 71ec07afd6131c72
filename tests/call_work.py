"""Things that can be called, for the tests of how calls travel."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def gather(*args: Any, **kwds: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwds


def answer() -> str:
    return "first"


def second_answer() -> str:
    return "second"


def replace_answer() -> str:
    """Puts another function in the place of one, in this process."""
    second_answer.__qualname__ = second_answer.__name__ = "answer"
    globals()["answer"] = second_answer
    return answer()


def load_anew(name: str) -> int:
    """Loads a module again as if for the first time, in this process."""
    sys.modules.pop(name, None)
    return id(__import__(name))


class Counter:
    """Has methods of every kind, and can be called itself."""

    name = "class"

    def __init__(self, start: int) -> None:
        self.start = start

    def __call__(self, more: int) -> int:
        return self.start + more

    def plus(self, more: int) -> int:
        return self.start + more

    @classmethod
    def called(cls, more: int) -> str:
        return f"{cls.name} {more}"

    @staticmethod
    def doubled(number: int) -> int:
        return 2 * number

    class Inner:
        @staticmethod
        def tripled(number: int) -> int:
            return 3 * number


class Special(Counter):
    name = "special"


def make_closure(start: int) -> Callable[[int], int]:
    def closure(more: int) -> int:
        return start + more

    return closure


def pid_and(value: object) -> tuple[int, object]:
    return os.getpid(), value


renamed: Any = make_closure(100)
renamed.__qualname__ = "Not.There"
lonely: Any = make_closure(200)
lonely.__module__ = "no_such_module"
impostor: Any = make_closure(300)
impostor.__qualname__ = impostor.__name__ = "gather"
