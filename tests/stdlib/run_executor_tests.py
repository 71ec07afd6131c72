"""Runs the tests that CPython keeps for its own ``ProcessPoolExecutor`` against poolwatch's.

``python run_executor_tests.py [-v] [--brief] [--method METHOD ...] [PART OF A TEST'S NAME ...]``

The tests come with CPython as the package ``test``; exits with 5 where that is missing. Nothing of
them is copied. What is left out, and why, stands in ``LEFT_OUT``. Where poolwatch promises another
error than the standard library, the test runs with that error in its place, see ``ERRORS``.

Some tests look at behaviour by way of private attributes (do the processes end?). For them the
executor under test has these attributes, made from public ones: see ``Executor``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import concurrent.futures.process
import contextlib
import importlib
import os
import pickle
import pkgutil
import select
import signal
import sys
import threading
import time
import types
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import poolwatch

NOT_THERE = 5
SECONDS_PER_TEST = 60
SECONDS_FOR_THE_END = 15  # of a test that hangs
METHODS = ("zygote", "fork", "forkserver", "spawn")  # with zygote, the tests for fork
BRIEF = ("Shutdown", "Initializer", "Deadlock", "ExecutorTest")
"""Parts of names of the tests to which the start method makes a difference."""
WAITING = ("test_map_timeout",)  # for seconds, with any method
WORKERS_IN_BRIEF = 2  # the tests want 5, which as fresh interpreters take most of the time

LEFT_OUT = {
    "test_killed_child": "a death there breaks the executor; here it fails one future or none",
    "test_idle_process_reuse_one": "counts workers made on demand; here all are made at once",
    "test_idle_process_reuse_multiple": "likewise",
    "Forkserver.test_processes_terminate": "likewise, except with fork",
    "Spawn.test_processes_terminate": "likewise",
    "Fork.test_max_tasks_per_child": "wants fork to be refused with it; here it works",
    "Fork.test_max_tasks_early_shutdown": "skips itself for the same reason",
    "test_max_tasks_per_child_defaults_to_spawn_context": "likewise: no other context is needed",
    "test_python_finalization_error": "breaks the start of the standard library's own threads",
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "replaces its own private classes",
    "test_cancel_futures": "wants one to have begun at once; what has not is cancelled here",
    "test_max_workers_too_large": "only on Windows",
}

LOST = (
    concurrent.futures.process.BrokenProcessPool,
    poolwatch.WorkerLostError,
    poolwatch.JobDecodingError,
    poolwatch.MaybeEncodingError,
)
ERRORS: dict[str, Any] = {
    # One job's loss is that, and not the executor's end.
    "BrokenProcessPool": LOST,
    # What cannot be pickled on the way back is told apart from what the job raised.
    "PicklingError": (pickle.PicklingError, poolwatch.MaybeEncodingError),
    # One that leaves in the middle of pickling its result is lost.
    "SystemExit": (SystemExit, poolwatch.WorkerLostError),
}
"""What stands, in the tests of deadlocks, for the names of errors that they expect."""


class Process:
    """A worker, as the tests see it: something that can be joined and terminated."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = -1

    def join(self) -> None:
        if self._pidfd >= 0:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll()
            os.close(self._pidfd)
            self._pidfd = -1

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)


class Queue:
    """There is no queue, so that its thread has ended."""

    def join_thread(self) -> None:
        pass


class Executor(poolwatch.ProcessPoolExecutor):
    """The executor under test, with the private attributes by which tests look at it."""

    _call_queue = Queue()
    ignores_context = False  # all that are made use the default

    def __init__(self, *args: Any, mp_context: Any = None, **options: Any) -> None:
        context = None if self.ignores_context else mp_context
        super().__init__(*args, mp_context=context, **options)

    @property
    def _processes(self) -> dict[int, Process]:
        while True:
            pids = [worker.pid for worker in self._pool.workers]
            if len(pids) >= self._max_workers and None not in pids:
                return {pid: Process(pid) for pid in pids if pid is not None}

    @property
    def _executor_manager_thread(self) -> Any:
        return self._core._thread

    @property
    def _broken(self) -> bool:
        return isinstance(self._core._refusal, poolwatch.PoolBroken)


Executor.__name__ = "ProcessPoolExecutor"  # it goes into the text of programs


class Names(types.SimpleNamespace):
    """``concurrent.futures`` for the tests' eyes."""

    def __init__(self) -> None:
        process = types.SimpleNamespace(**vars(concurrent.futures.process))
        process._RemoteTraceback = poolwatch.RemoteTraceback
        names = {name: getattr(concurrent.futures, name) for name in concurrent.futures.__all__}
        super().__init__(**{**vars(concurrent.futures), **names, "process": process})

    # Another class than the one under test: tests that fail with the standard library's executor
    # are skipped where the two are the same.
    class ProcessPoolExecutor(Executor):
        pass


def run_program(*arguments: str, **options: Any) -> Any:
    """Run a test's program with poolwatch's executor (for ``assert_python_ok``)."""
    from test.support.script_helper import assert_python_ok

    *flags, text = arguments
    theirs, ours = "from concurrent.futures import", "from poolwatch import"
    assert theirs in text
    head, line, rest = text.replace(theirs, ours).partition("\n")
    # One of them uses a module that it has forgotten to import.
    text = f"{head}{line}    import multiprocessing\n{rest}" if line else text
    text = text.replace("if 1:\n    import", "if 1:\n            import")
    text = text.replace("if True:\n    import", "if True:\n            import")
    root = str(Path(poolwatch.__file__).parent.parent)
    return assert_python_ok(*flags, text, PYTHONPATH=root, __isolated=False, **options)


@contextlib.contextmanager
def unlogged(self: Any, text: str) -> Iterator[None]:
    """In the place of a look into the worker's log: the cause is in the error here."""
    yield


def no_threads_left(*before: object) -> None:
    """In the place of a count of thread objects, which waits for garbage as well."""
    deadline = time.monotonic() + 10
    while left := [t for t in threading.enumerate() if t.name.startswith("poolwatch")]:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        left[0].join(0.1)


def modules() -> list[types.ModuleType]:
    """The modules of the tests: one up to Python 3.11, a package of several from then on."""
    package = importlib.import_module("test.test_concurrent_futures")
    found = [package]
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        if module.name.startswith("test_") or module.name in ("executor", "util"):
            found.append(importlib.import_module(f"{package.__name__}.{module.name}"))
    return found


def use_ours(found: list[types.ModuleType], workers: int | None) -> None:
    """Have the tests use the executor under test, wherever they take theirs from.

    Args:
        found: the modules of the tests.
        workers: how many workers executors have; None for as many as the tests want.
    """
    from test.support import threading_helper

    threading_helper.threading_cleanup = no_threads_left
    for module in found:
        names = vars(module)
        for value in list(names.values()):
            if not isinstance(value, type):
                continue
            if value.__name__.startswith("ProcessPool") and "executor_type" in vars(value):
                value.executor_type = Executor
            if "worker_count" in vars(value) and workers is not None:
                value.worker_count = workers
            if value.__name__ == "FailingInitializerMixin":
                value._assert_logged = unlogged
        if names.get("futures") is concurrent.futures:
            module.futures = Names()
        if "assert_python_ok" in names:
            module.assert_python_ok = run_program
        if "ExecutorDeadlockTest" in names:
            vars(module).update(ERRORS)


@contextlib.contextmanager
def deadline(case: unittest.TestCase) -> Iterator[None]:
    """Nothing may hang; a test that sets its own alarm is bounded by that one."""

    def expired(signum: int, frame: object) -> None:
        signal.alarm(SECONDS_FOR_THE_END)  # what is torn down may hang as well
        raise AssertionError(f"{case.id()} hangs")

    old = signal.signal(signal.SIGALRM, expired)
    signal.alarm(SECONDS_PER_TEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def method_of(case: unittest.TestCase) -> str:
    """The start method in the name of a test's class: Fork, Forkserver or Spawn."""
    name = type(case).__name__.removeprefix("ProcessPool")
    return next(m for m in ("Forkserver", "Fork", "Spawn") if name.startswith(m))


def cases(found: list[types.ModuleType]) -> Iterator[unittest.TestCase]:
    """The tests that run with processes."""
    seen = set()
    for module in found:
        for suite in unittest.defaultTestLoader.loadTestsFromModule(module):
            for case in suite:
                if not type(case).__name__.startswith(("ProcessPoolFork", "ProcessPoolSpawn")):
                    continue  # not with processes, or not a test but what could not be loaded
                name = type(case).__name__, case._testMethodName
                if name not in seen:
                    seen.add(name)
                    yield case


class Result(unittest.TextTestResult):
    """Bounds each test."""

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._deadline = deadline(test)
        self._deadline.__enter__()

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._deadline.__exit__(None, None, None)
        super().stopTest(test)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-v", action="store_true", help="name each test")
    parser.add_argument("--brief", action="store_true", help="what depends on the start method")
    parser.add_argument("--method", action="append", choices=METHODS, help="only that one")
    parser.add_argument("parts", nargs="*", help="only tests with one of these in the name")
    options = parser.parse_args()
    Executor.ignores_context = options.method == ["zygote"]
    methods = ["fork"] if Executor.ignores_context else options.method
    try:
        found = modules()
    except ImportError as error:
        print(f"this Python has no tests of its own: {error}")
        return NOT_THERE
    use_ours(found, WORKERS_IN_BRIEF if options.brief else None)
    chosen, left_out = unittest.TestSuite(), set()
    for case in cases(found):
        name, method = case._testMethodName, method_of(case)
        if methods and method.lower() not in methods:
            continue
        if options.parts and not any(part in case.id() for part in options.parts):
            continue
        if options.brief and (name in WAITING or not any(part in case.id() for part in BRIEF)):
            continue
        if {name, f"{method}.{name}"} & LEFT_OUT.keys():
            left_out.add(name)
            continue
        chosen.addTest(case)
    runner = unittest.TextTestRunner(verbosity=1 + options.v, resultclass=Result)
    result = runner.run(chosen)
    print(f"\n{result.testsRun} run, {len(result.skipped)} skipped")
    for name in sorted(left_out):
        reason = next(text for key, text in LEFT_OUT.items() if key.endswith(name))
        print(f"left out: {name}: {reason}")
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main())
