"""Wrong programs: a type checker finds something in each line that is marked, and in no other."""

from __future__ import annotations

import math

from right import Point, any_number, defaults, must_be_named, named, on_text, one, optional

from poolwatch import Pool, ProcessPoolExecutor


def on_number(number: int) -> None:
    pass


def single_jobs(pool: Pool, point: Point) -> None:
    pool.apply_async(one, ("a",))  # wrong
    pool.apply(one, ("a",))  # wrong
    pool.apply_async(one, (1, "a"))  # wrong
    pool.apply_async(one, (None,))  # wrong
    pool.apply_async(one)  # wrong
    pool.apply(one)  # wrong
    pool.apply_async(defaults, ("a", 1))  # wrong
    pool.apply_async(defaults, (1, 2, 3))  # not found: could be a tuple of any length
    pool.apply_async(one, (1, 2))  # not found: likewise
    pool.apply(one, ())  # not found: likewise
    pool.apply_async(optional, ("a", 1))  # wrong
    pool.apply_async(named, ("a",))  # wrong
    pool.apply_async(must_be_named, (1,))  # wrong
    pool.apply_async(any_number, ("a", b""))  # wrong
    pool.apply_async(any_number, ("a", "b"))  # not found: likewise
    pool.apply_async(Point, ("a",))  # wrong
    pool.apply_async(point.moved, ("a",))  # wrong
    pool.apply_async(point, ("a",))  # wrong
    pool.apply_async(math.sqrt, ("a",))  # wrong
    pool.apply_async(one, 1)  # wrong
    pool.apply_async(one, "a")  # wrong
    pool.apply_async(3, (1,))  # wrong


def options(pool: Pool) -> None:
    pool.apply_async(one, (1,), callback=on_text)
    pool.apply_async(one, (1,), callback=on_number)  # wrong
    pool.apply_async(one, (1,), nonsense=3)  # wrong
    pool.apply_async(one, (1,), timeout="3")  # wrong


def results(pool: Pool) -> None:
    number: int = pool.apply_async(one, (1,)).get()  # wrong
    numbers: list[int] = pool.map(one, [1])  # wrong
    print(number, numbers)


def maps(pool: Pool) -> None:
    pool.map(one, ["a"])  # wrong
    pool.map_async(one, ["a"])  # wrong
    pool.imap(one, ["a"])  # wrong
    pool.imap_unordered(one, ["a"])  # wrong
    pool.starmap(defaults, [("a", 1)])  # wrong
    pool.starmap_async(defaults, [("a", 1)])  # wrong
    pool.map(one, 3)  # wrong


def executors(executor: ProcessPoolExecutor) -> None:
    executor.submit(one, "a")  # wrong
    executor.map(one, ["a"])  # wrong
    executor.map(one, [1], [2])  # wrong
    executor.map(defaults, ["a"], [1])  # wrong
    executor.map(defaults, [1], [2], [3])  # wrong
    executor.map(one, 3)  # wrong
    executor.map(one, [1], nonsense=3)  # wrong
    number: int = next(executor.map(one, [1]))  # wrong
    print(number)
