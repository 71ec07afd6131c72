"""What type checkers find in programs that use a pool: the mistakes, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import TESTS

pytestmark = pytest.mark.timeout(180)
ROOT = TESTS.parent
PROGRAMS = TESTS / "typing"


def found_by_mypy(program: Path, scratch: Path) -> dict[int, str]:
    """Lines and texts of the errors."""
    pytest.importorskip("mypy", reason="mypy comes with the extra lint")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml"]
    command += ["--cache-dir", scratch, "--hide-error-context", program]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"MYPYPATH": f"{ROOT}:{PROGRAMS}"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Success" in done.stdout or "Found" in done.stdout
    pattern = rf"^\S*{program.name}:(\d+): error: (.*)$"
    return {int(line): text for line, text in re.findall(pattern, done.stdout, re.MULTILINE)}


def found_by_pyright(program: Path, scratch: Path) -> dict[int, str]:
    """The same with pyright, or basedpyright, which is a wheel and loads nothing at run time."""
    here = str(Path(sys.executable).parent)
    pyright = next(filter(None, (
        shutil.which(name, path=path)
        for name in ("basedpyright", "pyright")
        for path in (here, None)
    )), None)  # fmt: skip
    if pyright is None:
        pytest.skip("basedpyright comes with the extra lint")
    settings = {
        "typeCheckingMode": "standard",
        "pythonVersion": "3.10",
        "extraPaths": [str(ROOT), str(PROGRAMS)],
        "include": [str(program)],
    }
    (scratch / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [pyright, "--outputjson", "--pythonpath", sys.executable, "--project", scratch],
        capture_output=True,
        text=True,
        timeout=170,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"], done.stdout
    return {
        finding["range"]["start"]["line"] + 1: finding["message"]
        for finding in report["generalDiagnostics"]
        if finding["severity"] == "error"
    }


Checker = Callable[[Path, Path], "dict[int, str]"]
CHECKERS = pytest.mark.parametrize("checker", [found_by_mypy, found_by_pyright])


@CHECKERS
def test_nothing_is_found_in_right_programs(checker: Checker, tmp_path: Path) -> None:
    """Defaults, methods, classes, builtins, partials: no false error, and the promised types."""
    assert checker(PROGRAMS / "right.py", tmp_path) == {}


@CHECKERS
def test_every_mistake_is_found(checker: Checker, tmp_path: Path) -> None:
    """Arguments that do not fit the function, in the line where they are."""
    program = PROGRAMS / "wrong.py"
    lines = program.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert len(marked) > 25
    found = checker(program, tmp_path)
    assert set(found) == marked, {line: found.get(line) for line in set(found) ^ marked}
