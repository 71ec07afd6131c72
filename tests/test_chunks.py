"""Maps whose items travel together: only the guilty item pays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import chunk_work
import pytest
import work
from helpers import DEADLINE

from poolwatch import MaybeEncodingError, RetryLost, TimeLimitExceeded, WorkerLostError


def outcomes_of(result: Any) -> tuple[dict[int, Any], dict[int, BaseException]]:
    """Return the values and the errors of a map, by place."""
    outcomes = list(enumerate(result.outcomes(DEADLINE)))
    values = {index: value for index, (succeeded, value) in outcomes if succeeded}
    errors = {index: value for index, (succeeded, value) in outcomes if not succeeded}
    return values, errors


@pytest.mark.parametrize("guilty", [0, 7, 19])
def test_death_in_a_chunk_costs_the_guilty_item_only(
    make_pool: Any, tmp_path: Path, guilty: int
) -> None:
    """Items before keep their results, items behind run elsewhere, and none runs twice."""
    path = str(tmp_path / "noted")
    pool = make_pool(2)
    items = [(number, guilty, path) for number in range(20)]
    values, errors = outcomes_of(pool.map_async(chunk_work.die_at, items, chunksize=20))
    assert list(errors) == [guilty]
    assert isinstance(errors[guilty], WorkerLostError)
    assert values == {number: number for number in range(20) if number != guilty}
    assert Counter(Path(path).read_text().split()) == {str(number): 1 for number in range(20)}


def test_map_raises_the_loss_after_all_items_are_accounted_for(
    make_pool: Any, tmp_path: Path
) -> None:
    """map() raises the guilty item's loss; the other items have run by then."""
    path = str(tmp_path / "noted")
    items = [(number, 3, path) for number in range(12)]
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        make_pool(2).map(chunk_work.die_at, items, chunksize=12)
    assert work.count_lines(path) == 12


def test_retried_chunk_runs_the_guilty_item_again(make_pool: Any, tmp_path: Path) -> None:
    """With RetryLost(2) the guilty item is started twice, every other item once."""
    path = str(tmp_path / "noted")
    pool = make_pool(2, lost_worker_policy=RetryLost(2))
    items = [(number, 5, path) for number in range(10)]
    values, errors = outcomes_of(pool.map_async(chunk_work.die_at, items, chunksize=10))
    assert list(errors) == [5]
    assert len(values) == 9
    runs = Counter(Path(path).read_text().split())
    assert runs.pop("5") == 2
    assert set(runs.values()) == {1}


def test_limit_holds_for_each_item_of_a_chunk(make_pool: Any) -> None:
    """A chunk may take longer than the limit; the item that does is ended, and it alone."""
    pool = make_pool(1, timeout=0.5)
    items = [(number, 14) for number in range(20)]
    values, errors = outcomes_of(pool.map_async(chunk_work.slow_at, items, chunksize=20))
    assert list(errors) == [14]
    assert isinstance(errors[14], TimeLimitExceeded)
    assert "slow_at" in (errors[14].stack or "")
    assert len(values) == 19


def test_errors_in_a_chunk_belong_to_their_items(make_pool: Any) -> None:
    """An exception, and a value that does not pickle, fail their own items."""
    items = [(number, 4) for number in range(10)]
    values, errors = outcomes_of(make_pool(1).map_async(chunk_work.refuse_at, items, chunksize=10))
    assert list(errors) == [4, 5]
    assert isinstance(errors[4], KeyError)
    assert isinstance(errors[5], MaybeEncodingError)
    assert len(values) == 8


def test_terminated_pool_ends_a_map_under_way(make_pool: Any) -> None:
    """get() of a map does not wait for ever for a pool that is gone."""
    pool = make_pool(1)
    result = pool.map_async(chunk_work.slow_at, [(number, 0) for number in range(5)])
    pool.terminate()
    with pytest.raises(Exception, match="terminated"):
        result.get(DEADLINE)


def test_map_of_lambdas_and_of_nothing(make_pool: Any) -> None:
    """What pickle refuses goes by value, and an empty map is ready at once."""
    pool = make_pool(2)
    assert pool.map(lambda number: number + 1, range(100)) == list(range(1, 101))
    assert pool.map(abs, []) == []
