"""The items of a chunk by themselves: a runner without a process, an outbox that only collects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from poolwatch import MaybeEncodingError
from poolwatch.transport import codec, frames, ledger
from poolwatch.worker import chunks
from poolwatch.worker.chunks import ChunkRunner

pytestmark = pytest.mark.timeout(30)
SERIAL = 5


class FakeOutbox:
    """Keeps what was sent, with the time."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any, int, int]] = []
        self.times: list[int] = []
        self.quiet: list[bool] = []

    def send(
        self,
        kind: int,
        payload: Any,
        serial: int,
        first: int = 0,
        second: int = 0,
        quiet: bool = False,
    ) -> None:
        self.quiet.append(quiet)
        self.sent.append((kind, payload, serial, first))
        self.times.append(time.monotonic_ns())


class FakeOrders:
    """The signals of the pool, of which there are none unless a test says so.

    Attributes:
        begun: the clock at each block's, or limited item's, beginning.
        on_begin: called then; what it raises is raised in the runner.
    """

    def __init__(self) -> None:
        self.serial = 0
        self.terminating = False
        self.begun = 0
        self.on_begin: Callable[[], None] = lambda: None

    def begin(self, serial: int) -> None:
        self.terminating = False
        self.serial = serial
        self.begun += 1
        self.on_begin()


class Bench:
    """A runner and what it needs; runs chunks and puts their outcomes together."""

    def __init__(self) -> None:
        self.outbox = FakeOutbox()
        self.orders = FakeOrders()
        self.fields = ledger.Row(memoryview(bytearray(ledger.ROW_BYTES))).fields
        self.looks = 0
        self.runner = ChunkRunner(
            self.outbox,  # type: ignore[arg-type]
            self.fields,
            self.orders,  # type: ignore[arg-type]
            self._look,
        )

    def _look(self) -> None:
        self.looks += 1

    def run(
        self,
        func: Callable[..., Any],
        items: list[Any],
        star: bool = False,
        limited: bool = False,
        prompt: bool = False,
    ) -> tuple[list[Any], dict[int, BaseException]]:
        """Return the values by place, and the errors by index."""
        self.fields[ledger.ITEM] = ledger.NO_ITEM
        flags = frames.CHUNK | frames.LIMITED * limited | frames.PROMPT * prompt
        rest = self.runner.run(func, items, star, SERIAL, flags)
        values: list[Any] = []
        errors: dict[int, BaseException] = {}
        for kind, payload, serial, count in self.outbox.sent:
            assert (kind, serial) == (frames.PARTIAL, SERIAL)
            before = len(values)
            self._add(payload, values, errors)
            assert len(values) - before == count > 0
        self._add(rest, values, errors)
        assert len(values) == len(items)
        assert self.orders.serial == 0
        return values, errors

    def _add(self, payload: Any, values: list[Any], errors: dict[int, BaseException]) -> None:
        more, failures = codec.decode(payload, None, False)
        for index, failure in failures.items():
            errors[len(values) + index] = codec.decode_failure(failure)
        values.extend(more)


@pytest.fixture
def bench() -> Bench:
    """A runner of its own."""
    return Bench()


def busy_for(seconds: float) -> None:
    """Use so much time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


both = pytest.mark.parametrize("limited", [False, True])


@both
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1000, 20_000])
def test_values_stand_in_the_order_of_the_items(bench: Bench, count: int, limited: bool) -> None:
    """Blocks of any size and outcomes that left on the way make one list."""
    values, errors = bench.run(lambda item: item * 2, list(range(count)), limited=limited)
    assert values == [item * 2 for item in range(count)]
    assert not errors


@both
def test_item_with_a_star_is_the_arguments(bench: Bench, limited: bool) -> None:
    """With star an item is a tuple that is spread; a wrong one fails by itself."""
    items: list[Any] = [(1, 2), (3,), (5, 6)]
    values, errors = bench.run(lambda left, right: left + right, items, star=True, limited=limited)
    assert values == [3, None, 11]
    assert list(errors) == [1]
    assert isinstance(errors[1], TypeError)


@both
@pytest.mark.parametrize(
    "guilty",
    [
        {0},
        {1},
        {3},
        {4},
        {99},
        {0, 1, 2},
        {3, 4, 5},
        {98, 99},
        set(range(0, 100, 7)),
        set(range(100)),
    ],
)
def test_each_failing_item_fails_at_its_own_place(
    bench: Bench, guilty: set[int], limited: bool
) -> None:
    """An exception costs its item, whether it begins, ends or lies within a block."""

    def call(item: int) -> int:
        if item in guilty:
            raise KeyError(item)
        return item

    values, errors = bench.run(call, list(range(100)), limited=limited)
    assert values == [None if item in guilty else item for item in range(100)]
    assert set(errors) == guilty
    assert all(error.args == (index,) for index, error in errors.items())


@both
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_no_exception_ends_the_chunk(
    bench: Bench, error: type[BaseException], limited: bool
) -> None:
    """Whatever an item raises is its own; nobody has told the chunk to end."""

    def call(item: int) -> int:
        if item == 5:
            raise error
        return item

    values, errors = bench.run(call, list(range(10)), limited=limited)
    assert values[:5] + values[6:] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert list(errors) == [5]
    assert not isinstance(errors[5], MaybeEncodingError)


@both
def test_terminated_chunk_ends(bench: Bench, limited: bool) -> None:
    """SystemExit by a terminate order leaves the runner, and no further item runs."""
    ran: list[int] = []

    def call(item: int) -> None:
        ran.append(item)
        if item == 5:
            bench.orders.terminating = True
            raise SystemExit

    with pytest.raises(SystemExit):
        bench.run(call, list(range(10)), limited=limited)
    assert ran == list(range(6))
    assert bench.orders.serial == 0


@both
def test_traceback_of_an_item_begins_with_its_own_code(bench: Bench, limited: bool) -> None:
    """The runner's frames are not the user's business."""
    _, errors = bench.run(lambda item: item / 0, [1], limited=limited)
    text = str(errors[0].__cause__)
    assert __file__ in text
    assert chunks.__file__ not in text


class Unpicklable:
    """Refuses to be pickled, and says so."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")


@both
@pytest.mark.parametrize("guilty", [{0}, {9}, {3, 4}, set(range(10))])
def test_values_that_do_not_pickle_fail_alone(
    bench: Bench, guilty: set[int], limited: bool
) -> None:
    """What travels with them is not harmed, errors least of all."""

    def call(item: int) -> Any:
        if item == 7:
            raise KeyError(item)
        return Unpicklable() if item in guilty else item

    values, errors = bench.run(call, list(range(10)), limited=limited)
    assert values == [None if item in {*guilty, 7} else item for item in range(10)]
    assert set(errors) == {*guilty, 7}
    assert isinstance(errors[7], KeyError)
    for index in guilty - {7}:
        assert isinstance(errors[index], MaybeEncodingError)
        assert "not me" in str(errors[index])


def test_locks_and_exceptions_that_do_not_pickle(bench: Bench) -> None:
    """An exception that holds a lock is told by its text, and at its own place."""

    def call(item: int) -> Any:
        raise ValueError(threading.Lock(), item)

    values, errors = bench.run(call, [0, 1])
    assert values == [None, None]
    assert set(errors) == {0, 1}


@both
def test_row_says_which_item_has_begun(bench: Bench, limited: bool) -> None:
    """The item's own code finds its index in the row, also behind an item that failed."""

    def call(item: int) -> int:
        seen = int(bench.fields[ledger.ITEM])
        if item % 5 == 3:
            raise KeyError(seen)
        return seen

    items = list(range(500))
    values, errors = bench.run(call, items, limited=limited)
    seen = [errors[item].args[0] if item in errors else values[item] for item in items]
    assert seen == items


@both
def test_orders_act_on_the_items_code_only(bench: Bench, limited: bool) -> None:
    """Signals find the job's serial while an item runs, and none when it has ended."""
    values, _ = bench.run(lambda item: bench.orders.serial, [0] * 50, limited=limited)
    assert values == [SERIAL] * 50
    assert bench.looks > 0


def test_limited_items_run_one_at_a_time(bench: Bench) -> None:
    """Each has a beginning and a clock of its own."""
    clocks: list[int] = []

    def call(item: int) -> None:
        clocks.append(bench.fields[ledger.STARTED_AT])
        busy_for(0.0001)

    bench.run(call, list(range(30)), limited=True)
    assert bench.orders.begun == bench.looks == 30
    assert len(set(clocks)) == 30


def test_blocks_grow_for_quick_items_and_shrink_for_slow_ones(bench: Bench) -> None:
    """Quick items are run many at a time, an item that takes longer is a block of its own."""
    sizes: list[int] = []
    ran = 0

    def note() -> None:
        nonlocal ran
        sizes.append(ran)
        ran = 0

    def call(item: int) -> None:
        nonlocal ran
        ran += 1
        busy_for(0.000005 if item < 3000 else 0.0005)

    bench.orders.on_begin = note
    bench.run(call, list(range(3200)))
    blocks = [*sizes[1:], ran]
    assert sum(blocks) == 3200
    assert blocks[0] == 1
    assert 8 < max(blocks) <= 100
    assert blocks[-5:] == [1] * 5


def test_outcomes_leave_within_about_a_millisecond(bench: Bench) -> None:
    """With items of 300 us no outcome waits for many others."""
    clocks: list[int] = []

    def call(item: int) -> int:
        busy_for(0.0003)
        clocks.append(time.monotonic_ns())
        return item

    values, _ = bench.run(call, list(range(40)))
    assert values == list(range(40))
    assert len(bench.outbox.sent) >= 8
    ended = 0
    for (_, _, _, count), when in zip(bench.outbox.sent, bench.outbox.times, strict=True):
        # Measured in items, so that a busy machine does not matter: all that had ended have left.
        ended += count
        assert ended == sum(clock <= when for clock in clocks)
        assert count <= 4


@pytest.mark.parametrize("prompt", [False, True])
def test_parent_is_woken_for_outcomes_where_it_asked_for_that(bench: Bench, prompt: bool) -> None:
    """Who waits for the whole map is not woken for a part of it."""
    bench.run(lambda item: busy_for(0.0003), list(range(12)), prompt=prompt)
    assert bench.outbox.quiet
    assert set(bench.outbox.quiet) == {not prompt}


class Raised(Exception):
    """What a handler of the user's own raises."""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_handler_between_two_items_shifts_nothing(bench: Bench, at: int) -> None:
    """An exception before any item of a block has begun belongs to none; all of them run."""
    blocks = 0

    def raise_once() -> None:
        nonlocal blocks
        blocks += 1
        if blocks == at + 1:
            raise Raised

    bench.orders.on_begin = raise_once
    values, errors = bench.run(lambda item: item, list(range(100)))
    assert values == [None if item in errors else item for item in range(100)]
    assert len(errors) <= 1
    assert all(isinstance(error, Raised) for error in errors.values())


def test_exception_after_an_item_has_returned_stays_with_it(bench: Bench) -> None:
    """One that hits between an item's value and the next item does not move the others."""

    raised = False

    class Fields:
        """The row; storing ITEM of the sixth item is interrupted once."""

        def __getitem__(self, index: int) -> int:
            return int(bench.fields[index])

        def __setitem__(self, index: int, value: int) -> None:
            nonlocal raised
            if index == ledger.ITEM and value == 6 and not raised:
                raised = True
                raise Raised
            bench.fields[index] = value

    bench.runner._fields = Fields()  # type: ignore[assignment]
    values, errors = bench.run(lambda item: item, list(range(12)))
    assert raised
    assert list(errors) == [5]
    assert values == [*range(5), None, *range(6, 12)]


def test_outcomes_leave_also_when_items_turn_slow(bench: Bench) -> None:
    """Items that take longer than those before them do not keep a whole block's outcomes back."""
    ended = 0
    waiting: list[int] = []

    def call(item: int) -> None:
        nonlocal ended
        if item >= 20_000:
            busy_for(0.002)
            waiting.append(ended - sum(count for *_, count in bench.outbox.sent))
        ended += 1

    bench.run(call, list(range(20_200)))
    assert waiting[-1] <= 5
