"""Runs the tests that CPython keeps for its own ``ProcessPoolExecutor`` against poolwatch's.

``python run_executor_tests.py [-v] [PART OF A TEST'S NAME ...]``; the tests come with CPython as
the package ``test``. What is left out, and why, stands in ``LEFT_OUT``.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import unittest
from collections.abc import Iterator
from types import ModuleType

import poolwatch

LEFT_OUT: dict[str, str] = {}


def modules() -> Iterator[ModuleType]:
    """The modules of the tests: one up to Python 3.11, a package of several from then on."""
    package = importlib.import_module("test.test_concurrent_futures")
    yield package
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        if module.name.startswith("test_") or module.name == "executor":
            yield importlib.import_module(f"{package.__name__}.{module.name}")


def use_ours() -> None:
    """Have the mixins that say with which executor tests run say ours."""
    for name in ("test.test_concurrent_futures", "test.test_concurrent_futures.util"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for value in vars(module).values():
            is_mixin = isinstance(value, type) and value.__name__.startswith("ProcessPool")
            if is_mixin and "executor_type" in vars(value):
                value.executor_type = poolwatch.ProcessPoolExecutor


def cases() -> Iterator[unittest.TestCase]:
    """The tests that run with processes."""
    seen = set()
    for module in modules():
        for suite in unittest.defaultTestLoader.loadTestsFromModule(module):
            for case in suite:
                cls = type(case)
                is_process = any("ProcessPool" in base.__name__ for base in cls.__mro__)
                if is_process and case.id() not in seen:
                    seen.add(case.id())
                    yield case


def is_left_out(case: unittest.TestCase) -> bool:
    name = case.id().rpartition(".")[2]
    return name in LEFT_OUT or f"{type(case).__name__}.{name}" in LEFT_OUT


def main(arguments: list[str]) -> int:
    verbose = "-v" in arguments
    wanted = [text for text in arguments if text != "-v"]
    use_ours()
    suite = unittest.TestSuite(
        case
        for case in cases()
        if not is_left_out(case) and (not wanted or any(text in case.id() for text in wanted))
    )
    result = unittest.TextTestRunner(verbosity=1 + verbose).run(suite)
    print(f"{result.testsRun} run, {len(LEFT_OUT)} names left out")
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
