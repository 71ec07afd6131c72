"""starmap and starmap_async; what map takes, and how items are divided."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chunk_work
import imap_work
import pytest
import work
from helpers import DEADLINE

from poolwatch import JobDecodingError, MapResult, WorkerLostError

PAIRS = [(number, number + 1) for number in range(50)]
SUMS = [left + right for left, right in PAIRS]


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
@pytest.mark.parametrize("kind", [list, iter, tuple])
def test_items_are_arguments(
    make_pool: Any, chunksize: int | None, kind: Callable[[Any], Any]
) -> None:
    """Each item is taken apart, in chunks as well as alone."""
    pool = make_pool(2)
    assert pool.starmap(work.add, kind(PAIRS), chunksize) == SUMS
    assert pool.starmap(work.add, kind([list(pair) for pair in PAIRS]), chunksize) == SUMS


@pytest.mark.every_start_method
def test_every_start_method(make_pool: Any) -> None:
    """The workers' kind does not matter."""
    assert make_pool(2).starmap(work.add, PAIRS) == SUMS


@pytest.mark.parametrize("chunksize", [None, 1])
def test_by_value(make_pool: Any, chunksize: int | None) -> None:
    """What pickle refuses goes by value."""
    assert make_pool(2).starmap(lambda *args: args, [(), (1,), (1, 2)], chunksize) == [
        (),
        (1,),
        (1, 2),
    ]


def test_starmap_async_calls_back(make_pool: Any) -> None:
    """The list goes to the callback, the first error to the other."""
    pool = make_pool(2)
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    result = pool.starmap_async(work.add, PAIRS, 3, told.put, error_callback=told.put)
    assert isinstance(result, MapResult)
    assert result.get(DEADLINE) == SUMS
    assert result.successful()
    assert told.get(timeout=DEADLINE) == SUMS
    result = pool.starmap_async(
        work.add, [(1, 2), (1, "a")], callback=told.put, error_callback=told.put
    )
    with pytest.raises(TypeError):
        result.get(DEADLINE)
    assert isinstance(told.get(timeout=DEADLINE), TypeError)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_failures_belong_to_their_items(make_pool: Any, chunksize: int) -> None:
    """An item that is no iterable, does not pickle, or has too many elements fails alone."""
    items = [(1, 2), 5, (imap_work.Unpicklable(), 1), (1, 2, 3), (3, 4)]
    outcomes = make_pool(2).starmap_async(work.add, items, chunksize).outcomes(DEADLINE)
    assert [succeeded for succeeded, _ in outcomes] == [True, False, False, False, True]
    assert [value for succeeded, value in outcomes if succeeded] == [3, 7]
    assert all(isinstance(value, TypeError) for succeeded, value in outcomes if not succeeded)


def test_death_costs_the_guilty_item_only(make_pool: Any, tmp_path: Path) -> None:
    """As in map."""
    path = str(tmp_path / "noted")
    items = [((number, 5, path),) for number in range(12)]
    result = make_pool(2).starmap_async(chunk_work.die_at, items, 12)
    outcomes = result.outcomes(DEADLINE)
    assert [succeeded for succeeded, _ in outcomes] == [number != 5 for number in range(12)]
    assert isinstance(outcomes[5][1], WorkerLostError)
    assert work.count_lines(path) == 12


@pytest.mark.parametrize("starmap", [True, False], ids=["starmap", "map"])
def test_bad_arguments_raise_at_the_call(make_pool: Any, starmap: bool) -> None:
    """A wrong argument is told at once, by name, also without items."""
    pool = make_pool(1)
    call = pool.starmap_async if starmap else pool.map_async
    for value, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="chunksize"):
            call(work.add, [], value)
    with pytest.raises(TypeError, match="callable"):
        call(None, PAIRS)
    with pytest.raises(TypeError, match="iterable"):
        call(work.add, 5)
    with pytest.raises(TypeError, match="callback"):
        call(work.add, PAIRS, callback=5)
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        call(work.add, PAIRS)


@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_nothing_gives_nothing(make_pool: Any, chunksize: int | None) -> None:
    """No items: an empty list, and a result that is ready."""
    pool = make_pool(1)
    for items in ([], (), iter([]), {}):
        assert pool.map(work.square, items, chunksize) == []
        assert pool.starmap(work.add, items, chunksize) == []
    assert pool.starmap_async(work.add, []).ready()


@pytest.mark.parametrize("chunksize", [None, 1, 5])
def test_map_of_what_has_no_length(make_pool: Any, chunksize: int | None) -> None:
    """Iterators, sets and dicts are read to their end."""
    pool = make_pool(2)
    squares = [number * number for number in range(30)]
    assert pool.map(work.square, iter(range(30)), chunksize) == squares
    assert sorted(pool.map(work.square, set(range(30)), chunksize)) == squares
    assert pool.map(work.square, dict.fromkeys(range(30)), chunksize) == squares


@pytest.mark.parametrize("starmap", [True, False], ids=["starmap", "map"])
def test_input_that_raises(make_pool: Any, starmap: bool, tmp_path: Path) -> None:
    """The error comes at once, and nothing has run (as in multiprocessing)."""
    path = str(tmp_path / "noted")

    def items() -> Iterator[tuple[str, int]]:
        yield path, 1
        raise KeyError("spoilt")

    pool = make_pool(1)
    for method in (pool.starmap, pool.starmap_async) if starmap else (pool.map, pool.map_async):
        with pytest.raises(KeyError, match="spoilt"):
            method(work.noted, items())
    assert pool.apply(work.square, (3,)) == 9
    assert work.count_lines(path) == 0


@pytest.mark.parametrize("chunksize", [1, 4])
def test_what_does_not_pickle_fails_alone(make_pool: Any, chunksize: int) -> None:
    """Its neighbours in the chunk run."""
    items: list[Any] = [1, 2, imap_work.Unpicklable(), 4]
    outcomes = make_pool(2).map_async(imap_work.type_name, items, chunksize).outcomes(DEADLINE)
    assert [succeeded for succeeded, _ in outcomes] == [True, True, False, True]
    assert isinstance(outcomes[2][1], TypeError)


def test_what_does_not_unpickle_in_the_worker(make_pool: Any) -> None:
    """An item that travels alone fails alone."""
    items = [1, imap_work.Explosive(), 3]
    outcomes = make_pool(2).map_async(imap_work.type_name, items, 1).outcomes(DEADLINE)
    assert [succeeded for succeeded, _ in outcomes] == [True, False, True]
    assert isinstance(outcomes[1][1], JobDecodingError)


@pytest.mark.parametrize(
    ("length", "chunks"), [(1, 1), (8, 8), (9, 5), (16, 8), (17, 6), (1000, 8)]
)
def test_default_chunksize_is_that_of_multiprocessing(
    make_pool: Any, length: int, chunks: int
) -> None:
    """A quarter of a worker's share, rounded up: so many jobs are made."""
    pool = make_pool(2)
    before = pool.apply_async(work.square, (1,)).job_id
    assert len(pool.map(work.square, range(length))) == length
    assert pool.apply_async(work.square, (1,)).job_id - before - 1 == chunks
