"""Waiting for a result no longer than one wants to, while others' short jobs flow."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import work
from helpers import DEADLINE, Stage, bounded, eventually, only_worker

import poolwatch

pytestmark = pytest.mark.timeout(30)

LATE = 5.0  # seconds that a busy machine may add; others' jobs go on for ever


@pytest.fixture
def pool(make_pool: Callable[..., Any]) -> Any:
    """A pool of three that believes in short jobs, so that who waits helps it along."""
    pool = make_pool(3)
    only_worker(pool)
    pool._core.dispatcher.average = 0.0
    return pool


@pytest.fixture
def blocker(pool: Any, stage: Stage) -> Iterator[Any]:
    """A job that does not end before the test does, in one of the workers."""
    yield pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.let_go(2)


@pytest.fixture
def traffic(pool: Any, blocker: Any, stage: Stage) -> Iterator[None]:
    """Somebody else's short jobs, one upon the other, for as long as the test runs."""
    stage.heard()
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            for job in [pool.apply_async(work.square, (number,)) for number in range(100)]:
                job.wait(DEADLINE)

    thread = threading.Thread(target=go_on)
    thread.start()
    yield
    ended.set()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds it takes until a call raises TimeoutError."""
    begun = time.monotonic()
    with pytest.raises(multiprocessing.TimeoutError):
        bounded(call)
    return time.monotonic() - begun


@pytest.mark.parametrize("timeout", [0, 0.001, 0.05, 0.3])
def test_get_returns_on_time_while_others_jobs_flow(
    pool: Any, blocker: Any, traffic: None, timeout: float
) -> None:
    """Helping does not keep the caller, and does not make it give up early."""
    for _ in range(3):
        assert timeout <= timed(lambda: blocker.get(timeout)) < timeout + LATE
        assert not blocker.ready()


@pytest.mark.parametrize("timeout", [0, 0.001, 0.05, 0.3])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_get_of_a_map_returns_on_time_while_others_jobs_flow(
    pool: Any, traffic: None, stage: Stage, timeout: float, chunksize: int
) -> None:
    """The same for a map of which one item does not end."""
    items = [("late", stage.bell, stage.gate), ("fine",)]
    result = pool.map_async(work.play, items, chunksize)
    assert timeout <= timed(lambda: result.get(timeout)) < timeout + LATE
    assert timeout <= timed(lambda: result.outcomes(timeout)) < timeout + LATE
    begun = time.monotonic()
    result.wait(timeout)
    assert timeout <= time.monotonic() - begun < timeout + LATE
    assert not result.ready()
    stage.let_go(2)  # the other job waits at the same gate
    with pytest.raises(ValueError, match="late"):
        result.get(DEADLINE)


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -0.5, float("-inf")])
def test_no_time_left_is_an_error_at_once(
    pool: Any, blocker: Any, stage: Stage, timeout: float
) -> None:
    """Zero and less ask whether the result is there; it is not."""
    result = pool.map_async(work.play, [("late", stage.bell, stage.gate)])
    assert timed(lambda: blocker.get(timeout)) < LATE
    assert timed(lambda: result.get(timeout)) < LATE
    blocker.wait(timeout)
    result.wait(timeout)
    assert not blocker.ready()


@pytest.mark.parametrize("timeout", [0, -1, 0.5, None, float("inf")])
def test_result_that_is_there_needs_no_time(pool: Any, timeout: float | None) -> None:
    """What has come is given whatever the timeout."""
    job = pool.apply_async(work.square, (3,))
    result = pool.map_async(work.square, [1, 2])
    job.wait(DEADLINE)
    result.wait(DEADLINE)
    assert job.get(timeout) == 9
    assert result.get(timeout) == [1, 4]


@pytest.mark.parametrize("timeout", ["x", "1", b"1", [1], True, 1j])
def test_timeout_that_is_no_number_is_refused(
    pool: Any, blocker: Any, stage: Stage, timeout: Any
) -> None:
    """The error names the argument, and the job goes on."""
    result = pool.map_async(work.play, [("late", stage.bell, stage.gate)])
    for handle in (blocker, result):
        with pytest.raises(TypeError, match="timeout"):
            handle.get(timeout)
        with pytest.raises(TypeError, match="timeout"):
            handle.wait(timeout)
        assert not handle.ready()


def test_nan_is_refused(pool: Any, blocker: Any) -> None:
    """No number of seconds is not a number of seconds."""
    with pytest.raises(ValueError, match="timeout"):
        blocker.get(float("nan"))


def test_waiting_threads_all_get_their_results(pool: Any) -> None:
    """Four threads that submit and wait one by one, helping each other's jobs along."""
    sums: list[int] = []

    def one_by_one() -> None:
        sums.append(sum(pool.apply_async(work.square, (n,)).get(DEADLINE) for n in range(300)))

    threads = [threading.Thread(target=one_by_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sums == [sum(n * n for n in range(300))] * 4


def test_long_jobs_after_tiny_ones_all_run_at_once(make_pool: Any, stage: Stage) -> None:
    """However short the jobs before were: none waits behind a long one while a worker is idle."""
    pool = make_pool(7)
    for _ in range(5):
        pool.map(work.square, range(300), chunksize=1)
    eventually(lambda: [worker.phase for worker in pool.workers] == ["idle"] * 7)
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(7)]
    assert len(set(stage.heard_pids(7))) == 7
    stage.let_go(7)
    for job in jobs:
        job.get(DEADLINE)


# -- signals -----------------------------------------------------------------------------------


class Heard(Exception):
    """What a signal handler raises."""


WAITS: dict[str, Callable[[Any, Any], object]] = {
    "get": lambda pool, job: job.get(),
    "wait": lambda pool, job: job.wait(60),
    "map": lambda pool, job: pool.map(work.square, [2]),
    "imap": lambda pool, job: list(pool.imap(work.square, [2])),
    "as_completed": lambda pool, job: list(poolwatch.as_completed([job])),
    "join": lambda pool, job: (pool.close(), pool.join()),
    "block": lambda pool, job: [pool.apply_async(work.square, (n,)) for n in range(9)],
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_that_does_not_end_the_sleep_is_heard(
    make_pool: Callable[..., Any], stage: Stage, wait: str
) -> None:
    """One that another thread receives stands for one that comes just before the sleep."""
    pool = make_pool(1, max_pending=3, block=True)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()

    def handler(signum: int, frame: object) -> None:
        raise Heard

    def receive() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        status = Path(f"/proc/self/task/{threading.main_thread().native_id}/stat")
        seen, end = 0, time.monotonic() + DEADLINE
        while seen < 5 and time.monotonic() < end:  # it sleeps, and not for a moment only
            time.sleep(0.01)
            sleeps = status.read_text().rpartition(")")[2].split()[0] == "S"
            seen = seen + 1 if sleeps else 0
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    receiver = threading.Thread(target=receive)
    releaser = threading.Timer(DEADLINE, stage.let_go)
    try:
        receiver.start()
        releaser.start()
        with pytest.raises(Heard):
            WAITS[wait](pool, job)
        assert releaser.is_alive()
    finally:
        signal.signal(signal.SIGUSR2, before)
        releaser.cancel()
        releaser.join()
        receiver.join()
        pool.terminate()
