"""Thousands of jobs under a rain of kills: every one accounted for, none run twice."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import pytest
import work
from helpers import assert_full_strength, killing, lines

from poolwatch import WorkerLostError

JOBS, THOROUGH_JOBS = 3_000, 20_000
PATIENCE = 200.0  # seconds for all of it on a busy machine; a tenth of that on an idle one


@pytest.mark.timeout(260)
def test_every_job_is_accounted_for_under_a_rain_of_kills(
    make_pool: Any, tmp_path: Any, thorough: bool
) -> None:
    """Results + losses = jobs, each side effect is seen at most once, and the pool is whole."""
    count = THOROUGH_JOBS if thorough else JOBS
    path = str(tmp_path / "begun")
    pool = make_pool(4)
    with killing(pool, lambda: len(lines(path)), 50) as killed:
        jobs = [pool.apply_async(work.noted_slowly, (path, n, 0.001)) for n in range(count)]
        last = pool.apply_async(work.square, (3,))
        last.wait(PATIENCE)
        results, losses = set(), set()
        for number, job in enumerate(jobs):
            try:
                assert job.get(10) == number
                results.add(number)
            except WorkerLostError as error:
                losses.add(number)
                assert error.signal == signal.SIGKILL  # noqa: PT017  every loss, not just one
                assert error.pid in killed  # noqa: PT017
    assert len(results) + len(losses) == count
    assert losses, "the killer has not hit a single job"
    begun = Counter(map(int, lines(path)))
    assert [number for number, times in begun.items() if times > 1] == []
    assert results <= begun.keys()
    assert {job.attempts for job in jobs} == {1}
    assert_full_strength(pool)
