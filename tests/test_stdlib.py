"""CPython's own tests of ``multiprocessing.Pool`` and ``ProcessPoolExecutor`` hold for ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TESTS

NOT_THERE = 5  # the runners' status where this Python has no tests of its own


def assert_they_pass(runner: str, *arguments: str, directory: Path, least: int) -> None:
    """All of them but those that the runner leaves out, each with its reason.

    Args:
        runner: the script.
        arguments: for it.
        directory: where it runs.
        least: how many tests there are on any Python.
    """
    done = subprocess.run(
        [sys.executable, str(TESTS / "stdlib" / runner), *arguments],
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=190,
    )
    if done.returncode == NOT_THERE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    ran = re.search(r"^(\d+) run, (\d+) skipped$", done.stdout, re.MULTILINE)
    assert ran is not None
    assert int(ran[1]) >= least
    assert int(ran[2]) == 0


@pytest.mark.timeout(200)
@pytest.mark.every_start_method
def test_tests_of_the_standard_library_pass(start_method: str, tmp_path: Path) -> None:
    """Those of the pool."""
    arguments = "--context", start_method
    assert_they_pass("run_pool_tests.py", *arguments, directory=tmp_path, least=30)


@pytest.mark.timeout(200)
@pytest.mark.every_start_method
def test_tests_of_executors_pass(start_method: str, tmp_path: Path) -> None:
    """Those of the executor; with the slower ways those that the way makes a difference to."""
    arguments, least = ["--method", start_method], 45
    if start_method != "zygote":
        arguments, least = [*arguments, "--brief"], 35
    if start_method == "spawn":  # a second each, most of it for the start of interpreters
        arguments, least = [*arguments, "Shutdown", "Deadlock", "Initializer"], 20
    assert_they_pass("run_executor_tests.py", *arguments, directory=tmp_path, least=least)
