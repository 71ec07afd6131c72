"""CPython's own tests of ``multiprocessing.Pool`` hold for ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TESTS

NOT_THERE = 5  # the runner's status where this Python has no tests of its own
RUNNER = TESTS / "stdlib" / "run_pool_tests.py"


@pytest.mark.timeout(200)
@pytest.mark.every_start_method
def test_tests_of_the_standard_library_pass(start_method: str, tmp_path: Path) -> None:
    """All of them but those that the runner leaves out, each with its reason."""
    done = subprocess.run(
        [sys.executable, str(RUNNER), "--context", start_method],
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=190,
    )
    if done.returncode == NOT_THERE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    ran = re.search(r"^(\d+) run, (\d+) skipped$", done.stdout, re.MULTILINE)
    assert ran is not None
    assert int(ran[1]) >= 30
    assert int(ran[2]) == 0
