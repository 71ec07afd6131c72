"""How executors end: maps, shutdown in all its ways, ends at once, the interpreter's end."""

from __future__ import annotations

import concurrent.futures as cf
import copy
import gc
import itertools
import multiprocessing
import os
import pickle
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import executor_work
import faults
import jobs_work
import pytest
import work
from helpers import (
    DEADLINE,
    ProcessWatch,
    Stage,
    bounded,
    eventually,
    lines,
    one_batch,
    run_script,
    worker_pids,
)

from poolwatch import (
    BootError,
    JobState,
    ProcessPoolExecutor,
    Terminated,
    WorkerLostError,
    events,
)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def make_executor(nothing_left_over: Any) -> Iterator[Callable[..., ProcessPoolExecutor]]:
    """Makes executors, and kills their workers after the test."""
    made: list[ProcessPoolExecutor] = []

    def make(max_workers: int = 1, **options: Any) -> ProcessPoolExecutor:
        made.append(ProcessPoolExecutor(max_workers, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.kill_workers()
        bounded(executor._pool.join)
        del executor
    made.clear()
    gc.collect()  # semaphores among initargs are files until then


# -- interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("job", [faults.hang, executor_work.hold_through_sigterm])
def test_block_that_is_interrupted_ends_at_once(job: Any, stage: Stage) -> None:
    """What has not begun is cancelled, what runs is stopped, whether it wants to or not."""
    futures: list[cf.Future[Any]] = []

    def block() -> None:
        with ProcessPoolExecutor(1) as executor:
            futures.extend(executor.submit(job, stage.bell) for _ in range(3))
            stage.heard()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounded(block)
    first, *others = futures
    assert isinstance(first.exception(0), Terminated)
    assert all(future.cancelled() for future in others)


def test_interrupted_block_does_not_wait_for_an_initializer(stage: Stage) -> None:
    """Nor for workers that are still on their way."""

    def block() -> None:
        with ProcessPoolExecutor(1, initializer=faults.hang, initargs=(stage.bell,)) as executor:
            executor.submit(work.square, 3)
            stage.heard()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounded(block)


def test_interrupted_map_ends_at_once(stage: Stage) -> None:
    """The items that have not begun are cancelled, those that run are stopped."""

    def block() -> None:
        with ProcessPoolExecutor(1) as executor:
            executor.map(faults.hang, [stage.bell] * 5)
            stage.heard()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounded(block)
    with pytest.raises(AssertionError, match="no job rang"):
        stage.heard(0.0)


def test_interrupted_block_of_a_shared_pool_leaves_the_others_alone(
    make_pool: Any, stage: Stage
) -> None:
    """Only this executor's jobs end."""
    pool = make_pool(2)
    other = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()

    def block() -> None:
        with ProcessPoolExecutor.from_pool(pool) as executor:
            executor.submit(faults.hang, stage.bell)
            stage.heard()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bounded(block)
    stage.let_go()
    other.get(DEADLINE)
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_other_errors_leave_a_block_in_peace(tmp_path: Path, error: type[BaseException]) -> None:
    """What was submitted runs, as in the standard library."""
    path = str(tmp_path / "note")

    def block() -> None:
        with ProcessPoolExecutor(1) as executor:
            for number in range(20):
                executor.submit(work.noted, path, number)
            raise error

    with pytest.raises(error):
        block()
    assert len(lines(path)) == 20


# -- maps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_that_is_called_for_its_effects_runs(tmp_path: Path, chunksize: int) -> None:
    """Nobody takes a result, and every item runs, as in the standard library."""
    path = str(tmp_path / "note")
    with ProcessPoolExecutor(2) as executor:
        executor.map(work.noted, [path] * 50, range(50), chunksize=chunksize)
    assert sorted(map(int, lines(path))) == list(range(50))


@pytest.mark.parametrize("options", [{}, {"chunksize": 3}, {"buffersize": 2}])
def test_item_that_raises_stop_iteration(make_executor: Any, options: dict[str, int]) -> None:
    """It does not pass for the end of the map (as in the standard library)."""
    results = make_executor().map(jobs_work.stop, range(4), **options)
    assert next(results) == 0
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_buffered_map_that_is_dropped_reads_no_more(make_executor: Any, stage: Stage) -> None:
    """What has been read runs; an endless input does not go on for ever."""
    executor = make_executor()
    taken = itertools.count()
    numbers = (number for number in taken)
    results = executor.map(
        executor_work.ring_number,
        itertools.repeat(stage.bell),
        itertools.repeat(stage.gate),
        numbers,
        buffersize=3,
    )
    assert stage.heard() == "0"
    stage.let_go()
    assert stage.heard() == "1"
    del results
    stage.let_go(2)
    eventually(lambda: not executor._jobs())
    assert next(taken) <= 4


def test_map_that_is_dropped_half_way_cancels_the_rest(make_executor: Any, stage: Stage) -> None:
    """Only what has begun goes on."""
    executor = make_executor()
    items = [stage.bell] * 20, [stage.gate] * 20, range(20)
    results = executor.map(executor_work.ring_number, *items)
    stage.let_go()
    assert next(results) == 0
    stage.heard()
    assert stage.heard() == "1"
    del results
    eventually(lambda: len(executor._jobs()) <= 1)
    stage.let_go()
    bounded(executor.shutdown)
    with pytest.raises(AssertionError, match="no job rang"):
        stage.heard(0.0)


@pytest.mark.parametrize("chunksize", [1, 4])
def test_cancel_futures_cancels_items_of_maps(
    make_executor: Any, stage: Stage, chunksize: int
) -> None:
    """Those that run have their results; the consumer is told of the first cancelled one."""
    executor = make_executor()
    items = [stage.bell] * 12, [stage.gate] * 12, range(12)
    results = executor.map(executor_work.ring_number, *items, chunksize=chunksize)
    assert stage.heard() == "0"
    executor.shutdown(wait=False, cancel_futures=True)
    stage.let_go(chunksize)
    assert [next(results) for _ in range(chunksize)] == list(range(chunksize))
    with pytest.raises(cf.CancelledError):
        next(results)
    bounded(executor.shutdown)


def test_shutdown_ends_the_reading_of_a_buffered_map(make_executor: Any) -> None:
    """An endless input does not keep it; what has been read has its results, then an error."""
    executor = make_executor()
    results = executor.map(work.square, itertools.count(), buffersize=4)
    assert next(results) == 0
    bounded(executor.shutdown)
    got: list[int] = []
    with pytest.raises(RuntimeError, match="after shutdown"):
        deque(map(got.append, results))
    assert 1 <= len(got) <= 4
    assert got == [number * number for number in range(1, 1 + len(got))]
    assert list(results) == []


@pytest.mark.parametrize("way", ["kill_workers", "terminate_workers"])
@pytest.mark.parametrize("chunksize", [1, 5])
def test_maps_end_at_once_too(make_executor: Any, stage: Stage, way: str, chunksize: int) -> None:
    """The item that runs is terminated, no other runs, and the workers go."""
    executor = make_executor()
    items = [stage.bell] * 20, [stage.gate] * 20, range(20)
    results = executor.map(executor_work.ring_number, *items, chunksize=chunksize)
    assert stage.heard() == "0"
    with ProcessWatch(worker_pids(executor._pool)) as watch:
        getattr(executor, way)()
        with pytest.raises((Terminated, SystemExit)):
            next(results)
        watch.assert_gone()
    with pytest.raises(AssertionError, match="no job rang"):
        stage.heard(0.0)


def test_job_that_ignores_sigterm_is_killed(make_executor: Any, stage: Stage) -> None:
    """terminate_workers() has the last word, after the pool's grace."""
    executor = make_executor(terminate_grace=0.1)
    future = executor.submit(executor_work.hold_through_sigterm, stage.bell)
    stage.heard()
    executor.terminate_workers()
    assert isinstance(future.exception(DEADLINE), Terminated)
    bounded(executor.shutdown)


def test_shared_executor_waits_for_its_maps_only(make_pool: Any, stage: Stage) -> None:
    """Its shutdown waits for the items of its maps, and not for the pool's other jobs."""
    pool = make_pool(2)
    other = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    executor = ProcessPoolExecutor.from_pool(pool)
    results = executor.map(work.square, range(20))
    bounded(executor.shutdown)
    assert not other.ready()
    assert [*results] == [n * n for n in range(20)]
    stage.let_go()
    other.get(DEADLINE)


# -- futures ----------------------------------------------------------------------------------


def test_callback_that_exits_harms_nobody(make_executor: Any, stage: Stage) -> None:
    """Not even sys.exit(): the other futures, and other callbacks of the same, have their turn."""
    executor = make_executor()
    failed: list[Any] = []
    executor._pool.listen(
        lambda event: failed.append(event) if isinstance(event, events.HookFailed) else None
    )
    entered, go_on = threading.Event(), threading.Event()
    called: list[str] = []

    def block(future: Any) -> None:
        entered.set()
        go_on.wait(DEADLINE)

    first = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    first.add_done_callback(block)
    stage.let_go()
    assert entered.wait(DEADLINE)  # the delivery thread stays there until all have ended
    futures = [executor.submit(work.square, number) for number in range(5)]
    futures[0].add_done_callback(sys.exit)
    futures[0].add_done_callback(lambda future: called.append("second"))
    futures[1].add_done_callback(lambda future: 1 / 0)
    futures[1].add_done_callback(lambda future: called.append("third"))
    eventually(lambda: all(future._job.ready for future in futures))
    go_on.set()
    assert not cf.wait(futures, DEADLINE).not_done
    eventually(lambda: called == ["second", "third"])
    eventually(lambda: failed)
    assert isinstance(failed[0].error, SystemExit)


@pytest.mark.parametrize("job", [(work.square, 3), (work.fail, "x")], ids=["value", "error"])
def test_future_leaves_no_cycle(make_executor: Any, job: Any) -> None:
    """It and its value go when the last reference does, not when garbage is collected."""
    executor = make_executor()
    gc.collect()
    gc.disable()
    try:
        future = executor.submit(*job)
        try:
            future.result(DEADLINE)
        except ValueError:
            pass
        executor._settler.wait_for_delivery()
        known = weakref.ref(future)
        del future
        eventually(lambda: known() is None)
    finally:
        gc.enable()


def test_many_futures_are_cancelled_at_once(make_executor: Any, stage: Stage) -> None:
    """All but the one that runs, also those that were sent to the worker ahead."""
    executor = make_executor()
    with one_batch(executor._pool):
        running = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
        futures = [executor.submit(work.ring, stage.bell) for _ in range(3000)]
    stage.heard()
    assert any(future._job.state is JobState.SENT for future in futures)
    executor.shutdown(wait=False, cancel_futures=True)
    assert not cf.wait(futures, DEADLINE).not_done
    assert all(future.cancelled() for future in futures)
    stage.let_go()
    assert running.result(DEADLINE)
    bounded(executor.shutdown)
    with pytest.raises(AssertionError, match="no job rang"):
        stage.heard(0.0)


def test_executors_and_futures_do_not_pickle(make_executor: Any) -> None:
    """TypeError, as the standard library's; nor can they be copied."""
    executor = make_executor()
    for thing in (executor, executor.submit(work.square, 3)):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
    with pytest.raises(TypeError, match="executors"):
        copy.copy(executor)


def test_other_libraries_find_the_number_of_workers(make_pool: Any) -> None:
    """Dask takes its number of workers from there."""
    pool = make_pool(2)
    assert ProcessPoolExecutor.from_pool(pool)._max_workers == 2


@pytest.mark.parametrize("start_method", ["zygote", "fork", "spawn", "forkserver"])
def test_initializer_gets_a_queue(make_executor: Any, start_method: str) -> None:
    """A queue of multiprocessing among initargs reaches the workers, however they are made."""
    method = "fork" if start_method == "zygote" else start_method
    context = multiprocessing.get_context(method)
    queue, lock = context.SimpleQueue(), context.Lock()
    initargs = (queue, lock, None, os.getpid)
    executor = make_executor(mp_context=start_method, initializer=work.keep, initargs=initargs)
    pid = executor.submit(work.put_under_lock, "hello").result(DEADLINE)
    assert pid != os.getpid()
    assert bounded(queue.get) == "hello"
    queue.close()


# -- shutdown ---------------------------------------------------------------------------------


def test_shutdown_in_several_threads(make_executor: Any, stage: Stage) -> None:
    """All of them wait, and all return."""
    executor = make_executor()
    future = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    threads = [threading.Thread(target=executor.shutdown, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    stage.let_go()
    for thread in threads:
        thread.join(DEADLINE)
    assert not any(thread.is_alive() for thread in threads)
    assert future.done()


def test_shutdown_in_a_signal_handler_does_not_wait(make_executor: Any, stage: Stage) -> None:
    """Where the handler has interrupted the pool's bookkeeping, which must end first."""
    executor = make_executor()
    future = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()

    def interrupted() -> None:
        with executor._core.dispatcher.lock:
            executor.shutdown(wait=True)

    bounded(interrupted)
    assert not future.done()
    stage.let_go()
    bounded(executor.shutdown)
    assert future.done()


def test_broken_executor_says_so_after_shutdown(make_executor: Any, tmp_path: Path) -> None:
    """That it is broken is told before that it is shut down, as in the standard library."""
    executor = make_executor(
        initializer=faults.initializer_raises,
        initargs=(str(tmp_path / "note"),),
        max_boot_failures=1,
    )
    future = executor.submit(work.square, 3)
    assert isinstance(future.exception(DEADLINE), BootError)
    executor.shutdown()
    for submit in (executor.submit, executor.map):
        with pytest.raises(cf.process.BrokenProcessPool) as caught:
            submit(work.square, [3])
        assert isinstance(caught.value.__cause__, LookupError)


def test_forked_child_cannot_end_the_parents_executor(make_executor: Any) -> None:
    """It is told; shutdown() does nothing there, so that a with statement may end."""
    executor = make_executor()
    executor.submit(work.square, 2).result(DEADLINE)
    pid = os.fork()
    if not pid:
        try:
            executor.shutdown()
            executor.kill_workers()
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert executor.submit(work.square, 3).result(DEADLINE) == 9


# -- the interpreter's end --------------------------------------------------------------------


@pytest.mark.parametrize("start_method", ["zygote", "fork", "spawn", "forkserver"])
@pytest.mark.parametrize("way", ["kept", "dropped", "shut down"])
def test_jobs_run_before_the_interpreter_ends(tmp_path: Path, start_method: str, way: str) -> None:
    """Whether or not somebody still knows the executor, with their callbacks; nothing hangs."""
    path = str(tmp_path / "note")
    run_script("executor_at_exit.py", way, start_method, path)
    assert sorted(lines(path)) == [*"012345", "callback"]


def test_maps_run_before_the_interpreter_ends(tmp_path: Path) -> None:
    """Also when neither the executor nor the iterator is known any more."""
    path = str(tmp_path / "note")
    run_script("executor_at_exit.py", "dropped map", "zygote", path)
    assert sorted(lines(path)) == [*"0123456789", "callback"]


def test_futures_of_a_shared_pool_run_before_the_interpreter_ends(tmp_path: Path) -> None:
    """Although the pool itself would be terminated then."""
    path = str(tmp_path / "note")
    run_script("executor_at_exit.py", "shared", "zygote", path)
    assert sorted(lines(path)) == [*"0123456", "callback"]


def test_nothing_is_taken_at_the_interpreters_end(tmp_path: Path) -> None:
    """The standard library's error."""
    printed = run_script("executor_at_exit.py", "submitting", "zygote", str(tmp_path / "note"))
    assert printed.startswith("cannot schedule new futures after")


def test_worker_lost_is_not_a_broken_pool() -> None:
    """Whoever catches that and gives up must not do so for one job's loss."""
    assert not issubclass(WorkerLostError, cf.process.BrokenProcessPool)
    assert issubclass(BootError, cf.process.BrokenProcessPool)
