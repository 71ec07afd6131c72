"""``ProcessPoolExecutor`` does what ``concurrent.futures`` promises; a death costs one future."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import itertools
import operator
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import faults
import pytest
import work
from helpers import DEADLINE, ProcessWatch, Stage, bounded, eventually, kill_and_wait, worker_pids

from poolwatch import (
    BootError,
    MaybeEncodingError,
    Pool,
    PoolFull,
    ProcessPoolExecutor,
    RemoteTraceback,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

pytestmark = pytest.mark.timeout(40)


@pytest.fixture
def make_executor(nothing_left_over: Any) -> Iterator[Callable[..., ProcessPoolExecutor]]:
    """Makes executors, and kills their workers after the test."""
    made: list[ProcessPoolExecutor] = []

    def make(max_workers: int = 2, **options: Any) -> ProcessPoolExecutor:
        made.append(ProcessPoolExecutor(max_workers, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.kill_workers()
        bounded(executor._pool.join)


# -- futures ----------------------------------------------------------------------------------


def test_submit_returns_a_future_with_the_value(make_executor: Any) -> None:
    """Arguments by position and by name arrive; the future is one of the standard library's."""
    future = make_executor().submit(work.add, 3, right=4)
    assert isinstance(future, cf.Future)
    assert future.result(DEADLINE) == 7
    assert future.done()
    assert not future.running()
    assert future.exception(DEADLINE) is None
    assert future.job_id == 1
    assert future.usage.wall > 0


def test_exception_is_the_jobs_own_with_the_workers_traceback(make_executor: Any) -> None:
    """As in the standard library, the cause tells where it was raised."""
    error = make_executor().submit(work.fail, "own").exception(DEADLINE)
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in fail" in str(error.__cause__)


def test_repr_tells_where_a_future_is(make_executor: Any, stage: Stage) -> None:
    """As the standard library's, and the truth of one that runs."""
    executor = make_executor(1)
    runs = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    waits = executor.submit(work.square, 3)
    stage.heard()
    assert "Future at 0x" in repr(runs)
    assert "state=running" in repr(runs)
    assert "state=pending" in repr(waits)
    stage.let_go()
    assert waits.result(DEADLINE) == 9
    assert runs.result(DEADLINE) in worker_pids(executor.pool)
    assert "state=finished returned int" in repr(runs)


def test_as_completed_and_wait_of_the_standard_library(make_executor: Any, stage: Stage) -> None:
    """They see futures end in any order."""
    executor = make_executor()
    slow = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    quick = [executor.submit(work.square, n) for n in range(20)]
    assert {f.result() for f in itertools.islice(cf.as_completed([slow, *quick]), 20)} == {
        n * n for n in range(20)
    }
    assert cf.wait([slow, *quick], timeout=0).not_done == {slow}
    stage.let_go()
    assert cf.wait([slow], DEADLINE).done == {slow}


def test_thousands_of_futures(make_executor: Any) -> None:
    """Each gets its own result, waited for one by one or all at once."""
    executor = make_executor()
    futures = [executor.submit(work.square, n) for n in range(3000)]
    assert not cf.wait(futures, DEADLINE).not_done
    assert [f.result() for f in futures] == [n * n for n in range(3000)]


def test_done_callbacks_run_once_and_not_in_the_supervisor(make_executor: Any) -> None:
    """Whoever adds it and whenever; also when others wait for the result meanwhile."""
    names: list[str] = []
    future = make_executor().submit(work.square, 3)
    future.add_done_callback(lambda f: names.append(threading.current_thread().name))
    assert future.result(DEADLINE) == 9
    eventually(lambda: names)
    future.add_done_callback(lambda f: names.append("late"))
    assert len(names) == 2
    assert "supervisor" not in names[0]


def test_callback_that_raises_harms_nobody(make_executor: Any) -> None:
    """It is logged by the standard library; later futures are settled."""
    executor = make_executor()
    futures = [executor.submit(work.square, n) for n in range(3)]
    futures[0].add_done_callback(lambda f: 1 / 0)
    assert [f.result(DEADLINE) for f in futures] == [0, 1, 4]


def test_call_that_does_not_pickle_fails_its_future(make_executor: Any) -> None:
    """The error is the pickler's own; the executor goes on."""
    executor = make_executor()
    error = executor.submit(work.square, threading.Lock()).exception(DEADLINE)
    assert isinstance(error, TypeError)
    assert executor.submit(work.square, 2).result(DEADLINE) == 4


def test_result_that_does_not_pickle_fails_its_future(make_executor: Any) -> None:
    """With the pool's own error, which is multiprocessing's too."""
    error = make_executor().submit(faults.return_refuses_to_pickle).exception(DEADLINE)
    assert isinstance(error, MaybeEncodingError)


def test_run_in_executor(make_executor: Any) -> None:
    """An event loop awaits jobs, and cancelling takes them back."""
    executor = make_executor()

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(executor, work.square, n) for n in range(100))
        )

    assert asyncio.run(asyncio.wait_for(main(), DEADLINE)) == [n * n for n in range(100)]


# -- cancelling -------------------------------------------------------------------------------


def test_job_that_has_not_begun_can_be_cancelled(make_executor: Any, stage: Stage) -> None:
    """Also one that has been sent to a worker already; it never runs."""
    executor = make_executor(1)
    running = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    waiting = [executor.submit(work.ring, stage.bell) for _ in range(3)]
    eventually(running.running)
    assert not running.cancel()
    assert all(future.cancel() for future in waiting)
    assert all(future.cancelled() for future in waiting)
    assert not cf.wait(waiting, DEADLINE).not_done
    with pytest.raises(cf.CancelledError):
        waiting[0].result(0)
    stage.let_go()
    running.result(DEADLINE)
    last = executor.submit(work.square, 3)
    assert last.result(DEADLINE) == 9
    assert not last.cancel()


def test_cancel_running_stops_the_job(make_executor: Any, stage: Stage) -> None:
    """The worker goes and is replaced; the future is cancelled."""
    executor = make_executor(1, cancel_running=True)
    future = executor.submit(faults.hang, stage.bell)
    stage.heard()
    with ProcessWatch(worker_pids(executor._pool)) as watch:
        assert future.cancel()
        assert future.cancelled()
        watch.assert_gone()
    assert executor.submit(work.square, 3).result(DEADLINE) == 9


def test_cancelled_future_calls_back_once(make_executor: Any, stage: Stage) -> None:
    """Callbacks of a cancelled future run, and only once, although its job ends as well."""
    executor = make_executor(1)
    running = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    future = executor.submit(work.square, 3)
    called: list[Any] = []
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    stage.let_go()
    running.result(DEADLINE)
    executor.submit(work.square, 3).result(DEADLINE)
    assert called == [future]


# -- deaths and limits ------------------------------------------------------------------------


def test_death_fails_one_future(make_executor: Any) -> None:
    """All others have their results, and the executor goes on."""
    executor = make_executor()
    before = [executor.submit(work.square, n) for n in range(50)]
    guilty = executor.submit(faults.kill_self, signal.SIGKILL)
    after = [executor.submit(work.square, n) for n in range(50)]
    error = guilty.exception(DEADLINE)
    assert isinstance(error, WorkerLostError)
    assert error.signal == signal.SIGKILL
    assert [f.result(DEADLINE) for f in before + after] == [n * n for n in range(50)] * 2


def test_idle_worker_that_is_killed_costs_nothing(make_executor: Any) -> None:
    """The next job goes to another worker, or to the replacement."""
    executor = make_executor(1)
    executor.submit(work.square, 1).result(DEADLINE)
    kill_and_wait(worker_pids(executor._pool)[0])
    assert executor.submit(work.square, 3).result(DEADLINE) == 9


def test_pool_options_hold(make_executor: Any, stage: Stage) -> None:
    """Limits of the pool hold for futures' jobs."""
    executor = make_executor(1, timeout=0.2)
    error = executor.submit(faults.hang, stage.bell).exception(DEADLINE)
    assert isinstance(error, TimeLimitExceeded)


def test_failing_initializer_breaks_the_executor(make_executor: Any, tmp_path: Any) -> None:
    """``BrokenProcessPool`` is caught as in the standard library; the cause is the real one."""
    executor = make_executor(
        1,
        initializer=faults.initializer_raises,
        initargs=(str(tmp_path / "note"),),
        max_boot_failures=2,
    )
    with pytest.raises(cf.process.BrokenProcessPool) as caught:
        executor.submit(work.square, 3).result(DEADLINE)
    assert isinstance(caught.value, BootError)
    assert isinstance(caught.value.__cause__, LookupError)
    eventually(lambda: executor._core.is_closed)
    with pytest.raises(cf.BrokenExecutor):
        executor.submit(work.square, 3)


# -- map --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 7])
@pytest.mark.parametrize("buffersize", [None, 1, 10])
def test_map_returns_in_order(make_executor: Any, chunksize: int, buffersize: int | None) -> None:
    """Several iterables side by side, the shortest of which ends it."""
    executor = make_executor()
    other = range(200) if buffersize is None else itertools.count()
    results = executor.map(
        operator.add, range(100), other, chunksize=chunksize, buffersize=buffersize
    )
    assert list(results) == [2 * n for n in range(100)]
    assert list(results) == []
    assert list(executor.map(work.square, [])) == []


def test_map_reads_no_more_than_the_buffer(make_executor: Any) -> None:
    """Endless input is read as results are taken."""
    taken = itertools.count()
    results = make_executor().map(work.square, taken, buffersize=8)
    assert [next(results) for _ in range(20)] == [n * n for n in range(20)]
    results.close()
    assert next(taken) <= 20 + 8 + 1


def test_first_error_ends_a_map_and_cancels_the_rest(make_executor: Any, stage: Stage) -> None:
    """The results before it come; what has not begun never runs."""
    executor = make_executor(1)
    items = [0, 1, "two", *[stage.bell] * 50]
    results = executor.map(work.square_or_ring, items)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(TypeError):
        next(results)
    assert list(results) == []
    executor.submit(work.square, 3).result(DEADLINE)
    assert executor._core.unfinished_jobs(results._state) == []


def test_lost_item_raises_at_its_place(make_executor: Any, tmp_path: Any) -> None:
    """The results before it come, and its own error in its place."""
    path = str(tmp_path / "note")
    items = range(6), itertools.repeat(3), itertools.repeat(path)
    results = make_executor().map(faults.die_if, *items)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerLostError):
        next(results)


def test_map_timeout_counts_from_the_call(make_executor: Any, stage: Stage) -> None:
    """The standard library's TimeoutError, and the rest is cancelled."""
    executor = make_executor(1)
    results = executor.map(work.ring_and_wait, [stage.bell] * 3, [stage.gate] * 3, timeout=0.2)
    with pytest.raises(cf.TimeoutError):
        list(results)
    stage.let_go(3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"chunksize": 0}, "chunksize"),
        ({"buffersize": 0}, "buffersize"),
        ({"timeout": "x"}, "timeout"),
    ],
)
def test_map_names_a_wrong_argument(make_executor: Any, arguments: Any, named: str) -> None:
    """At the call, not when the first result is taken."""
    with pytest.raises((TypeError, ValueError), match=named):
        make_executor(1).map(work.square, [1], **arguments)


# -- the end ----------------------------------------------------------------------------------


def test_submit_after_shutdown(make_executor: Any) -> None:
    """The standard library's error, with its words; shutdown() may be called again."""
    executor = make_executor()
    executor.shutdown()
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(work.square, 3)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(work.square, [3])


def test_shutdown_runs_what_was_submitted(make_executor: Any, stage: Stage) -> None:
    """wait=False returns at once and the jobs go on; wait=True returns when they are done."""
    executor = make_executor(1)
    futures = [executor.submit(work.ring_and_wait, stage.bell, stage.gate) for _ in range(3)]
    executor.shutdown(wait=False)
    assert not any(future.done() for future in futures)
    stage.let_go(3)
    bounded(executor.shutdown)
    assert all(future.done() for future in futures)


def test_shutdown_cancels_what_has_not_begun(make_executor: Any, stage: Stage) -> None:
    """With cancel_futures, only the running job ends by itself."""
    executor = make_executor(1)
    futures = [executor.submit(work.ring_and_wait, stage.bell, stage.gate) for _ in range(4)]
    stage.heard()
    executor.shutdown(wait=False, cancel_futures=True)
    assert not cf.wait(futures[1:], DEADLINE).not_done
    assert [future.cancelled() for future in futures] == [False, True, True, True]
    stage.let_go()
    bounded(executor.shutdown)
    futures[0].result(0)


def test_shutdown_from_a_done_callback(make_executor: Any) -> None:
    """It does not wait for the thread that it is called in."""
    executor = make_executor(1)
    done = threading.Event()

    def end(future: Any) -> None:
        executor.shutdown(wait=True)
        done.set()

    executor.submit(work.square, 3).add_done_callback(end)
    assert done.wait(DEADLINE)


@pytest.mark.parametrize("way", ["kill_workers", "terminate_workers"])
def test_workers_can_be_ended_at_once(make_executor: Any, stage: Stage, way: str) -> None:
    """What runs ends with Terminated, what waits is cancelled, nothing is left."""
    executor = make_executor(1)
    running = executor.submit(faults.hang, stage.bell)
    stage.heard()
    waiting = executor.submit(work.square, 3)
    with ProcessWatch(worker_pids(executor._pool)) as watch:
        getattr(executor, way)()
        assert isinstance(running.exception(DEADLINE), Terminated)
        assert not cf.wait([waiting], DEADLINE).not_done
        assert waiting.cancelled()
        watch.assert_gone()
    with pytest.raises(RuntimeError):
        executor.submit(work.square, 3)


def test_with_statement_waits(stage: Stage) -> None:
    """As in the standard library."""
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
        stage.heard()
        stage.let_go()
    assert future.done()


def test_executor_that_is_dropped_lets_its_jobs_end(nothing_left_over: Any, stage: Stage) -> None:
    """Collected without a shutdown, without a warning: what was submitted runs, then it is gone."""
    executor = ProcessPoolExecutor(1)
    future = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    stage.heard()
    del executor
    gc.collect()
    stage.let_go()
    future.result(DEADLINE)


def test_shared_pool_stays_open(make_pool: Any, stage: Stage) -> None:
    """An executor of a pool ends its own futures, and leaves the pool and its jobs alone."""
    pool = make_pool(1)
    with ProcessPoolExecutor.from_pool(pool) as executor:
        future = executor.submit(work.square, 3)
        other = pool.apply_async(work.square, (4,))
    assert future.done()
    assert other.get(DEADLINE) == 16
    assert pool.apply(work.square, (5,)) == 25
    with pytest.raises(RuntimeError):
        executor.submit(work.square, 3)


def test_pool_that_is_closed_cannot_be_shared() -> None:
    """It says so at once."""
    with Pool(1) as pool:
        pass
    with pytest.raises(ValueError, match="not running"):
        ProcessPoolExecutor.from_pool(pool)
    with pytest.raises(TypeError, match="pool"):
        ProcessPoolExecutor.from_pool(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -3}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 1.5}, TypeError, "max_workers"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child"),
        ({"initializer": 3}, TypeError, "initializer"),
        ({"cancel_running": None}, TypeError, "cancel_running"),
        ({"mp_context": "thread"}, ValueError, "context"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
def test_wrong_option_is_named(options: Any, error: type[Exception], named: str) -> None:
    """At the call, with nothing left over."""
    with pytest.raises(error, match=named):
        ProcessPoolExecutor(**options)


def test_forked_child_is_refused(make_executor: Any) -> None:
    """An inherited executor raises there, and the parent's works on."""
    executor = make_executor(1)
    future = executor.submit(work.square, 2)
    future.result(DEADLINE)
    pid = os.fork()
    if not pid:
        try:
            executor.submit(work.square, 3)
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert executor.submit(work.square, 3).result(DEADLINE) == 9


def test_program_that_ends_with_waiting_futures_runs_them(tmp_path: Any) -> None:
    """As in the standard library: the interpreter waits for what was submitted."""
    note = tmp_path / "note"
    script = (
        "import poolwatch, pathlib, sys\n"
        "executor = poolwatch.ProcessPoolExecutor(1)\n"
        "for n in range(5):\n"
        '    executor.submit(exec, f\'open({sys.argv[1]!r}, "a").write("{n}")\')\n'
    )
    subprocess.run([sys.executable, "-c", script, str(note)], check=True, timeout=DEADLINE)
    assert note.read_text() == "01234"


def test_bound_of_the_pool_holds_for_futures(make_executor: Any, stage: Stage) -> None:
    """With max_pending a submission waits, or is refused with block=False."""
    executor = make_executor(1, max_pending=2, block=False)
    futures = [executor.submit(work.ring_and_wait, stage.bell, stage.gate) for _ in range(2)]
    with pytest.raises(PoolFull):
        executor.submit(work.square, 3)
    stage.let_go(2)
    cf.wait(futures, DEADLINE)
    eventually(lambda: executor._core.slots.has_room())
    assert executor.submit(work.square, 3).result(DEADLINE) == 9


# -- callbacks that block ---------------------------------------------------------------------


@pytest.mark.parametrize("waiting", ["result", "wait", "as_completed"])
def test_blocked_callback_delays_no_future_without(
    make_executor: Any, stage: Stage, waiting: str
) -> None:
    """Neither whoever waits for one future nor who waits for several at a time."""
    executor = make_executor()
    entered, leave = threading.Event(), threading.Event()

    def block(_: object) -> None:
        entered.set()
        leave.wait(DEADLINE * 2)

    blocked = executor.submit(work.ring_and_wait, stage.bell, stage.gate)
    blocked.add_done_callback(block)
    stage.let_go()
    assert entered.wait(DEADLINE)
    try:
        futures = [executor.submit(work.square, n) for n in range(20)]
        futures.append(executor.submit(faults.kill_self, signal.SIGKILL))
        if waiting == "wait":
            assert len(cf.wait(futures, DEADLINE).done) == 21
        elif waiting == "as_completed":
            assert set(cf.as_completed(futures, DEADLINE)) == set(futures)
        assert [future.result(DEADLINE) for future in futures[:20]] == [n * n for n in range(20)]
        assert isinstance(futures[20].exception(DEADLINE), WorkerLostError)
    finally:
        leave.set()
