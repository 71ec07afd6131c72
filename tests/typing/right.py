"""Right programs, in which a type checker finds nothing; it also finds the types that they say."""

from __future__ import annotations

import concurrent.futures
import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import get_context
from typing import Any, TypeVar

from typing_extensions import assert_type

from poolwatch import ApplyResult, IMapIterator, MapResult, Pool, ProcessPoolExecutor

T = TypeVar("T")


def one(a: int) -> str:
    return str(a)


def defaults(a: int, b: int = 2, c: str = "") -> str:
    return f"{a}{b}{c}"


def any_number(head: str, *rest: int) -> bytes:
    return bytes(rest)


def named(a: int, *, key: int = 3, **more: object) -> float:
    return float(a + key)


def must_be_named(a: int, *, key: int) -> float:
    return float(a + key)


def displays(a: str, b: list[str | None], c: dict[str, object]) -> bytes:
    return a.encode()


def optional(a: int | None, b: list[float]) -> str:
    return f"{a}{b}"


def same(a: T, b: T) -> T:
    return a


class Point:
    def __init__(self, x: int, label: str = "") -> None:
        self.x = x

    def moved(self, by: int) -> float:
        return float(self.x + by)

    @classmethod
    def origin(cls, label: str) -> Point:
        return cls(0, label)

    @staticmethod
    def distance(a: float, b: float) -> float:
        return abs(a - b)

    def __call__(self, factor: int) -> bytes:
        return bytes(self.x * factor)


def on_text(text: str) -> None:
    pass


def on_error(error: BaseException) -> None:
    pass


class Quiet(Pool):
    """A pool of somebody's own."""


def single_jobs(pool: Pool) -> None:
    assert_type(pool.apply_async(one, (1,)), ApplyResult[str])
    assert_type(pool.apply_async(one, (1,)).get(), str)
    assert_type(pool.apply_async(one, (True,)).get(5), str)
    assert_type(pool.apply(one, (1,)), str)
    assert_type(pool.apply_async(func=one, args=(1,)).get(), str)
    assert_type(pool.apply_async(defaults, (1,)).get(), str)
    assert_type(pool.apply_async(defaults, (1, 2)).get(), str)
    assert_type(pool.apply_async(defaults, (1, 2, "c")).get(), str)
    assert_type(pool.apply_async(any_number, ("a",)).get(), bytes)
    assert_type(pool.apply_async(any_number, ("a", 1, 2, 3)).get(), bytes)
    assert_type(pool.apply_async(named, (1,)).get(), float)
    assert_type(pool.apply_async(named, (1,), {"key": 2}).get(), float)
    assert_type(pool.apply_async(must_be_named, (1,), {"key": 2}).get(), float)
    assert_type(pool.apply_async(one, kwds={"a": 3}).get(), str)
    assert_type(pool.apply_async(one, (1,), {}).get(), str)
    assert_type(pool.apply_async(one, (), {"a": 1}).get(), str)
    assert_type(pool.apply_async(optional, (None, [1, 2])).get(), str)
    assert_type(pool.apply_async(displays, ("a", [], {})).get(), bytes)
    assert_type(pool.apply_async(displays, ("a", ["b"], {"c": 1})).get(), bytes)


def callables(pool: Pool, point: Point) -> None:
    assert_type(pool.apply_async(Point, (1,)).get(), Point)
    assert_type(pool.apply_async(Point, (1, "a")).get(), Point)
    assert_type(pool.apply_async(point.moved, (1,)).get(), float)
    assert_type(pool.apply_async(Point.moved, (point, 1)).get(), float)
    assert_type(pool.apply_async(Point.origin, ("a",)).get(), Point)
    assert_type(pool.apply_async(Point.distance, (1, 2.5)).get(), float)
    assert_type(pool.apply_async(point, (2,)).get(), bytes)
    assert_type(pool.apply_async(functools.partial(defaults, 1), (2,)).get(), str)
    assert_type(pool.apply_async(functools.partial(one, 1)).get(), str)
    assert_type(pool.apply_async(lambda: 3).get(), int)
    assert_type(pool.apply_async(same, (1, 2)).get(), int)


def builtins(pool: Pool) -> None:
    assert_type(pool.apply_async(int, ("3",)).get(), int)
    assert_type(pool.apply_async(str, (3,)).get(), str)
    assert_type(pool.apply_async(bytes, (3,)).get(), bytes)
    assert_type(pool.apply_async(len, ("abc",)).get(), int)
    assert_type(pool.apply_async(sum, ([1, 2],)).get(), int)
    assert_type(pool.apply_async(divmod, (7, 2)).get(), tuple[int, int])
    assert_type(pool.apply_async(range, (3,)).get(), range)
    assert_type(pool.apply_async(math.sqrt, (3,)).get(), float)
    assert_type(pool.apply_async(isinstance, (3, int)).get(), bool)
    pool.apply_async(max, (1, 2)).get()
    pool.apply_async(max, ([1, 2],)).get()
    pool.apply_async(pow, (2, 3)).get()
    pool.apply_async(operator.add, (1, 2)).get()
    pool.apply_async(print, ("a", 3)).get()
    pool.apply_async(sorted, ([3, 1],), {"reverse": True}).get()
    pool.apply_async(open, ("name",)).get()
    pool.apply_async(getattr, (3, "real")).get()


def arguments_from_elsewhere(
    pool: Pool, anything: Any, numbers: tuple[int, ...], whatever: tuple[Any, ...], row: list[int]
) -> None:
    pair = (1, 2)
    assert_type(pool.apply_async(defaults, pair).get(), str)
    assert_type(pool.apply_async(defaults, numbers).get(), str)
    assert_type(pool.apply_async(defaults, whatever).get(), str)
    assert_type(pool.apply_async(defaults, anything).get(), str)
    assert_type(pool.apply_async(defaults, row).get(), str)
    assert_type(pool.apply_async(defaults, [1, 2]).get(), str)
    assert_type(pool.apply_async(defaults, iter(row)).get(), str)
    assert_type(pool.apply_async(one, tuple(row)).get(), str)
    assert_type(pool.apply_async(one, (anything,)).get(), str)


def functions_from_elsewhere(
    pool: Pool,
    func: Callable[..., T],
    args: Iterable[Any],
    kwds: Mapping[str, Any],
    loose: Callable[..., int],
    anything: Any,
) -> T:
    assert_type(pool.apply_async(loose, (1, "a")).get(), int)
    pool.apply_async(anything, (1, "a")).get()
    assert_type(pool.apply(func, args, kwds), T)
    return pool.apply_async(func, args, kwds).get()


def options(pool: Pool) -> None:
    pool.apply_async(one, (1,), callback=on_text, error_callback=on_error, timeout=3, tag="a")
    pool.apply_async(one, (1,), {}, on_text, on_error)
    pool.apply_async(one, (1,), {}, None, None, None, None, None, 1.5, 3)
    pool.apply_async(one, [1], priority=3, cwd="/", env={"A": "b"})
    pool.apply_async(one, (1,), callback=print, error_callback=print)


def maps(pool: Pool) -> None:
    assert_type(pool.map(one, [1, 2]), list[str])
    assert_type(pool.map(defaults, range(3)), list[str])
    assert_type(pool.map(int, ["1"]), list[int])
    assert_type(pool.map(str, [1], chunksize=1), list[str])
    assert_type(pool.map(max, [[1, 2]]), list[int])
    assert_type(pool.map(functools.partial(defaults, b=3), [1]), list[str])
    assert_type(pool.map(Point, [1]), list[Point])
    assert_type(pool.map(lambda n: n + 1, [1]), list[int])
    assert_type(pool.map_async(one, {1, 2}, callback=print).get(), list[str])
    assert_type(pool.map_async(one, [1]), MapResult[str])
    assert_type(pool.imap(one, [1]), IMapIterator[str])
    assert_type(next(pool.imap(named, [1])), float)
    assert_type(pool.imap(one, iter([1])).next(timeout=3), str)
    assert_type(list(pool.imap_unordered(len, ["a"])), list[int])


def starmaps(pool: Pool, table: dict[int, int]) -> None:
    assert_type(pool.starmap(defaults, [(1, 2), (3, 4)]), list[str])
    assert_type(pool.starmap(defaults, [(1,), (1, 2)]), list[str])
    assert_type(pool.starmap(defaults, [[1, 2]]), list[str])
    assert_type(pool.starmap(defaults, zip([1], [2], strict=False)), list[str])
    assert_type(pool.starmap(defaults, enumerate([1])), list[str])
    assert_type(pool.starmap(defaults, table.items()), list[str])
    assert_type(pool.starmap(defaults, ((n, n) for n in range(3))), list[str])
    assert_type(pool.starmap(optional, [(1, [1, 2])], 3), list[str])
    assert_type(pool.starmap_async(one, [(1,)], callback=print).get(), list[str])
    pool.starmap(pow, [(1, 2)])


def executors(columns: list[list[int]], func: Callable[..., T]) -> T:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        general: concurrent.futures.Executor = executor
        assert_type(list(general.map(one, [1])), list[str])
        assert_type(next(executor.map(one, [1])), str)
        assert_type(list(executor.map(defaults, [1], range(3), timeout=3)), list[str])
        assert_type(list(executor.map(defaults, [1], [2], ["a"], chunksize=4)), list[str])
        assert_type(list(executor.map(defaults, (1, 2))), list[str])
        assert_type(list(executor.map(any_number, "ab", [1], [2], [3])), list[bytes])
        assert_type(list(executor.map(any_number, "a", [1], [2], [3], [4], [5])), list[bytes])
        assert_type(list(executor.map(defaults, *columns)), list[str])
        assert_type(list(executor.map(lambda n: n + 1, [1])), list[int])
        assert_type(list(executor.map(functools.partial(defaults, b=3), [1])), list[str])
        assert_type(list(executor.map(Point, [1], ["a"])), list[Point])
        executor.map(operator.add, [1], [2])
        assert_type(list(executor.map(len, ["a"], buffersize=3)), list[int])
        assert_type(list(executor.map(math.sqrt, [1, 2])), list[float])
        executor.map(pow, [1], [2])
        executor.map(print, [1], ["a"])
        executor.map(str.upper, ["a"])
        for result in executor.map(func, columns):
            return result
    raise LookupError


def contexts() -> None:
    with Pool(2, None, (), 10, get_context("spawn")) as pool:
        pool.close()
    with Quiet(2, initializer=print, initargs=("a", 1), context="fork") as quiet:
        assert_type(quiet.apply(one, (1,)), str)
