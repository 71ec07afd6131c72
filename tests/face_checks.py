"""What has to hold when something goes wrong among calls that one face has performed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import work
from faces import FACES, Call, Face, Outcome, Outcomes, pool_behind
from helpers import DEADLINE, assert_full_strength, bounded, lines

COUNT = 12  # calls, in three chunks where they travel in chunks
GUILTY = 5  # the second of the middle chunk

every_face = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


def neighbours(path: Path) -> list[Call]:
    """Calls that note themselves in the file and return their index."""
    return [(work.noted, str(path), index) for index in range(COUNT)]


def performed(
    face: Face, target: Any, calls: list[Call], meanwhile: Callable[[], object] = lambda: None
) -> Outcomes:
    """How the calls end, within the deadline, and while something else happens."""
    with ThreadPoolExecutor(1) as helper:
        happened = helper.submit(meanwhile)
        outcomes = bounded(lambda: face.outcomes(target, calls))
        happened.result(DEADLINE)
    return outcomes


def error_in(outcome: Outcome) -> Any:
    succeeded, error = outcome
    assert not succeeded, f"it has returned {error!r}"
    return error


def errors_in(outcomes: Outcomes) -> list[Any]:
    return [value for succeeded, value in outcomes.values() if not succeeded]


def assert_neighbours_are_well(face: Face, outcomes: Outcomes, path: Path, *guilty: int) -> None:
    """All those that the face tells of have their results, and none has run twice."""
    everyone = [index for index in range(COUNT) if index not in guilty]
    first = everyone[: min(guilty)] if guilty else everyone  # before the first error
    ended = not face.goes_on and bool(errors_in(outcomes))
    told = {index: outcomes[index] for index in outcomes if index in everyone}
    assert told == {index: (True, index) for index in told}
    if set(outcomes) != {-1}:  # else it has told of nothing but the first error
        assert sorted(told) == (first if ended else everyone)
    noted = sorted(map(int, lines(path)))
    assert len(noted) == len(set(noted))
    assert set(noted) >= set(first) if ended else noted == everyone


def assert_goes_on(face: Face, target: Any, path: Path) -> None:
    """The face runs calls, at full strength, as if nothing had happened."""
    assert_full_strength(pool_behind(target))
    outcomes = performed(face, target, neighbours(path))
    assert outcomes == {index: (True, index) for index in range(COUNT)}
    assert_neighbours_are_well(face, outcomes, path)
