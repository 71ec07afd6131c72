"""Names of __main__ come to stand for other functions while a pool is open.

Only what uses such a name goes by value; all else finds what the initializer has left in its
worker. Argument: what to try.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from poolwatch import Pool

connection: Any = None
counter = 0


def connect() -> None:
    global connection
    connection = "connected"


def count(_: object = None) -> int:
    global counter
    counter += 1
    return counter


def ask(question: Any = None) -> Any:
    return connection


def upper() -> str:
    return "old"


def shout(text: str) -> str:
    return f"{text.upper()} {connection}"


@functools.lru_cache
def ask_and_keep(question: Any = None) -> Any:
    return connection


class Asks:
    def __call__(self, question: Any = None) -> Any:
        return connection

    def method(self, question: Any = None) -> Any:
        return connection


class Question:
    pass


def old() -> str:
    return "old"


def new() -> str:
    return "new"


hook = old
as_default = old


def calls_hook(_: object = None) -> str:
    return hook()


def calls_by_way(_: object = None) -> str:
    return calls_hook()


class HasHook:
    def run(self) -> str:
        return "".join(calls_hook() for _ in range(1))


def makes(_: object = None) -> str:
    return HasHook().run()


TABLE = {"makes": makes}


def through_table(_: object = None) -> str:
    return TABLE["makes"]()


def decorated(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapper(*args: Any) -> Any:
        return func(*args)

    return wrapper


@decorated
def behind_decorator(_: object = None) -> str:
    return hook()


def call(func: Callable[[], Any]) -> Any:
    return func()


def receive(question: Question) -> Any:
    return type(question).__name__, connection


def unconcerned(pool: Pool) -> None:
    """The name that changes is one that no call uses."""
    global hook
    hook = new
    assert pool.map(ask, [1]) == ["connected"]
    assert pool.map(count, range(3), chunksize=1) == [1, 2, 3]
    assert pool.starmap(count, [()]) == [4]
    for func in (ask, ask_and_keep, Asks(), Asks().method, functools.partial(ask, "q")):
        assert pool.apply(func) == "connected", func
        assert pool.apply(call, (func,)) == "connected", func
    assert pool.apply(ask, (Question(),)) == "connected"
    assert pool.apply(ask, ([Question()], b"x" * 2_000_000)[:1]) == "connected"
    assert pool.apply(receive, (Question(),)) == ("Question", "connected")


def attribute(pool: Pool) -> None:
    """A method of the same name as what has changed is another matter."""
    global upper
    upper = new
    assert pool.apply(shout, ("a",)) == "A connected"


def concerned(pool: Pool) -> None:
    """Whatever uses the changed name, at whatever distance, sees what it stands for now."""
    global hook
    funcs = [calls_hook, calls_by_way, makes, through_table, behind_decorator, HasHook().run]
    for func in funcs:
        assert pool.apply(func) == "old", func
    for value, text in ((new, "new"), (old, "old"), (new, "new")):
        hook = value
        for func in funcs:
            assert pool.apply(func) == text, (func, text)
            assert pool.apply(call, (func,)) == text, (func, text)
        assert pool.map(calls_by_way, [1, 2]) == [text] * 2


def classes(pool: Pool) -> None:
    """A class that is defined again: its instances are of the new one, in bulk too."""
    assert pool.apply(receive, (Question(),)) == ("Question", "connected")

    class Renamed:
        def __init__(self) -> None:
            self.bulk = b"x" * 2_000_000

    Renamed.__qualname__ = "Question"
    globals()["Question"] = Renamed
    assert pool.apply(receive, (Renamed(),))[0] == "Renamed"
    assert pool.apply(ask) == "connected"


if __name__ == "__main__":
    for func in (ask, shout):  # a loop's variable is a name of the module
        assert callable(func)
    with Pool(1, initializer=connect) as pool:
        for func in (ask, shout):
            assert str(pool.apply(func, ("a",))).endswith("connected"), func
        {"unconcerned": unconcerned, "attribute": attribute, "concerned": concerned}.get(
            sys.argv[1], classes
        )(pool)
    print("done")
