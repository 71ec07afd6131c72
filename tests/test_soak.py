"""Thousands of jobs under a rain of kills: every one accounted for, none run twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from typing import Any

import pytest
import work
from helpers import assert_full_strength, lines

from poolwatch import WorkerLostError

JOBS, THOROUGH_JOBS = 3_000, 20_000
PAUSE = 0.02  # seconds between two kills
PATIENCE = 100.0  # seconds for all of it on a busy machine; a fifth of that on an idle one


class Killer(threading.Thread):
    """Kills a random worker of the pool, again and again, until it is told to stop."""

    def __init__(self, pool: Any) -> None:
        super().__init__(name="killer")
        self._pool = pool
        self._stop_asked = threading.Event()
        self.killed: set[int] = set()

    def run(self) -> None:
        chance = random.Random(1)
        while not self._stop_asked.wait(PAUSE):
            if pids := [worker.pid for worker in self._pool.workers]:
                self._kill(chance.choice(pids))

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if pid in [worker.pid for worker in self._pool.workers]:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    self.killed.add(pid)
            finally:
                os.close(descriptor)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@pytest.mark.timeout(150)
def test_every_job_is_accounted_for_under_a_rain_of_kills(
    make_pool: Any, tmp_path: Any, thorough: bool
) -> None:
    """Results + losses = jobs, each side effect is seen at most once, and the pool is whole."""
    count = THOROUGH_JOBS if thorough else JOBS
    path = str(tmp_path / "begun")
    pool = make_pool(4)
    killer = Killer(pool)
    killer.start()
    try:
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
                assert error.pid in killer.killed  # noqa: PT017
    finally:
        killer.stop()
    assert len(results) + len(losses) == count
    assert losses, "the killer has not hit a single job"
    begun = Counter(map(int, lines(path)))
    assert [number for number, times in begun.items() if times > 1] == []
    assert results <= begun.keys()
    assert {job.attempts for job in jobs} == {1}
    assert_full_strength(pool)
