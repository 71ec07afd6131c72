"""Runs the tests that CPython keeps for its own ``multiprocessing.Pool`` against poolwatch's.

``python run_pool_tests.py [-v] [--context METHOD] [PART OF A TEST'S NAME ...]``; the tests come
with CPython as the package ``test``. What is left out, and why, stands in ``LEFT_OUT``. Exits with
5 where the package is missing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import multiprocessing.pool
import sys
import threading
import types
import unittest
from collections.abc import Iterator
from typing import Any

import poolwatch

NOT_THERE = 5
MIXED_IN = ("_TestPool", "_TestPoolWorkerErrors", "_TestPoolWorkerLifetime")
SINGLE = (
    "TestInitializers.test_pool_initializer",
    "TestStdinBadfiledescriptor.test_pool_in_process",
    "MiscTestCase.test_large_pool",
    "TestPoolNotLeakOnFailure.test_release_unused_processes",
)
LEFT_OUT = {
    "test_resource_warning": "sets the private attribute _state of a pool that has ended",
    "test_imap_handle_iterable_exception": "with a chunksize of more than 1, multiprocessing drops "
    "the items of the chunk that were read before the input raised; here they have their results",
    "test_release_unused_processes": "replaces the class Process in a context by one that only "
    "pretends; processes are not made through it here",
}
# 200 interpreters that start at once take longer than one worker has to boot, on a small machine.
LEFT_OUT_AFRESH = {"test_large_pool": "makes 200 workers, each a fresh interpreter"}
# With threads or with a manager the classes above test ThreadPool and the manager's proxies.


def load() -> types.ModuleType:
    try:
        return importlib.import_module("test._test_multiprocessing")
    except ImportError as error:
        print(f"this Python has no tests of its own: {error}")
        sys.exit(NOT_THERE)


def use_ours(tests: types.ModuleType, context: str) -> Any:
    """Have everything that says ``multiprocessing.Pool`` in tests and their scripts mean ours."""
    pool = functools.partial(poolwatch.Pool, context=context)
    multiprocessing.Pool = pool  # type: ignore[assignment]
    # The class in an error's ``__cause__`` is asked for by identity.
    multiprocessing.pool.RemoteTraceback = poolwatch.RemoteTraceback  # type: ignore[attr-defined]
    helper = importlib.import_module("test.support.script_helper")
    run = helper.assert_python_ok
    made = f"functools.partial(poolwatch.Pool, context={context!r})"
    ours = f"import functools, poolwatch; {{}} = {made}"

    def translated(source: str) -> str:
        source = source.replace("from multiprocessing import Pool", ours.format("Pool"))
        return source.replace(
            "import multiprocessing\n",
            f"import multiprocessing; {ours.format('multiprocessing.Pool')}\n",
        )

    def assert_python_ok(*arguments: str, **environment: str) -> Any:
        if arguments[0] == "-c":
            arguments = ("-c", translated(arguments[1]), *arguments[2:])
        else:
            with open(arguments[0], encoding="utf-8") as file:
                source = translated(file.read())
            with open(arguments[0], "w", encoding="utf-8") as file:
                file.write(source)
        if "poolwatch" not in source_of(arguments):
            raise AssertionError("the script does not use our pool")
        # Isolated interpreters do not look at PYTHONPATH.
        return run(*arguments, __isolated=False, **environment)

    helper.assert_python_ok = assert_python_ok
    tests.unpickleable_result = threading.Lock  # type: ignore[attr-defined]  # a lambda travels here
    if hasattr(tests, "assert_python_ok"):
        tests.assert_python_ok = assert_python_ok  # type: ignore[attr-defined]
    return pool


def source_of(arguments: tuple[str, ...]) -> str:
    if arguments[0] == "-c":
        return arguments[1]
    with open(arguments[0], encoding="utf-8") as file:
        return file.read()


def cases(tests: types.ModuleType, pool: Any) -> Iterator[unittest.TestCase]:
    load_tests = unittest.defaultTestLoader.loadTestsFromTestCase
    for name in MIXED_IN:
        members = {"Pool": staticmethod(pool), "__module__": tests.__name__}
        bases = (getattr(tests, name), tests.ProcessesMixin, unittest.TestCase)
        made = type(name, bases, members)
        setattr(tests, name, made)  # where functions and methods of it are looked up
        yield from load_tests(made)  # type: ignore[misc]
    for name in SINGLE:
        class_name, method = name.split(".")
        cls = getattr(tests, class_name, None)
        if cls is not None and hasattr(cls, method):
            yield cls(method)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", action="store_true")
    parser.add_argument("--context", default="zygote")
    parser.add_argument("parts", nargs="*")
    options = parser.parse_args(arguments)
    tests = load()
    left_out = dict(LEFT_OUT)
    if options.context in ("spawn", "forkserver"):
        left_out |= LEFT_OUT_AFRESH
    found = list(cases(tests, use_ours(tests, options.context)))
    chosen = [
        case
        for case in found
        if case.id().rpartition(".")[2] not in left_out
        and (not options.parts or any(part in case.id() for part in options.parts))
    ]
    result = unittest.TextTestRunner(verbosity=1 + options.v).run(unittest.TestSuite(chosen))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    print(f"{result.testsRun} run, {len(result.skipped)} skipped")
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
