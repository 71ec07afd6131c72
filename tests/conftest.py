"""Fixtures: nothing left over, pools put away, one body of tests for every start method."""

from __future__ import annotations

import gc
import multiprocessing.util
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faces import Face, pool_behind
from helpers import Stage, bounded
from hypothesis import settings
from leaks import LeakWatch

pytest.register_assert_rewrite("face_checks")

START_METHODS = ("zygote", "fork", "spawn", "forkserver")
# Interpreters that start afresh take their time. Without --thorough, those of the forkserver, which
# are made as those of spawn are, are tried in these files only, and spawn in those below.
FORKSERVER_IN = {"test_loss", "test_pool_basics", "test_main_module"}
SPAWN_IN = FORKSERVER_IN | {
    "test_faults",
    "test_payload_faults",
    "test_postmortem",
    "test_identity",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run every test that is meant for all ways of making workers with each of them, "
        "with more jobs and more random examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start background commands so; Ctrl-C is part of what is tested.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How many random examples a test has that does not say so itself.
    settings.register_profile("short", max_examples=30)
    settings.register_profile("thorough", max_examples=200)
    settings.load_profile("thorough" if config.getoption("thorough") else "short")
    config.addinivalue_line(
        "markers",
        "every_start_method(*but): run the test with each way of making workers, or with each but "
        "these, not only with the zygote",
    )
    config.addinivalue_line(
        "markers",
        "zygote_only: on a parameter, leaves it out with the other ways, which take longer",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "start_method" in metafunc.fixturenames and "start_method" not in own:
        everywhere = metafunc.definition.get_closest_marker("every_start_method")
        name = metafunc.module.__name__
        left_out = set(everywhere.args) if everywhere else set(START_METHODS[1:])
        if not metafunc.config.getoption("thorough"):
            left_out |= set() if name in FORKSERVER_IN else {"forkserver"}
            left_out |= set() if name in SPAWN_IN else {"spawn"}
        methods = [method for method in START_METHODS if method not in left_out]
        metafunc.parametrize("start_method", methods, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def wanted(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        method = callspec.params.get("start_method") if callspec else None
        return method in (None, "zygote") or not item.get_closest_marker("zygote_only")

    items[:] = filter(wanted, items)


@pytest.fixture(scope="session", autouse=True)
def _settled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Makes beforehand what is made once per process and would look like the first test's leak."""
    tmp_path_factory.getbasetemp()
    multiprocessing.util.get_temp_dir()
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # jobs crash here: no core files
    gc.collect()
    gc.freeze()  # or every test's collection would look at all the modules again


@pytest.fixture(autouse=True)
def nothing_left_over(_settled: None) -> Iterator[LeakWatch]:
    """Fails the test if it leaves a process, a thread, a descriptor or a file behind."""
    watch = LeakWatch()
    try:
        yield watch
        found = watch.leftovers()
        watch.kill()
    finally:
        watch.close()
    if found:
        pytest.fail("left over:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether a test that can do more or less of the same shall do more."""
    return bool(request.config.getoption("thorough"))


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_pool(nothing_left_over: LeakWatch, start_method: str) -> Iterator[Callable[..., Any]]:
    """Makes pools with the start method under test, and terminates them after the test."""
    from poolwatch import Pool

    pools = []

    def make(processes: int = 2, *args: Any, **options: Any) -> Any:
        pool = Pool(processes, *args, **{"context": start_method, **options})
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        bounded(pool.terminate)
        bounded(pool.join)


@pytest.fixture
def open_face(nothing_left_over: LeakWatch, start_method: str) -> Iterator[Callable[..., Any]]:
    """Makes what a face works with, with two workers, and terminates its pool after the test."""
    pools = []

    def open_it(face: Face, processes: int = 2, **options: Any) -> Any:
        target = face.make(processes, start_method, **options)
        pools.append(pool_behind(target))
        return target

    yield open_it
    for pool in pools:
        bounded(pool.terminate)
        bounded(pool.join)


@pytest.fixture
def stage(nothing_left_over: LeakWatch, tmp_path: Path) -> Iterator[Stage]:
    """Where the test's jobs ring a bell and wait at a gate."""
    stage = Stage(tmp_path)
    yield stage
    stage.close()
