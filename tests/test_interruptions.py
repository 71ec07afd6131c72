"""Signal handlers that use the pool at every point of a caller's own part in the pool's work.

Whatever is interrupted: what was submitted ends and gives its value, no job runs twice, the books
are in order afterwards, and the pool goes on. Nobody helps the pool along in the checks, so that a
wake-up which got lost shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import DEADLINE, bounded
from interruptions import USES, Bench, Interrupter, points_of, prepared, sample

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bench(make_pool: Callable[..., Any], tmp_path: Path) -> Iterator[Bench]:
    """A pool to be interrupted, which can be closed in the end."""
    bench = Bench(make_pool, tmp_path / "noted")
    yield bench
    bench.pool.close()
    bounded(lambda: bench.pool.join(DEADLINE))


@pytest.mark.parametrize("use", USES)
def test_handler_may_submit_at_any_point(bench: Bench, use: str, thorough: bool) -> None:
    """A handler that submits jobs and returns disturbs nothing, and its jobs run."""
    reached = 0
    points = points_of(bench, use)[: sample(thorough)]
    for place, turn in points:
        call = prepared(bench, use)
        interrupter = Interrupter(lambda: bench.submit(2), place, turn)
        with interrupter:
            call()
        reached += interrupter.done
        try:
            bench.check()
        except AssertionError as error:
            raise AssertionError(f"used at {place}, turn {turn}") from error
    assert reached >= len(points) // 4
