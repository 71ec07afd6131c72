"""imap and imap_unordered: lazy input, results one by one, losses at their positions."""

from __future__ import annotations

import functools
import gc
import itertools
import multiprocessing
import queue
import random
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import chunk_work
import imap_work
import jobs_work
import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, run_script

import poolwatch
from poolwatch import (
    IMapIterator,
    IMapUnorderedIterator,
    JobDecodingError,
    MaybeEncodingError,
    Pool,
    PoolBroken,
    Terminated,
    TimeLimitExceeded,
    TimeoutError,
    WorkerLostError,
)
from poolwatch.progress import DrawnIMapIterator
from poolwatch.transport.bulk import Bulk

BOTH = pytest.mark.parametrize("ordered", [True, False], ids=["imap", "imap_unordered"])
PACKAGE = str(Path(poolwatch.__file__).parent)
CHUNKS = pytest.mark.parametrize("chunksize", [1, 7])


def imap(
    pool: Any, ordered: bool, func: Any, items: Iterable[Any], *args: Any, **options: Any
) -> Any:
    return (pool.imap if ordered else pool.imap_unordered)(func, items, *args, **options)


def generated(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


def outcomes(results: Any) -> list[Any]:
    """All that comes, errors as they are, to the end."""
    found: list[Any] = []
    while True:
        try:
            found.append(results.next(DEADLINE))
        except StopIteration:
            return found
        except TimeoutError as error:
            raise AssertionError(f"nothing comes after {found}") from error
        except Exception as error:  # noqa: BLE001
            found.append(error)


def feeder_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("-feeder")]


class Counted:
    """An endless input that knows how much of it has been taken."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                self.taken = number + 1
                yield number
        finally:
            self.closed = True


# -- results -------------------------------------------------------------------------------------


@BOTH
@CHUNKS
@pytest.mark.parametrize("kind", [list, tuple, generated, set, iter])
def test_every_item_has_its_result(
    make_pool: Any, ordered: bool, chunksize: int, kind: Callable[[Any], Any]
) -> None:
    """imap gives results in input order, imap_unordered each once, whatever the input is."""
    pool = make_pool(2)
    results = imap(pool, ordered, work.square, kind(range(500)), chunksize, buffersize=50)
    assert type(results) is (IMapIterator if ordered else IMapUnorderedIterator)
    found = bounded(lambda: list(results))
    assert (found if ordered else sorted(found)) == [n * n for n in range(500)]


@BOTH
@CHUNKS
@pytest.mark.every_start_method
def test_every_start_method(make_pool: Any, ordered: bool, chunksize: int) -> None:
    """The workers' kind does not matter."""
    results = imap(make_pool(2), ordered, work.square, range(100), chunksize)
    assert sorted(bounded(lambda: list(results))) == [n * n for n in range(100)]


@pytest.mark.parametrize("items", ["abc", b"abc", bytearray(b"abc"), (1, None), {"a": 1}])
def test_items_are_what_iteration_gives(make_pool: Any, items: Any) -> None:
    """Strings and bytes come item by item, a dict by its keys, also in chunks."""
    pool = make_pool(1)
    assert list(pool.imap(work.echo, items)) == list(items)
    assert list(pool.imap(work.echo, items, 2)) == list(items)


@BOTH
@CHUNKS
@pytest.mark.parametrize("items", [[], iter([])], ids=["list", "iterator"])
def test_empty_input(make_pool: Any, ordered: bool, chunksize: int, items: Any) -> None:
    """The end comes at once, and again and again."""
    results = imap(make_pool(1), ordered, work.square, items, chunksize)
    for _ in range(3):
        with pytest.raises(StopIteration):
            results.next(DEADLINE)


@BOTH
@CHUNKS
def test_item_that_raises_stop_iteration(make_pool: Any, ordered: bool, chunksize: int) -> None:
    """It is an error at its position, and not the end of the loop."""
    results = imap(make_pool(1), ordered, jobs_work.stop, range(4), chunksize)
    assert next(results) == 0
    with pytest.raises(RuntimeError, match=r"StopIteration\(1\)") as caught:
        next(results)
    assert isinstance(caught.value.__cause__, StopIteration)
    assert list(results) == [2, 3]


@BOTH
@CHUNKS
def test_iterator_protocol(make_pool: Any, ordered: bool, chunksize: int) -> None:
    """iter() of it is itself; next() and next(timeout) do the same; the end stays the end."""
    results = imap(make_pool(1), ordered, work.square, [3, 3], chunksize)
    assert iter(results) is results
    assert next(results) == 9
    assert results.next(DEADLINE) == 9
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(results)
        with pytest.raises(StopIteration):
            results.next(timeout=0)
    assert "2 taken" in repr(results)


@CHUNKS
def test_imap_waits_for_the_item_that_is_next(make_pool: Any, stage: Stage, chunksize: int) -> None:
    """Later items do not come first; a TimeoutError loses nothing."""
    items = [(number, stage.bell, stage.gate) for number in range(20)]
    results = make_pool(2).imap(imap_work.stay_if_zero, items, chunksize)
    stage.heard()
    for timeout in (0, -1, 0.01):
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout)
    stage.let_go()
    assert outcomes(results) == list(range(20))


def test_imap_unordered_does_not_wait_for_a_slow_item(make_pool: Any, stage: Stage) -> None:
    """What is ready comes, and the slow item last."""
    items = [(number, stage.bell, stage.gate) for number in range(20)]
    results = make_pool(2).imap_unordered(imap_work.stay_if_zero, items)
    assert sorted(results.next(DEADLINE) for _ in range(19)) == list(range(1, 20))
    with pytest.raises(TimeoutError):
        results.next(timeout=0.01)
    stage.let_go()
    assert outcomes(results) == [0]


@BOTH
@CHUNKS
@pytest.mark.parametrize("kind", [list, generated])
def test_many_threads_take_results(
    make_pool: Any, ordered: bool, chunksize: int, kind: Callable[[Any], Any]
) -> None:
    """Each result goes to one thread, and all threads see the end."""
    results = imap(make_pool(2), ordered, work.echo, kind(range(2000)), chunksize, buffersize=60)
    taken: list[list[int]] = [[], [], [], []]
    threads = [threading.Thread(target=mine.extend, args=(results,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(itertools.chain(*taken)) == list(range(2000))
    for mine in taken:
        assert not ordered or chunksize > 1 or mine == sorted(mine)


@CHUNKS
def test_recycled_workers(make_pool: Any, chunksize: int) -> None:
    """Recycling is no loss."""
    pool = make_pool(2, maxtasksperchild=3)
    assert list(pool.imap(work.square, range(60), chunksize)) == [n * n for n in range(60)]


# -- arguments -----------------------------------------------------------------------------------


@BOTH
def test_bad_arguments_raise_at_the_call(make_pool: Any, ordered: bool) -> None:
    """A wrong argument is told at once, by name."""
    pool = make_pool(1)
    for name in ("chunksize", "buffersize"):
        for value, error in ((0, ValueError), (-3, ValueError), (1.5, TypeError), ("2", TypeError)):
            with pytest.raises(error, match=name):
                imap(pool, ordered, abs, [1], **{name: value})
    with pytest.raises(TypeError, match="callable"):
        imap(pool, ordered, 5, [1])
    with pytest.raises(TypeError, match="iterable"):
        imap(pool, ordered, abs, 5)
    with pytest.raises(TypeError, match="timeout"):
        imap(pool, ordered, work.pid_after, [0.0]).next("soon")
    assert not feeder_threads()


@BOTH
def test_closed_pool_refuses(make_pool: Any, ordered: bool) -> None:
    """ValueError at the call, as in multiprocessing, also once it has been terminated."""
    pool = make_pool(1)
    pool.close()
    for end in (pool.join, pool.terminate):
        with pytest.raises(ValueError, match="not running"):
            imap(pool, ordered, abs, [1])
        end()


# -- the window ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("chunksize", "buffersize"), [(1, None), (1, 1), (1, 30), (10, 25), (50, 9)]
)
def test_input_is_taken_a_bounded_way_ahead(
    make_pool: Any, ordered: bool, chunksize: int, buffersize: int | None
) -> None:
    """Never more than buffersize items beyond what the consumer has."""
    pool, counted = make_pool(2), Counted()
    results = imap(pool, ordered, work.echo, counted, chunksize, buffersize=buffersize)
    bound = buffersize or 128 * 2
    for yielded in range(1, 1001):
        next(results)
        assert yielded <= counted.taken <= yielded + bound


@BOTH
@CHUNKS
def test_memory_does_not_grow_with_the_input(
    make_pool: Any, ordered: bool, chunksize: int, thorough: bool
) -> None:
    """Five times as many results of an endless input leave no more behind."""
    count = 20_000 if thorough else 8_000
    results = imap(make_pool(2), ordered, work.echo, itertools.count(), chunksize)
    blocks = []
    for _ in range(5):
        consumed = first_of(results, count)
        assert len(consumed) == count
        del consumed
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert max(blocks[1:]) - blocks[0] < 15_000


def first_of(results: Any, count: int) -> set[int]:
    return set(itertools.islice(results, count))


def test_sequence_is_read_in_the_window_only(make_pool: Any, tmp_path: Path) -> None:
    """A long range costs nothing, has no thread, and only its window runs."""
    path = str(tmp_path / "noted")
    func = functools.partial(work.noted, path)
    results = make_pool(2).imap(func, range(10**12), buffersize=10)
    assert not feeder_threads()
    assert list(itertools.islice(results, 25)) == list(range(25))
    assert work.count_lines(path) <= 35


@BOTH
def test_small_window_keeps_all_workers_busy(make_pool: Any, stage: Stage, ordered: bool) -> None:
    """What has been taken makes room at once, not when the next is asked for."""
    items = [(stage.bell, stage.gate)] * 6
    pool = make_pool(1)
    for kind in (list, generated):
        results = imap(pool, ordered, functools.partial(_ring), kind(items), buffersize=1)
        for _ in items:
            stage.heard()  # the item runs, although nobody asks for it
            stage.let_go()
            results.next(DEADLINE)


def _ring(item: tuple[str, str]) -> int:
    return work.ring_and_wait(*item)


# -- the end of reading --------------------------------------------------------------------------


@BOTH
@CHUNKS
def test_abandoned_iterator_stops_reading(make_pool: Any, ordered: bool, chunksize: int) -> None:
    """When it is collected half-way, its thread ends, and the input is closed."""
    pool, counted = make_pool(2), Counted()
    results = imap(pool, ordered, work.echo, counted, chunksize, buffersize=20)
    for _ in range(50):
        next(results)
    assert feeder_threads()
    del results
    eventually(lambda: not feeder_threads())
    assert counted.closed
    assert counted.taken <= 50 + 20
    pool.close()
    bounded(pool.join)


def test_abandoned_sequence_is_not_read_on(make_pool: Any, tmp_path: Path) -> None:
    """A list is not run to its end for an iterator that is gone."""
    path = str(tmp_path / "noted")
    pool = make_pool(2)
    results = pool.imap(functools.partial(work.noted, path), range(1000), buffersize=10)
    assert next(results) == 0
    del results
    pool.close()
    bounded(pool.join)
    assert work.count_lines(path) <= 11


@BOTH
@CHUNKS
@pytest.mark.parametrize("kind", [list, generated])
def test_dropped_at_once_runs_for_its_effects(
    make_pool: Any, tmp_path: Path, ordered: bool, chunksize: int, kind: Callable[[Any], Any]
) -> None:
    """Nobody wants the results: all of the input runs all the same, as in multiprocessing."""
    path = str(tmp_path / "noted")
    pool = make_pool(2)
    func = functools.partial(work.noted, path)
    imap(pool, ordered, func, kind(range(300)), chunksize, buffersize=20)
    eventually(lambda: work.count_lines(path) == 300)
    eventually(lambda: not feeder_threads())


@BOTH
@CHUNKS
@pytest.mark.parametrize("kind", [list, generated])
def test_join_before_results_are_taken(
    make_pool: Any, ordered: bool, chunksize: int, kind: Callable[[Any], Any]
) -> None:
    """close(), join(), and only then the results: as in multiprocessing."""
    pool = make_pool(2)
    results = imap(pool, ordered, work.echo, kind(range(300)), chunksize, buffersize=20)
    pool.close()
    bounded(pool.join)
    assert sorted(results) == list(range(300))


@BOTH
@pytest.mark.parametrize("kind", [list, generated])
def test_close_lets_the_input_be_read_to_its_end(
    make_pool: Any, ordered: bool, kind: Callable[[Any], Any]
) -> None:
    """A closed pool still takes what its imap has not read yet."""
    pool = make_pool(2)
    results = imap(pool, ordered, work.echo, kind(range(300)), buffersize=20)
    first = next(results)
    pool.close()
    assert sorted([first, *results]) == list(range(300))
    bounded(pool.join)


def test_iterator_keeps_its_pool(nothing_left_over: Any) -> None:
    """A pool that only an iterator knows is not collected before the end."""
    results = Pool(1).imap(work.square, range(100), buffersize=5)
    gc.collect()
    with pytest.warns(ResourceWarning, match="unclosed"):
        assert list(results) == [n * n for n in range(100)]


def test_errors_do_not_keep_the_iterator() -> None:
    """The traceback of a job's error leads to the iterator, and still nothing is left of it."""
    pool = Pool(1, timeout=0.2)
    results = pool.imap(imap_work.slow_if_three, range(5))
    assert len(outcomes(results)) == 5
    gone = weakref.ref(results)
    pool.terminate()
    del pool, results
    gc.collect()
    assert gone() is None


# -- input that waits ----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("buffersize", [None, 1, 2])
def test_input_may_depend_on_results(make_pool: Any, ordered: bool, buffersize: int | None) -> None:
    """A crawl: what is found becomes input."""
    found: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    found.put(1)
    results = imap(make_pool(2), ordered, work.echo, iter(found.get, None), buffersize=buffersize)
    seen = []
    for number in results:
        seen.append(number)
        if number < 60:
            found.put(number + 1)
        else:
            found.put(None)
    assert seen == list(range(1, 61))


@BOTH
def test_results_come_while_the_input_waits(make_pool: Any, ordered: bool) -> None:
    """An input that blocks holds nothing up."""
    go = threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        assert go.wait(DEADLINE)
        yield from range(3, 6)

    results = imap(make_pool(2), ordered, work.echo, items())
    assert sorted(results.next(DEADLINE) for _ in range(3)) == [0, 1, 2]
    with pytest.raises(TimeoutError):
        results.next(0.01)
    go.set()
    assert sorted(outcomes(results)) == [3, 4, 5]


# -- errors --------------------------------------------------------------------------------------


@BOTH
@CHUNKS
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_input_that_raises_half_way(
    make_pool: Any, ordered: bool, chunksize: int, error: type[BaseException]
) -> None:
    """The items before are delivered, then the error, then the end."""

    def items() -> Iterator[int]:
        yield from range(25)
        raise error("spoilt")

    results = imap(make_pool(2), ordered, work.echo, items(), chunksize)
    assert sorted(results.next(DEADLINE) for _ in range(25)) == list(range(25))
    with pytest.raises(error, match="spoilt"):
        results.next(DEADLINE)
    assert outcomes(results) == []


@BOTH
@pytest.mark.parametrize("kind", [list, generated])
@CHUNKS
def test_failures_belong_to_their_items(
    make_pool: Any, ordered: bool, chunksize: int, kind: Callable[[Any], Any]
) -> None:
    """Whatever goes wrong with an item comes at its position, and the iterator goes on."""
    items: list[Any] = [*range(9), imap_work.Unpicklable(), 10]
    found = outcomes(imap(make_pool(2), ordered, imap_work.misbehave, kind(items), chunksize))
    assert len(found) == 11
    errors = {3: WorkerLostError, 5: KeyError, 7: MaybeEncodingError, 9: TypeError}
    if ordered:
        for number, outcome in enumerate(found):
            expected = errors.get(number, int)
            assert isinstance(outcome, expected), (number, outcome)
    assert sorted(value for value in found if isinstance(value, int)) == [0, 1, 2, 4, 6, 8, 10]
    kinds = Counter(type(value) for value in found if not isinstance(value, int))
    assert kinds == Counter(errors.values())


@BOTH
def test_what_does_not_unpickle_fails_its_own_item(make_pool: Any, ordered: bool) -> None:
    """A result here, or an argument in the worker."""
    pool = make_pool(2)
    found = outcomes(imap(pool, ordered, imap_work.misbehave, [8, 9, 10]))
    assert {value for value in found if isinstance(value, int)} == {8, 10}
    assert sum(isinstance(value, MaybeEncodingError) for value in found) == 1
    items = [1, imap_work.Explosive(), 2]
    found = outcomes(imap(pool, ordered, imap_work.type_name, items))
    assert [value for value in found if isinstance(value, str)] == ["int", "int"]
    assert sum(isinstance(value, JobDecodingError) for value in found) == 1


@BOTH
@pytest.mark.parametrize("guilty", [0, 7, 19])
def test_death_in_a_chunk_costs_the_guilty_item_only(
    make_pool: Any, tmp_path: Path, ordered: bool, guilty: int
) -> None:
    """Items before keep their results, items behind run elsewhere, and none runs twice."""
    path = str(tmp_path / "noted")
    items = [(number, guilty, path) for number in range(20)]
    found = outcomes(imap(make_pool(2), ordered, chunk_work.die_at, items, chunksize=20))
    lost = [value for value in found if isinstance(value, WorkerLostError)]
    assert len(lost) == 1
    assert not ordered or found.index(lost[0]) == guilty
    found.remove(lost[0])
    assert sorted(found) == [number for number in range(20) if number != guilty]
    assert Counter(Path(path).read_text().split()) == {str(number): 1 for number in range(20)}


def test_results_of_a_chunk_come_before_its_end(make_pool: Any, stage: Stage) -> None:
    """A slow item does not hold back those before it in its chunk."""
    items = [(number, stage.bell, stage.gate) for number in (1, 2, 3)]
    pool = make_pool(1)
    # Outcomes leave about every millisecond, between two items.
    results = pool.imap(_slow_last, [*items, (0, stage.bell, stage.gate)], chunksize=4)
    assert results.next(DEADLINE) == 1
    stage.heard()
    stage.let_go()
    assert outcomes(results) == [2, 3, 0]


def _slow_last(item: tuple[int, str, str]) -> int:
    chunk_work.busy_for(0.005)
    return imap_work.stay_if_zero(item)


@BOTH
@pytest.mark.parametrize("chunksize", [1, 6])
def test_limit_holds_for_each_item(make_pool: Any, ordered: bool, chunksize: int) -> None:
    """The pool's limit ends the item that takes too long, and it alone."""
    pool = make_pool(2, timeout=0.4)
    found = outcomes(imap(pool, ordered, imap_work.slow_if_three, range(6), chunksize))
    assert sorted(value for value in found if isinstance(value, int)) == [0, 1, 2, 4, 5]
    (error,) = (value for value in found if not isinstance(value, int))
    assert isinstance(error, TimeLimitExceeded)
    assert not ordered or found.index(error) == 3


@BOTH
@CHUNKS
def test_worker_is_killed_again_and_again(make_pool: Any, ordered: bool, chunksize: int) -> None:
    """Ten losses in a hundred items: ten errors, ninety results."""
    found = outcomes(imap(make_pool(2), ordered, _die_each_ten, range(100), chunksize))
    values = [value for value in found if isinstance(value, int)]
    assert len(found) == 100
    assert len(values) == 90
    assert all(isinstance(value, (int, WorkerLostError)) for value in found)
    if ordered:
        assert [isinstance(value, int) for value in found] == [n % 10 != 4 for n in range(100)]


def _die_each_ten(number: int) -> int:
    chunk_work.busy_for(0.001)
    return int(imap_work.misbehave(3)) if number % 10 == 4 else number


# -- the pool ends -------------------------------------------------------------------------------


@BOTH
@CHUNKS
@pytest.mark.parametrize("kind", [list, generated])
def test_terminated_pool_ends_the_iterator(
    make_pool: Any, stage: Stage, ordered: bool, chunksize: int, kind: Callable[[Any], Any]
) -> None:
    """The consumer that waits gets Terminated, and then the end."""
    pool = make_pool(1)
    items = kind([(stage.bell, stage.gate)] * 100)
    results = imap(pool, ordered, _ring, items, chunksize, buffersize=10)
    stage.heard()
    found: list[Any] = []
    consumer = threading.Thread(target=lambda: found.extend(outcomes(results)))
    consumer.start()
    pool.terminate()
    consumer.join(DEADLINE)
    assert not consumer.is_alive()
    assert found
    assert {type(error) for error in found} == {Terminated}
    assert outcomes(results) == []
    eventually(lambda: not feeder_threads())


def test_terminate_while_the_input_blocks(make_pool: Any) -> None:
    """A generator that never yields again does not keep the consumer."""
    pool, go = make_pool(1), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        go.wait()

    results = pool.imap(work.echo, items())
    assert results.next(DEADLINE) == 1
    pool.terminate()
    with pytest.raises(Terminated):
        results.next(DEADLINE)
    assert outcomes(results) == []
    go.set()


@BOTH
@pytest.mark.parametrize("kind", [list, generated])
def test_broken_pool_ends_the_iterator(
    make_pool: Any, ordered: bool, kind: Callable[[Any], Any]
) -> None:
    """PoolBroken with its cause, and then the end."""
    pool = make_pool(1, work.fail, ("no boot",), max_boot_failures=2)
    try:
        found = outcomes(imap(pool, ordered, work.echo, kind(range(1000)), buffersize=10))
    except PoolBroken as error:  # it was broken before the call
        found = [error]
    assert found
    assert all(isinstance(error, PoolBroken) for error in found)


@pytest.mark.parametrize("kind", ["list", "endless", "waiting"])
def test_interpreter_ends_in_the_middle(kind: str) -> None:
    """Nothing hangs, and nothing is printed that does not belong."""
    assert run_script("unfinished_imap.py", kind) == "left\n"


def test_forked_child_is_refused() -> None:
    """An iterator belongs to the process that has made it."""
    out = run_script("forked_imap.py").splitlines()
    assert "parent process" in out[0]
    assert out[1:] == ["child left", "parent: True"]


# -- Ctrl-C --------------------------------------------------------------------------------------


class Interrupting:
    """Raises KeyboardInterrupt again and again, but only inside the iterator's next()."""

    def __init__(self) -> None:
        self.raised = 0
        self._over = False

    def __enter__(self) -> Interrupting:
        self._before = signal.signal(signal.SIGALRM, self._raise)
        self.again()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over = True  # first, or the handler sets it again
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def again(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.002))

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self._over:
            return
        self.again()
        if frame is None or PACKAGE not in frame.f_code.co_filename:
            return  # perhaps in a callback of the garbage collector, where it would be printed
        while frame is not None:
            if frame.f_code is IMapIterator.next.__code__:
                self.raised += 1
                raise KeyboardInterrupt
            frame = frame.f_back


@BOTH
@CHUNKS
@pytest.mark.parametrize("kind", [list, generated])
def test_interrupted_consumer_loses_nothing(
    make_pool: Any, ordered: bool, chunksize: int, kind: Callable[[Any], Any]
) -> None:
    """Wherever Ctrl-C strikes in next(), each item comes once, and in order."""
    results = imap(make_pool(2), ordered, work.echo, kind(range(20_000)), chunksize, buffersize=90)
    found = []
    with Interrupting() as interrupting:
        while True:
            try:
                found.append(results.next(DEADLINE))
            except KeyboardInterrupt:
                continue
            except StopIteration:
                break
    assert (found if ordered else sorted(found)) == list(range(20_000))
    assert interrupting.raised > 5


@pytest.mark.parametrize("kind", [IMapIterator, DrawnIMapIterator, Bulk])
def test_what_was_never_made_goes_without_a_word(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come before its first attribute is set."""
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    kind.__new__(kind)
    gc.collect()
    assert not heard
