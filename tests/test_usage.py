"""What the handle tells of what its job has used."""

from __future__ import annotations

import os
from typing import Any

import child_work
import pytest
import work
from helpers import DEADLINE
from hypothesis import given
from hypothesis import strategies as st

from poolwatch.transport import usage

MEGABYTE = 1 << 20
LONG = 0.005  # seconds from which a job's peak of memory is measured
SLACK = 0.03  # seconds; the kernel corrects its division after the fact


def used(pool: Any, func: Any, *args: Any) -> Any:
    job = pool.apply_async(func, args)
    job.wait(DEADLINE)
    return job.usage


def is_unmeasured(found: Any) -> bool:
    """On a busy machine the shortest job may take long."""
    return found.max_rss is None or found.wall > LONG


@pytest.mark.parametrize("func", ["burn", "burn_in_kernel"])
def test_user_and_system_time_are_what_the_kernel_tells_the_job(make_pool: Any, func: str) -> None:
    """The job reads the same counters itself: how finely the kernel divides does not matter."""
    pool = make_pool(1)
    for _ in range(3):
        job = pool.apply_async(child_work.read_own_usage, (func, 0.2))
        user, system = job.get(DEADLINE)
        found = job.usage
        assert found.system == pytest.approx(system, abs=SLACK)
        assert found.user == pytest.approx(user, abs=SLACK)
        assert found.cpu == pytest.approx(found.user + found.system)
        assert found.wall >= found.cpu - SLACK


def test_threads_of_the_job_count(make_pool: Any) -> None:
    """Processor time is the whole process's, not the main thread's."""
    assert used(make_pool(1), child_work.burn_in_thread, 0.2).cpu >= 0.19


def test_waiting_is_no_processor_time(make_pool: Any) -> None:
    """A job after a busy one is not charged with its neighbour's time."""
    pool = make_pool(1)
    used(pool, child_work.burn, 0.3)
    found = used(pool, os.getpid)
    assert found.cpu < 0.1
    assert is_unmeasured(found)


def test_short_jobs_are_not_charged_to_the_long_one_behind_them(make_pool: Any) -> None:
    """Half a second of short jobs in the kernel, then a job that reads its own system time."""
    pool = make_pool(1)
    short = [pool.apply_async(child_work.burn_in_kernel, (0.0005,)) for _ in range(1000)]
    job = pool.apply_async(child_work.read_own_usage, ("burn", 0.05))
    _, system = job.get(2 * DEADLINE)
    assert job.usage.system == pytest.approx(system, abs=SLACK)
    assert sum(each.usage.cpu for each in short) > 0.4


def test_usage_of_a_job_that_fails(make_pool: Any) -> None:
    """Also a failure was worked for; what did not end in its worker has none."""
    pool = make_pool(1)
    assert used(pool, work.fail, "x").wall > 0
    assert used(pool, child_work.die) is None


@pytest.mark.every_start_method
def test_each_job_has_a_peak_of_its_own(make_pool: Any) -> None:
    """A large job's peak is not the next one's; failures and short jobs are measured too."""
    pool = make_pool(1, usage="memory")
    small = used(pool, os.getpid).max_rss
    large = used(pool, child_work.fill, 200 * MEGABYTE).max_rss
    failed = used(pool, child_work.fill_and_fail, 200 * MEGABYTE).max_rss
    after = used(pool, os.getpid).max_rss
    assert large > small + 150 * MEGABYTE
    assert failed > small + 150 * MEGABYTE
    assert 0 < after < large - 100 * MEGABYTE


@pytest.mark.every_start_method
def test_long_jobs_have_a_peak_without_being_asked_for(make_pool: Any) -> None:
    """Of more than 5 ms: the first of a function, and those behind a long one; short ones none."""
    pool = make_pool(1)
    peaks = []
    for size in (200 * MEGABYTE, MEGABYTE, 200 * MEGABYTE):
        peaks.append(used(pool, child_work.fill_for, size, 0.01).max_rss)
        assert is_unmeasured(used(pool, os.getpid))
    assert min(peaks[0], peaks[2]) > peaks[1] + 150 * MEGABYTE
    short = used(pool, child_work.fill_for, 1, 0)
    assert is_unmeasured(short)
    unexpected = used(pool, child_work.fill_for, 1, 0.01)
    assert unexpected.max_rss is None or short.wall > LONG
    assert used(pool, child_work.fill_for, 200 * MEGABYTE, 0.01).max_rss > peaks[1]


def test_peak_comes_with_large_results_and_settings(make_pool: Any) -> None:
    """A result that goes through the stream, and a job with settings, are measured."""
    pool = make_pool(1, usage="memory", contextvars=[child_work.tenant])
    job = pool.apply_async(bytes, (50 * MEGABYTE,), env={"POOLWATCH_A": "1"})
    assert len(job.get(DEADLINE)) == 50 * MEGABYTE
    assert job.usage.max_rss > 50 * MEGABYTE


def test_maps_run_where_memory_is_measured(make_pool: Any) -> None:
    """Chunks and items are none the worse for it."""
    pool = make_pool(2, usage="memory")
    assert pool.map(work.square, range(100), 10) == [n * n for n in range(100)]
    assert pool.map(work.square, range(100), 1) == [n * n for n in range(100)]


@given(st.integers(0, 10**15), st.floats(0, 1))
def test_times_come_out_as_they_went_in(cpu: int, share: float) -> None:
    """Both numbers fit one, to a microsecond and a millionth; it fits 64 bits."""
    system = int(cpu * share)
    number = usage.divided(cpu, system)
    assert 0 <= number < 2**64
    user, kernel = usage.user_and_system(number)
    assert user + kernel == pytest.approx(cpu / 1e9, abs=1.1e-6)
    assert kernel == pytest.approx(system / 1e9, rel=1e-5, abs=cpu / 1e9 * 2e-7 + 2e-6)


@pytest.mark.parametrize(("cpu", "system"), [(0, 5), (-3, 0), (10**20, 10**20), (1000, 5000)])
def test_times_that_make_no_sense_stay_in_bounds(cpu: int, system: int) -> None:
    """Clocks that disagree give no negative time and no error."""
    user, kernel = usage.user_and_system(usage.divided(cpu, system))
    assert user >= 0
    assert kernel >= 0
