"""Programs from the standard library's documentation do the same when one import is changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TESTS, script_environment

pytestmark = pytest.mark.timeout(90)
PROGRAMS = sorted((TESTS / "programs").glob("*.py"))


def output_of(program: Path, source: str) -> list[str]:
    """Its lines; sorted, as some of them come in any order."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", str(program), source],
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr
    # concurrent.futures has a class of its own for that, of another name.
    text = done.stdout.replace("_RemoteTraceback", "RemoteTraceback")
    # In its debug mode asyncio says when the machine is slow.
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    return sorted([*text.splitlines(), *errors])


def test_there_are_programs() -> None:
    """The folder is not empty."""
    assert len(PROGRAMS) >= 5


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_program_prints_the_same(program: Path) -> None:
    """Line for line, on standard output and on standard error, warnings included."""
    ours = output_of(program, "poolwatch")
    assert ours == output_of(program, "standard")
    assert ours
