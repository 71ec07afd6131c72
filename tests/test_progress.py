"""progress=True, imap's outcomes(), and what a death inside a chunk costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jobs_work
import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, lines

import poolwatch
from poolwatch import RetryLost, WorkerLostError

pytestmark = pytest.mark.timeout(30)


class Bar:
    """Stands for tqdm's."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.n = 0
        self.closed = False
        self.seen: list[int] = []

    def update(self, count: int) -> None:
        assert not self.closed
        self.n += count
        self.seen.append(self.n)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    made: list[Bar] = []

    def new_bar(total: int | None) -> Bar:
        made.append(Bar(total))
        return made[-1]

    monkeypatch.setattr("poolwatch.pool_maps.new_bar", new_bar)
    return made


@pytest.mark.parametrize("chunksize", [1, 7])
def test_bar_of_a_map_moves_to_its_end(make_pool: Any, bars: list[Bar], chunksize: int) -> None:
    """map, starmap and both async ones: the bar counts all items and is closed."""
    pool = make_pool(2)
    squares = [n * n for n in range(50)]
    assert pool.map(work.square, range(50), chunksize, progress=True) == squares
    assert pool.starmap(work.add, [(1, 2)] * 50, chunksize, progress=True) == [3] * 50
    assert pool.map_async(work.square, iter(range(50)), chunksize, progress=True).get(DEADLINE)
    pool.starmap_async(work.add, [(1, 2)] * 50, chunksize, progress=True).wait(DEADLINE)
    eventually(lambda: all(bar.closed for bar in bars))
    assert [(bar.total, bar.n) for bar in bars] == [(50, 50)] * 4


def test_bar_moves_while_items_finish(make_pool: Any, bars: list[Bar], stage: Stage) -> None:
    """Items that have finished show before the last one has."""
    pool = make_pool(2)
    roles = [("fine",)] * 5 + [("late", stage.bell, stage.gate)]
    result = pool.map_async(work.play, roles, 1, progress=True)
    stage.heard()
    eventually(lambda: bars[0].n == 5)
    assert not bars[0].closed
    stage.let_go()
    with pytest.raises(ValueError, match="late"):
        result.get(DEADLINE)
    eventually(lambda: bars[0].closed)


def test_bar_is_closed_after_an_error(make_pool: Any, bars: list[Bar]) -> None:
    """Of an item, of the input, of an argument, and with the pool's end."""
    pool = make_pool(1)
    with pytest.raises(ValueError, match="3"):
        pool.map(jobs_work.square_or_fail, range(10), progress=True)
    with pytest.raises(TypeError, match="func"):
        pool.map(None, range(3), progress=True)
    with pytest.raises(ValueError, match="chunksize"):
        pool.imap(work.square, range(3), 0, progress=True)
    with pytest.raises(TypeError, match="progress"):
        pool.map(work.square, range(3), progress="yes")
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.map(work.square, range(3), progress=True)
    assert bars
    assert all(bar.closed for bar in bars)


@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 4])
def test_bar_of_an_imap(make_pool: Any, bars: list[Bar], way: str, chunksize: int) -> None:
    """It moves with each item that is taken; closed at the end, or when the iterator is dropped."""
    pool = make_pool(2)
    imap = getattr(pool, way)
    results = imap(work.square, range(20), chunksize, progress=True)
    assert isinstance(results, poolwatch.IMapIterator)
    first = next(results)
    assert bars[0].n == 1
    assert sorted([first, *results]) == [n * n for n in range(20)]
    assert (bars[0].n, bars[0].total, bars[0].closed) == (20, 20, True)
    outcomes = imap(jobs_work.square_or_fail, iter(range(20)), chunksize, progress=True).outcomes()
    assert sum(succeeded for succeeded, _ in outcomes) == 16
    del outcomes
    assert (bars[1].n, bars[1].total, bars[1].closed) == (20, None, True)
    dropped = imap(work.square, range(20), chunksize, progress=True)
    next(dropped)
    del dropped
    assert bars[2].closed


def test_real_bar(make_pool: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """tqdm's own bar tells the end."""
    pytest.importorskip("tqdm")
    assert make_pool(1).map(work.square, range(30), progress=True)[-1] == 29 * 29
    assert "30/30" in capfd.readouterr().err


def test_without_tqdm_the_error_says_what_to_install(
    make_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImportError at the call; nothing is submitted."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    pool = make_pool(1)
    for way in (pool.map, pool.map_async, pool.imap, pool.imap_unordered):
        with pytest.raises(ImportError, match=r"poolwatch\[progress\]"):
            way(work.square, range(3), progress=True)
    assert not pool._core.dispatcher.unfinished


# -- outcomes of imap --------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3])
def test_outcomes_of_imap_raise_no_items_error(make_pool: Any, chunksize: int) -> None:
    """Failures, also a StopIteration of the item's own, stand among the values."""
    pool = make_pool(2)
    outcomes = list(pool.imap(jobs_work.square_or_fail, range(10), chunksize).outcomes())
    assert [succeeded for succeeded, _ in outcomes] == [n % 5 != 3 for n in range(10)]
    assert [type(value) for succeeded, value in outcomes if not succeeded] == [ValueError] * 2
    stops = list(pool.imap(jobs_work.stop, range(3), chunksize).outcomes())
    assert [succeeded for succeeded, _ in stops] == [True, False, True]
    assert isinstance(stops[1][1], StopIteration)
    unordered = pool.imap_unordered(jobs_work.square_or_fail, range(10), chunksize).outcomes()
    assert sum(succeeded for succeeded, _ in unordered) == 8


def test_inputs_own_error_is_no_outcome(make_pool: Any) -> None:
    """What the input raises is raised, after the outcomes of the items before."""

    def numbers() -> Any:
        yield from range(3)
        raise LookupError("input")

    outcomes = make_pool(1).imap(work.square, numbers()).outcomes()
    assert [next(outcomes) for _ in range(3)] == [(True, 0), (True, 1), (True, 4)]
    with pytest.raises(LookupError, match="input"):
        next(outcomes)


# -- losses inside chunks ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["map", "imap"])
def test_death_in_a_chunk_costs_one_item_with_fail_fast(make_pool: Any, way: str) -> None:
    """Without retries only what had not finished before the death is lost, the rest is run."""
    pool = make_pool(1)
    if way == "map":
        outcomes = pool.map_async(jobs_work.square_or_die, range(20), 20).outcomes(DEADLINE)
    else:
        outcomes = bounded(
            lambda: list(pool.imap(jobs_work.square_or_die, range(20), 20).outcomes())
        )
    lost = [n for n, (succeeded, _) in enumerate(outcomes) if not succeeded]
    # What had finished within the last millisecond shares the guilty item's fate.
    assert lost[-1] == 7
    assert lost == list(range(lost[0], 8))
    assert all(isinstance(outcomes[n][1], WorkerLostError) for n in lost)
    assert [outcomes[n] for n in range(8, 20)] == [(True, n * n) for n in range(8, 20)]


def test_death_in_a_chunk_with_retries_costs_nothing(make_pool: Any, tmp_path: Path) -> None:
    """With RetryLost every item has its value; what was behind the guilty one ran once."""
    path = str(tmp_path / "runs")
    pool = make_pool(1, lost_worker_policy=RetryLost(2))
    items = [(path, n) for n in range(20)]
    assert pool.map(jobs_work.die_once_of, items, 20) == [n * n for n in range(20)]
    runs = [int(line) for line in lines(path)]
    assert all(runs.count(n) == 1 for n in range(8, 20))
    assert runs.count(7) == 2
