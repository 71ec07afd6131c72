"""Wrong arguments are refused where they are given, by name, and nothing is started."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import work
from helpers import DEADLINE, ProcessWatch, Stage, bounded, run_script

from poolwatch import FailFast, Pool

pytestmark = pytest.mark.timeout(40)

WRONG_VALUES = {
    "processes": [0, -1],
    "maxtasksperchild": [0, -3],
    "context": ["nope", ""],
    "timeout": [-1, 0, float("nan")],
    "soft_timeout": [-0.5, 0],
    "lost_worker_timeout": [-1],
    "max_restarts": [-1],
    "max_boot_failures": [0],
    "terminate_grace": [-1],
    "boot_timeout": [-1],
    "initializer_timeout": [-1, 0, float("nan")],
    "leave_timeout": [-1, 0],
}
WRONG_TYPES = {
    "processes": ["2", 1.5, [2]],
    "initializer": ["print", 3],
    "initargs": [3],
    "maxtasksperchild": ["10", 2.5],
    "context": [3, 3.5],
    "timeout": ["1", [1]],
    "soft_timeout": ["1"],
    "lost_worker_timeout": ["1"],
    "initializer_timeout": ["1"],
    "leave_timeout": ["1"],
    "lost_worker_policy": ["FailFast", 3, object],
    "on_process_up": ["print"],
    "on_process_down": [3],
    "on_timeout_set": [3],
    "on_timeout_cancel": ["x"],
}
WRONG = [(name, value) for name, values in WRONG_VALUES.items() for value in values]
WRONG += [(name, value) for name, values in WRONG_TYPES.items() for value in values]
REFUSED = (ValueError, TypeError)


@pytest.fixture
def nothing_started() -> Iterator[None]:
    """No process and no thread has been started by the end of the test."""
    processes = psutil.Process().children(recursive=True)
    threads = threading.enumerate()
    yield
    assert psutil.Process().children(recursive=True) == processes
    assert threading.enumerate() == threads


@pytest.mark.usefixtures("nothing_started")
@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: repr(value)[:24])
def test_pool_names_the_wrong_argument(name: str, value: object) -> None:
    """Pool() refuses a wrong option, names it, and starts nothing."""
    with pytest.raises(REFUSED, match=name):
        Pool(**{name: value})


@pytest.mark.usefixtures("nothing_started")
@pytest.mark.parametrize("value", ["INFO", 1.5, []])
def test_a_level_of_logs_is_asked_for_by_an_example(value: object) -> None:
    """The error about relay_logs says what else than a number it takes."""
    with pytest.raises(TypeError, match=r"^relay_logs must be True, False .* logging\.INFO, not"):
        Pool(1, relay_logs=value)  # type: ignore[arg-type]


@pytest.mark.usefixtures("nothing_started")
@pytest.mark.parametrize("name", ["timeout", "soft_timeout", "maxtasksperchild", "processes"])
def test_true_and_false_are_no_numbers(name: str) -> None:
    """False is not a limit of zero seconds: a switch in the wrong place is refused."""
    with pytest.raises(REFUSED, match=name):
        Pool(**{name: False})


@pytest.mark.usefixtures("nothing_started")
@pytest.mark.parametrize(
    "options",
    [
        {"soft_timeout": 3, "timeout": 2},
        {"lost_worker_policy": FailFast(), "lost_worker_timeout": 2},
    ],
    ids=" and ".join,
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    """A soft limit after the hard one, or two policies, are a ValueError that names both."""
    first, second = options
    with pytest.raises(ValueError, match=first) as caught:
        Pool(2, **options)
    assert second in str(caught.value)


@pytest.mark.usefixtures("nothing_started")
def test_pool_refuses_unknown_options() -> None:
    """A misspelt option is a TypeError, as for any function."""
    with pytest.raises(TypeError, match="maxtaskperchild"):
        Pool(2, maxtaskperchild=3)  # type: ignore[call-arg]


# -- apply_async and map ----------------------------------------------------------------------

WRONG_CALLS = {
    "func": [{"func": "print"}, {"func": None}],
    "args": [{"args": 3}],
    "kwds": [{"kwds": [("right", 3)]}, {"kwds": {3: 4}}, {"kwds": 7}],
    "callback": [{"callback": "print"}],
    "error_callback": [{"error_callback": 3}],
    "accept_callback": [{"accept_callback": 3}],
    "timeout_callback": [{"timeout_callback": 3}],
    "timeout": [{"timeout": -1}, {"timeout": "1"}],
    "soft_timeout": [
        {"soft_timeout": -1},
        {"soft_timeout": "1"},
        {"soft_timeout": 3, "timeout": 2},
    ],
    "lost_worker_timeout": [{"lost_worker_timeout": -1}],
    "lost_worker_policy": [{"lost_worker_policy": "FailFast"}],
}


@pytest.fixture(scope="module")
def wrong_calls() -> list[tuple[str, dict[str, Any]]]:
    return [(name, call) for name, calls in WRONG_CALLS.items() for call in calls]


def test_apply_async_names_the_wrong_argument(
    make_pool: Any, wrong_calls: list[tuple[str, dict[str, Any]]]
) -> None:
    """apply_async() refuses a wrong argument at the call, names it, and the pool goes on."""
    pool = make_pool(1)
    for name, call in wrong_calls:
        with pytest.raises(REFUSED, match=rf"\b{name}\b"):
            pool.apply_async(**{"func": work.square, "args": (3,), **call})
        assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9


def test_apply_async_refuses_unknown_options(make_pool: Any) -> None:
    """A misspelt option of apply_async() is a TypeError and no job."""
    with pytest.raises(TypeError, match="time_out"):
        make_pool(1).apply_async(work.square, (3,), time_out=3)


def test_map_names_the_wrong_argument(make_pool: Any) -> None:
    """map() and map_async() refuse wrong arguments at the call."""
    pool = make_pool(1)
    with pytest.raises(REFUSED, match="func"):
        pool.map("print", [1])
    with pytest.raises(REFUSED, match="iterable"):
        pool.map_async(work.square, 3)
    for chunksize in (0, -1, "2"):
        with pytest.raises(REFUSED, match="chunksize"):
            pool.map_async(work.square, [1], chunksize)
    with pytest.raises(REFUSED, match="callback"):
        pool.map_async(work.square, [1], callback=3)
    assert pool.map_async(work.square, [1, 2]).get(DEADLINE) == [1, 4]


def test_get_refuses_a_wrong_timeout(make_pool: Any, stage: Stage) -> None:
    """A wrong time to wait is refused where it is given, and the job is not harmed."""
    job = make_pool(1).apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    pid = int(stage.heard())
    with pytest.raises(REFUSED):
        job.get("1")
    stage.let_go()
    assert job.get(DEADLINE) == pid


def test_successful_of_an_unfinished_job_is_refused(make_pool: Any, stage: Stage) -> None:
    """successful() before the end is a ValueError, as in multiprocessing."""
    job = make_pool(1).apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    with pytest.raises(ValueError, match="not ready"):
        job.successful()
    stage.let_go()
    job.wait(DEADLINE)
    assert job.successful()


# -- pools that have ended, and pools of another process --------------------------------------


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_ended_pool_takes_no_jobs(make_pool: Any, end: str) -> None:
    """apply_async(), apply(), map() and map_async() of an ended pool are a ValueError."""
    pool = make_pool(1)
    bounded(getattr(pool, end))
    for submit in (pool.apply_async, pool.apply):
        with pytest.raises(ValueError, match=r"(?i)not running|closed|terminated"):
            submit(work.square, (3,))
    for submit in (pool.map_async, pool.map):
        with pytest.raises(ValueError, match=r"(?i)not running|closed|terminated"):
            submit(work.square, [3])
    bounded(pool.join)


def test_join_of_a_running_pool_is_refused(make_pool: Any) -> None:
    """join() before close() or terminate() is a ValueError, as in multiprocessing."""
    with pytest.raises(ValueError, match=r"(?i)running"):
        make_pool(1).join()


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_pool_may_be_ended_twice(make_pool: Any, end: str) -> None:
    """close() and terminate() after the end do nothing, in any order, as does join()."""
    pool = make_pool(1)
    for call in (getattr(pool, end), pool.close, pool.join, pool.terminate, pool.join, pool.close):
        bounded(call)


def test_ended_pool_cannot_be_entered(make_pool: Any) -> None:
    """`with` on a pool that has ended is a ValueError, as in multiprocessing."""
    pool = make_pool(1)
    bounded(pool.terminate)
    with pytest.raises(ValueError, match=r"(?i)not running|closed|terminated"), pool:
        pass


def test_terminate_job_does_not_signal_strangers(make_pool: Any) -> None:
    """terminate_job() signals workers of this pool only, never whatever bears the pid."""
    pool = make_pool(1)
    stranger = psutil.Popen(["sleep", "60"])
    try:
        with ProcessWatch([stranger.pid]) as watch:
            with contextlib.suppress(ValueError, LookupError):
                pool.terminate_job(stranger.pid)
            assert watch.alive(0.3) == [stranger.pid]
    finally:
        stranger.kill()
        stranger.wait()


def test_pool_cannot_be_pickled(make_pool: Any) -> None:
    """A pool that is sent to a job is refused, as in multiprocessing."""
    pool = make_pool(1)
    with pytest.raises((NotImplementedError, TypeError)):
        pool.__reduce__()


def test_inherited_pool_in_a_forked_child_is_a_clear_error() -> None:
    """A fork of the parent cannot use the pool, is told so, and leaves it whole."""
    out = run_script("inherited.py").splitlines()
    assert "child: RuntimeError" in out[0] or "child: PoolwatchError" in out[0]
    assert "process" in out[0]
    assert out[1:] == ["child left", "parent: 16", "full strength"]
