"""What goes in and out of jobs, big and small, and what jobs themselves may do."""

from __future__ import annotations

import gc
import os
import signal
import threading
from typing import Any

import numpy
import pytest
import work
from helpers import DEADLINE, Stage, eventually, run_script

from poolwatch import Job

pytestmark = pytest.mark.timeout(30)
MEGABYTE = 1 << 20


# -- data -------------------------------------------------------------------------------------


@pytest.mark.every_start_method("spawn")
@pytest.mark.parametrize(
    "size", [pytest.param(100 << 10, marks=pytest.mark.zygote_only), 50 * MEGABYTE]
)
def test_bytes_of_all_sizes_come_through(make_pool: Any, size: int) -> None:
    """Bytes go out and come back the same, 100 KB in line and 50 MB by other ways."""
    pool = make_pool(2)
    payload = os.urandom(1 << 10) * (size >> 10)
    jobs = [pool.apply_async(work.echo, (payload,)) for _ in range(2)]
    assert all(job.get(DEADLINE) == payload for job in jobs)


@pytest.mark.every_start_method("spawn")
def test_arrays_come_through(make_pool: Any) -> None:
    """An 8 MB array goes out and comes back the same, and is the receiver's to write to."""
    pool = make_pool(2)
    array = numpy.arange(MEGABYTE, dtype=numpy.float64)
    back = pool.apply_async(work.add_one_in_place, (array,)).get(DEADLINE)
    assert (back == array + 1).all()
    assert array[0] == 0
    back[0] = 42
    assert back[0] == 42


def test_arguments_are_taken_as_they_are_at_the_call(make_pool: Any, stage: Stage) -> None:
    """What the caller changes after apply_async() has returned does not reach the job."""
    pool = make_pool(1)
    blocker = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    array = numpy.zeros(MEGABYTE)
    items = [0] * 10
    jobs = [pool.apply_async(work.total, (array,)), pool.apply_async(work.total, (items,))]
    array += 1
    items[0] = 1
    stage.let_go()
    assert [job.get(DEADLINE) for job in jobs] == [0, 0]
    assert blocker.ready()


def test_big_payloads_do_not_use_up_the_descriptors() -> None:
    """Three hundred unread results of 1 MB fit a process that may have a hundred descriptors."""
    assert run_script("descriptors.py").strip() == "300 of 300"


def test_nothing_is_kept_of_finished_jobs(make_pool: Any) -> None:
    """When a job has ended and its handle is gone, so are its record and its result."""
    pool = make_pool(2)
    jobs = [pool.apply_async(work.square, (n,)) for n in range(1000)]
    jobs += [pool.apply_async(work.square, (n,), callback=str) for n in range(1000)]
    for job in jobs:
        job.get(DEADLINE)
    del job, jobs
    gc.collect()
    eventually(lambda: sum(isinstance(thing, Job) for thing in gc.get_objects()) <= 2)


def test_many_threads_submit_at_once(make_pool: Any) -> None:
    """Eight threads with two hundred jobs each all get their own results."""
    pool = make_pool(2)
    sums: dict[int, int] = {}

    def submit(number: int) -> None:
        jobs = [pool.apply_async(work.add, (n, number)) for n in range(200)]
        sums[number] = sum(job.get(DEADLINE) for job in jobs)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sums == {number: sum(range(200)) + 200 * number for number in range(8)}


# -- functions that cannot be imported --------------------------------------------------------


def test_lambdas_and_closures_can_be_called(make_pool: Any) -> None:
    """Functions that have no importable name are sent by value, arguments and results too."""
    pool = make_pool(2)
    factor = 3
    assert pool.apply_async(lambda n: n * factor, (5,)).get(DEADLINE) == 15
    assert pool.map_async(lambda n: n + factor, [1, 2]).get(DEADLINE) == [4, 5]
    assert pool.apply_async(work.call, (lambda: factor,)).get(DEADLINE) == 3


@pytest.mark.every_start_method
def test_functions_of_a_script_can_be_called(start_method: str) -> None:
    """Functions and classes of __main__ work, also those defined after the pool was made."""
    out = run_script("main_functions.py", start_method).splitlines()
    assert out == ["before 9", "after 27", "class 5", "lambda 12"]


@pytest.mark.parametrize("what", ["unconcerned", "attribute", "concerned", "classes"])
def test_names_that_stand_for_other_functions(what: str) -> None:
    """What uses a rebound name sees the present one; all else what its initializer has left."""
    assert run_script("rebound.py", what).strip() == "done"


def test_redefined_function_gives_the_new_answer() -> None:
    """A function redefined, or a module reloaded, after Pool() is not run in its old version."""
    out = run_script("redefined.py").splitlines()
    assert out == ["old", "new", "module old", "module new", "module new", "module new"]


# -- what jobs may do -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["poolwatch", "multiprocessing", "concurrent.futures", "Process"])
def test_jobs_may_start_processes_and_pools(make_pool: Any, kind: str) -> None:
    """A worker is not daemonic: a job may use any pool, or Process, and this one as well."""
    assert make_pool(1).apply_async(work.use_pool, (kind,)).get(DEADLINE) == [0, 1, 4]


def test_processes_of_a_job_listen_to_signals(make_pool: Any) -> None:
    """What a job forks does not inherit the worker's deafness: it can be terminated."""
    job = make_pool(1).apply_async(work.terminate_own_child)
    assert job.get(DEADLINE) == -signal.SIGTERM


def test_random_generators_differ_between_workers(make_pool: Any, stage: Stage) -> None:
    """Neither two workers at a time nor a worker and its replacement draw the same numbers."""
    numpy.random.random()  # so that the workers inherit a generator that has been used
    pool = make_pool(2, maxtasksperchild=1)
    drawn = []
    for _ in range(2):
        jobs = [pool.apply_async(work.draw, (stage.bell, stage.gate)) for _ in range(2)]
        stage.heard_pids(2)
        stage.let_go(2)
        drawn += [job.get(DEADLINE) for job in jobs]
    assert len({number for number, _ in drawn}) == 4
    assert len({number for _, number in drawn}) == 4


def test_standard_input_of_a_job_is_empty(make_pool: Any) -> None:
    """A job that reads its standard input meets its end, and not the parent's terminal."""
    assert make_pool(1).apply_async(work.read_stdin).get(DEADLINE) == ""
