"""One outcome that does not unpickle leaves alone those that travelled with it."""

from __future__ import annotations

import pickle
from typing import Any

import faults
import numpy
import pytest
import salvage_work
from faces import FACES
from hypothesis import given, settings
from hypothesis import strategies as st
from salvage_work import WAYS, Colour, Holder, Listed

from poolwatch import MaybeEncodingError, salvage
from poolwatch.transport import codec

REFUSES = faults.RefusesToLoad()


def refuses(value: Any) -> bool:
    """Whether there is something in it that refuses to load."""
    if isinstance(value, faults.RefusesToLoad):
        return True
    if isinstance(value, Holder):
        return refuses(value.held)
    if isinstance(value, dict):
        return any(map(refuses, [*value.keys(), *value.values()]))
    if isinstance(value, (list, tuple)):
        return any(map(refuses, value))
    return False


def assert_salvaged(items: list[Any]) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps((items, {0: b"failure"}), codec.PROTOCOL, buffer_callback=buffers.append)
    pair, failed = salvage.load(data, [buffer.raw() for buffer in buffers])
    values, rest = pair
    assert rest == {0: b"failure"}
    assert failed.keys() == {index for index, item in enumerate(items) if refuses(item)}
    assert {str(error) for error in failed.values()} <= {"this payload refuses to load"}
    expected = [None if index in failed else item for index, item in enumerate(items)]
    assert repr(values) == repr(expected)


PLAIN = st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(Colour)
NESTED = st.recursive(
    PLAIN | st.just(REFUSES) | st.builds(faults.RefusesToLoad),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(), inner, max_size=2)
        | st.builds(Holder, inner)
        | st.builds(Listed, st.lists(inner, max_size=3))
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(NESTED, max_size=12))
def test_whatever_the_items_are(items: list[Any]) -> None:
    """Those with something in them that refuses fail, and no other."""
    assert_salvaged(items)


@settings(deadline=None, max_examples=100)
@given(st.lists(NESTED, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=12))
def test_items_that_share_objects(things: list[Any], picked: list[int]) -> None:
    """Who shares something broken fails too; who shares what is whole does not."""
    assert_salvaged([(n, things[n % len(things)]) for n in picked])


def test_more_items_than_are_put_into_the_list_at_a_time() -> None:
    """The first and the last of each thousand, and one that comes alone behind them."""
    items: list[Any] = [Holder(number) for number in range(3001)]
    for guilty in (0, 999, 1000, 1500, 3000):
        items[guilty] = (guilty, REFUSES)
    assert_salvaged(items)


def test_buffers_out_of_band() -> None:
    """Each array gets its own, also behind one that belongs to an item that fails."""
    big = [numpy.full(3, number) for number in range(4)]
    assert_salvaged([big[0], (big[1], REFUSES), big[2], [big[3], big[1]]])


def test_what_refuses_in_other_ways() -> None:
    """While it is made, while its state is set, while items are put into it; or it is not known."""
    items = list(WAYS.values())
    data = pickle.dumps(([1, *items, 2], {}), codec.PROTOCOL)
    data = data.replace(b"NotKnownHere", b"NotKnownHerf")
    (values, _), failed = salvage.load(data, ())
    assert values == [1, *[None] * len(items), 2]
    assert failed.keys() == set(range(1, len(items) + 1))


def test_what_cannot_be_read_at_all() -> None:
    """It raises, as plain unpickling does."""
    data = pickle.dumps(([1, 2], {}), codec.PROTOCOL)
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        salvage.load(data[:-8], ())


@pytest.mark.parametrize("name", ["map in chunks", "imap in chunks", "imap_unordered in chunks"])
def test_neighbours_in_a_chunk(make_pool: Any, monkeypatch: Any, name: str) -> None:
    """Items so short that their results come together: only the guilty one fails."""
    monkeypatch.setattr(faults, "perform", salvage_work.perform_at_once)
    calls = [(int, number) for number in range(12)]
    calls[5] = (faults.return_refuses_to_load,)
    outcomes = FACES[name]._replace(chunksize=12).outcomes(make_pool(1), calls)
    error = outcomes.pop(5 if 5 in outcomes else -1)[1]
    assert isinstance(error, MaybeEncodingError)
    assert "item 5 of a map" in str(error)
    assert "refuses to load" in str(error)
    assert outcomes == {number: (True, number) for number in range(12) if number != 5}
