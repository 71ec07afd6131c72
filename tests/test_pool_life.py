"""How pools begin and end: by close, terminate, collection or the interpreter's exit."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import weakref
from typing import Any

import faults
import pytest
import work
from helpers import (
    DEADLINE,
    ProcessWatch,
    Stage,
    assert_full_strength,
    bounded,
    eventually,
    only_worker,
    run_script,
    worker_pids,
)

from poolwatch import Pool

pytestmark = pytest.mark.timeout(30)
MEGABYTE = 1 << 20


# -- beginning and end ------------------------------------------------------------------------


def test_ten_pools_at_once(make_pool: Any) -> None:
    """Ten pools side by side give their results, and can be ended in any order."""
    pools = [make_pool(2) for _ in range(10)]
    jobs = [pool.apply_async(work.square, (n,)) for n, pool in enumerate(pools)]
    assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(10)]
    for pool in pools[::2]:
        bounded(pool.terminate)
    assert [pool.apply_async(work.square, (3,)).get(DEADLINE) for pool in pools[1::2]] == [9] * 5


@pytest.mark.every_start_method("spawn", "forkserver")
def test_context_manager_terminates(start_method: str, stage: Stage) -> None:
    """Leaving the block ends the workers, busy ones too, as in multiprocessing."""
    with Pool(2, context=start_method) as pool:
        pool.apply_async(faults.hang, (stage.bell,))
        stage.heard()
        pids = worker_pids(pool)
    with ProcessWatch(pids) as watch:
        watch.assert_gone()
    bounded(pool.join)


@pytest.mark.every_start_method("spawn", "forkserver")
def test_close_and_join_wait_for_the_jobs(make_pool: Any, stage: Stage) -> None:
    """After close() the jobs given are still done; join() returns when workers have left."""
    pool = make_pool(2)
    assert_full_strength(pool)
    pids = worker_pids(pool)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    queued = [pool.apply_async(work.square, (n,)) for n in range(20)]
    stage.heard()
    pool.close()
    assert not job.ready()
    with ProcessWatch(pids) as watch:
        stage.let_go()
        bounded(pool.join)
        assert watch.alive() == []
    assert [handle.get(0) for handle in queued] == [n * n for n in range(20)]
    assert job.get(0) in pids


def test_join_can_be_bounded(make_pool: Any, stage: Stage) -> None:
    """join(timeout) gives up after that time, and can be called again."""
    pool = make_pool(1)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    pool.close()
    with pytest.raises(multiprocessing.TimeoutError):
        pool.join(0.1)
    stage.let_go()
    bounded(lambda: pool.join(DEADLINE))
    assert job.ready()


def drop_a_pool(start_method: str) -> None:
    """Makes a pool, uses it, drops it, and waits for its processes and threads to end."""
    pool = Pool(2, context=start_method)
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    reference = weakref.ref(pool)
    threads = threading.active_count()
    with ProcessWatch(worker_pids(pool)) as watch:
        del pool
        gc.collect()
        assert reference() is None
        watch.assert_gone()
    eventually(lambda: threading.active_count() < threads)


@pytest.mark.every_start_method
def test_collected_pool_leaves_nothing(start_method: str) -> None:
    """A pool that is dropped without close() ends its workers, and warns as files do."""
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        drop_a_pool(start_method)


def test_dropped_pool_does_not_wait_for_the_collector(start_method: str) -> None:
    """It ends with its last reference, and the warning names the line that made it."""
    gc.disable()
    try:
        with pytest.warns(ResourceWarning, match=rf"pool poolwatch, made at {__file__}:\d+"):  # noqa: PT031
            pool = Pool(1, context=start_method)
            assert pool.apply(work.square, (3,)) == 9
            watch, seen = ProcessWatch(worker_pids(pool)), weakref.ref(pool)
            del pool
            eventually(lambda: seen() is None)
        with watch:
            watch.assert_gone()
    finally:
        gc.enable()


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_collected_pool_leaves_nothing_where_warnings_are_errors(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning about a dropped pool does not come in the way of its end."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    drop_a_pool(start_method)


def test_results_outlive_their_pool(make_pool: Any) -> None:
    """A handle that has its result gives it after the pool has ended."""
    pool = make_pool(1)
    job = pool.apply_async(work.square, (3,))
    job.wait(DEADLINE)
    bounded(pool.terminate)
    assert job.get(0) == 9


@pytest.mark.every_start_method
@pytest.mark.parametrize(
    "state",
    [
        "busy",
        pytest.param("idle", marks=pytest.mark.zygote_only),
        pytest.param("closed", marks=pytest.mark.zygote_only),
    ],
)
def test_interpreter_exit_with_an_open_pool_leaves_nothing(
    start_method: str, state: str, stage: Stage
) -> None:
    """A script that ends without ending its pool does not hang, and its workers are gone."""
    pids = run_script("leave.py", start_method, state, stage.bell).split()
    assert len(pids) >= 2
    with ProcessWatch(map(int, pids)) as watch:
        watch.assert_gone()


def test_pool_can_be_made_again_and_again(make_pool: Any) -> None:
    """Ten pools one after the other leave nothing that adds up."""
    descriptors = None
    for _ in range(10):
        with Pool(2) as pool:
            assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
        bounded(pool.join)
        found = len(os.listdir("/proc/self/fd"))
        assert descriptors in (None, found)
        descriptors = found
    assert only_worker(make_pool(1)) > 0
