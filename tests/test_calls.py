"""How calls travel: the function remembered by its pickle, the arguments behind it."""

from __future__ import annotations

import functools
import importlib
import operator
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import call_work
import pytest
import work
from helpers import DEADLINE, only_worker

from poolwatch.snapshot import Snapshot
from poolwatch.transport import bulk, calls, codec
from poolwatch.transport.bulk import Bulk
from poolwatch.transport.calls import Functions

pytestmark = pytest.mark.timeout(30)


class Odd(int):
    """An int that is none of the plain types."""


def round_trip(
    functions: Functions, func: Any, args: tuple[Any, ...], kwds: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """Send a call as the pool does, and take it apart as a worker does."""
    head, payload, _ = Snapshot().encode(func, args, kwds)
    if isinstance(payload, Bulk):
        return functions.decode(head, payload.table, payload.duplicate(), True)
    return functions.decode(head, payload, None, False)


# -- by themselves ----------------------------------------------------------------------------

ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1, 2.5, True, "text", b"bytes", None), {}),
    ((None,), {}),
    (((),), {}),
    (([1, {}],), {}),
    (([(1,), {"a": 2}],), {}),
    (([1, 2], {"a": 3}), {}),
    ((Odd(3),), {}),
    ((), {"right": 1}),
    (((1,), {}), {"right": [1]}),
    ((b"x" * (bulk.THRESHOLD - 100),), {}),
    ((b"x" * (2 * bulk.THRESHOLD),), {}),
    ((b"x" * bulk.THRESHOLD, [1]), {}),
    ((), {"data": b"x" * (2 * bulk.THRESHOLD)}),
    ((bytearray(100_000), 7), {"more": bytearray(200_000)}),
]


@pytest.mark.parametrize("number", range(len(ARGUMENTS)))
@pytest.mark.parametrize("func", [call_work.gather, call_work.Counter, lambda *args: args])
def test_calls_come_back_as_they_were(func: Any, number: int) -> None:
    """Arguments of any kind and size, with a head and without, keep their values and types."""
    args, kwds = ARGUMENTS[number]
    found, found_args, found_kwds = round_trip(Functions(), func, args, kwds)
    assert (found_args, dict(found_kwds)) == (args, kwds)
    assert list(map(type, found_args)) == list(map(type, args))
    if func in (call_work.gather, call_work.Counter):
        assert found is func


def test_function_is_pickled_apart_from_its_arguments() -> None:
    """A function that both sides find by its name has a head of its own, also with bulk."""
    for args in ((), (1,), (b"x" * (2 * bulk.THRESHOLD),)):
        head, payload, by_value = Snapshot().encode(call_work.gather, args, {})
        assert pickle.loads(head) is call_work.gather
        assert isinstance(payload, Bulk) is bool(args and args[0] != 1)
        assert not by_value


def test_arguments_that_refuse_raise_their_own_error() -> None:
    """What pickling an argument raises reaches the caller."""

    class Refusing:
        def __reduce__(self) -> Any:
            raise LookupError("not this one")

    with pytest.raises(LookupError, match="not this one"):
        calls.encode_arguments((Refusing(),), {})
    with pytest.raises(LookupError, match="not this one"):
        calls.encode_arguments((1,), {"more": Refusing()})


@pytest.fixture
def module() -> Iterator[Any]:
    """A module that only this test knows."""
    module = types.ModuleType("passing_module")
    sys.modules["passing_module"] = module
    exec("def answer(): return 'first'", vars(module))
    yield module
    sys.modules.pop("passing_module", None)


def test_known_function_is_what_the_module_says_now(module: Any) -> None:
    """A function that was put in another's place, or is gone, is not found in the memory."""
    functions = Functions()
    head = pickle.dumps(module.answer, codec.PROTOCOL)
    first = functions.load(head)
    assert functions.load(head) is first is module.answer
    exec("def answer(): return 'second'", vars(module))
    assert functions.load(head)() == "second"
    assert functions.load(head) is module.answer
    del module.answer
    with pytest.raises(AttributeError):
        functions.load(head)
    module.answer = first
    assert functions.load(head) is first


def test_module_that_was_loaded_again_is_asked_anew(module: Any) -> None:
    """A module taken out of sys.modules and made again has other functions."""
    functions = Functions()
    head = pickle.dumps(module.answer, codec.PROTOCOL)
    functions.load(head)
    other = types.ModuleType("passing_module")
    exec("def answer(): return 'other'", vars(other))
    sys.modules["passing_module"] = other
    assert functions.load(head) is other.answer
    del sys.modules["passing_module"]
    with pytest.raises(ImportError):
        functions.load(head)
    sys.modules["passing_module"] = module
    assert functions.load(head) is module.answer


def test_thousands_of_functions_are_not_remembered_for_ever(module: Any) -> None:
    """More functions than are remembered are all found, in any order, more than once."""
    names = [f"answer{number}" for number in range(600)]
    for name in names:
        exec(f"def {name}(): return {name!r}", vars(module))
    heads = [pickle.dumps(getattr(module, name), codec.PROTOCOL) for name in names]
    functions = Functions()
    for _ in range(2):
        for name, head in zip(names, heads, strict=True):
            assert functions.load(head)() == name
            assert len(functions._known) <= 256
    assert [functions.load(head)() for head in reversed(heads)] == names[::-1]


@pytest.mark.parametrize(
    ("func", "is_found"),
    [
        (call_work.gather, True),
        (os.getpid, True),
        (len, True),
        (call_work.Counter, True),
        (call_work.Counter.doubled, False),
        (call_work.Counter.Inner.tripled, False),
        (call_work.Counter(1).plus, False),
        (call_work.Counter.called, False),
        (call_work.Counter(1), False),
        (functools.partial(call_work.gather, 1), False),
        (lambda: 1, False),
        (call_work.make_closure(1), False),
        (call_work.renamed, False),
        (call_work.lonely, False),
        (call_work.impostor, False),
        ([].append, False),
    ],
)
def test_home_is_where_a_name_leads_back(func: Any, is_found: bool) -> None:
    """Only what its module knows by its own name has a home."""
    home = calls.home_of(func)
    assert (home is not None) is is_found
    if home is not None:
        assert home[1][home[2]] is func
        assert vars(home[0]) is home[1]


# -- with workers -----------------------------------------------------------------------------

CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
    (len, ([1, 2],), 2),
    (operator.add, (1, 2), 3),
    (operator.itemgetter(1), ("ab",), "b"),
    (str.upper, ("a",), "A"),
    ("a".join, (["x", "y"],), "xay"),
    (dict.fromkeys, ("a",), {"a": None}),
    (int, ("12",), 12),
    (functools.partial(call_work.gather, 1, left=2), (3,), ((1, 3), {"left": 2})),
    (functools.partial(functools.partial(work.add, 1), right=2), (), 3),
    (functools.partial(lambda a, b: a * b, 3), (4,), 12),
    (call_work.Counter(5), (1,), 6),
    (call_work.Counter(5).plus, (1,), 6),
    (call_work.Counter.plus, (call_work.Counter(5), 1), 6),
    (call_work.Counter.called, (1,), "class 1"),
    (call_work.Special.called, (1,), "special 1"),
    (call_work.Special(1).called, (1,), "special 1"),
    (call_work.Counter.doubled, (4,), 8),
    (call_work.Counter.Inner.tripled, (4,), 12),
    (call_work.make_closure(10), (1,), 11),
    (call_work.renamed, (1,), 101),
    (call_work.lonely, (1,), 201),
    (call_work.impostor, (1,), 301),
    (lambda *args: args, (1, [2]), (1, [2])),
]


@pytest.mark.every_start_method("forkserver")
def test_everything_that_can_be_called(make_pool: Any) -> None:
    """Functions, methods, objects and classes of every kind, twice each, by turns."""
    pool = make_pool(1)
    jobs = [pool.apply_async(func, args) for _ in range(2) for func, args, _ in CALLS]
    assert [job.get(DEADLINE) for job in jobs] == [value for _, _, value in CALLS] * 2
    pid = only_worker(pool)
    assert pool.apply_async(os.getpid).get(DEADLINE) == pid != os.getpid()


def test_nested_functions_may_call_themselves(make_pool: Any) -> None:
    """A function within a function travels by value, with what it refers to."""

    def factorial(number: int) -> int:
        return number * factorial(number - 1) if number else 1

    pool = make_pool(1)
    assert pool.apply_async(factorial, (5,)).get(DEADLINE) == 120
    assert pool.map_async(factorial, [1, 2, 3]).get(DEADLINE) == [1, 2, 6]


def test_job_that_replaces_a_function_changes_the_next_job(make_pool: Any) -> None:
    """What a job puts in a function's place is what the worker's next job calls."""
    pool = make_pool(1)
    assert pool.apply_async(call_work.answer).get(DEADLINE) == "first"
    assert pool.apply_async(call_work.replace_answer).get(DEADLINE) == "second"
    assert pool.apply_async(call_work.answer).get(DEADLINE) == "second"
    assert call_work.answer() == "first"


def test_job_that_loads_a_module_anew(make_pool: Any) -> None:
    """The functions of a module that a job has loaded again are the new module's."""
    pool = make_pool(1)
    before = pool.apply_async(work.square, (3,)).get(DEADLINE)
    pool.apply_async(call_work.load_anew, ("work",)).get(DEADLINE)
    jobs = [pool.apply_async(work.square, (3,)) for _ in range(3)]
    assert [before, *(job.get(DEADLINE) for job in jobs)] == [9] * 4


def test_function_that_the_workers_do_not_know(make_pool: Any, tmp_path: Path) -> None:
    """A module that appeared after the pool, where workers cannot find it, is sent by value."""
    pool = make_pool(1)
    only_worker(pool)
    late = types.ModuleType("late_module")
    sys.modules["late_module"] = late
    try:
        exec("def answer(number=1): return number + base\nbase = 41", vars(late))
        late.Thing = type("Thing", (), {"__module__": "late_module", "value": 7})  # type: ignore[attr-defined]
        for _ in range(2):
            assert pool.apply_async(late.answer).get(DEADLINE) == 42  # type: ignore[attr-defined]
            assert pool.apply_async(late.answer, (2,)).get(DEADLINE) == 43  # type: ignore[attr-defined]
            assert pool.map_async(late.answer, range(5)).get(DEADLINE) == list(range(41, 46))  # type: ignore[attr-defined]
    finally:
        del sys.modules["late_module"]


def test_function_added_to_a_module_that_the_workers_have(make_pool: Any) -> None:
    """A function that a known module got after the pool was made works all the same."""
    pool = make_pool(1)
    only_worker(pool)
    exec("def added(number): return number + 1000", vars(call_work))
    try:
        for _ in range(2):
            assert pool.apply_async(call_work.added, (1,)).get(DEADLINE) == 1001  # type: ignore[attr-defined]
    finally:
        del call_work.added  # type: ignore[attr-defined]


def test_module_that_can_be_imported_later(
    make_pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module written after the pool was made goes by name where it can, else by value."""
    pool = make_pool(1)
    only_worker(pool)
    (tmp_path / "written_later.py").write_text("def answer():\n    return __name__\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    written = importlib.import_module("written_later")
    try:
        assert pool.apply_async(written.answer).get(DEADLINE) == "written_later"
    finally:
        del sys.modules["written_later"]


def test_head_with_a_bulk_argument(make_pool: Any) -> None:
    """A remembered function with arguments as a descriptor, by turns with small ones."""
    pool = make_pool(1)
    for size in (1, 2 * bulk.THRESHOLD, 1, 3 * bulk.THRESHOLD):
        args, kwds = (b"x" * size, [size]), {"more": bytearray(size)}
        assert pool.apply_async(call_work.gather, args, kwds).get(DEADLINE) == (args, kwds)
