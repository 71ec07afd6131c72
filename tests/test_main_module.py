"""Workers in fresh interpreters import the main module; what happens when that cannot be done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import DEADLINE, script_environment

pytestmark = pytest.mark.timeout(100)

PROGRAM = """
import sys
import poolwatch

{on_import}

def work():
    pool = poolwatch.Pool(1, context=sys.argv[1], max_boot_failures=2)
    try:
        pool.apply(pow, (2, 3))
    except poolwatch.BootError as error:
        print("BootError:", error, "| caused by", type(error.__cause__).__name__)
    else:
        print("it worked")
    print(pool.health().problems)
    pool.terminate()
    pool.join()

{guard}
    work()
"""
GUARDED = 'if __name__ == "__main__":'


def run(program: str, method: str, directory: Path, stdin: bool = False) -> str:
    path = directory / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, "-" if stdin else str(path), method],
        input=program if stdin else None,
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE * 4,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
class TestFreshInterpreters:
    """Both kinds say the same."""

    def test_without_a_guard(self, method: str, tmp_path: Path) -> None:
        """The pool is broken after a few attempts, and the error says what is missing."""
        program = PROGRAM.format(on_import="", guard="if True:")
        said = run(program, method, tmp_path)
        assert "BootError: 2 workers in a row failed to boot" in said
        assert f"could not import the main module {tmp_path}/program.py" in said
        assert 'has no guard `if __name__ == "__main__":`' in said
        assert "caused by RuntimeError" in said

    def test_main_module_that_raises(self, method: str, tmp_path: Path) -> None:
        """Its exception is in the text, and is the cause."""
        bad = "if __name__ != '__main__': raise LookupError('only as a program')"
        said = run(PROGRAM.format(on_import=bad, guard=GUARDED), method, tmp_path)
        assert f"main module {tmp_path}/program.py: LookupError('only as a program')" in said
        assert "caused by LookupError" in said

    def test_main_module_that_exits(self, method: str, tmp_path: Path) -> None:
        """``sys.exit()`` is an exception as well."""
        bad = "if __name__ != '__main__': sys.exit(3)"
        said = run(PROGRAM.format(on_import=bad, guard=GUARDED), method, tmp_path)
        assert f"main module {tmp_path}/program.py: SystemExit(3)" in said

    def test_main_module_that_ends_the_process(self, method: str, tmp_path: Path) -> None:
        """Nothing is left then that could tell the reason but the exit code."""
        bad = "import os\nif __name__ != '__main__': os._exit(3)"
        said = run(PROGRAM.format(on_import=bad, guard=GUARDED), method, tmp_path)
        assert "BootError: 2 workers in a row failed to boot" in said
        assert "exitcode 3" in said

    def test_program_on_standard_input(self, method: str, tmp_path: Path) -> None:
        """It cannot be read a second time."""
        program = PROGRAM.format(on_import="", guard=GUARDED).replace("\n\n    ", "\n    ")
        said = run(program, method, tmp_path, stdin=True)
        assert "the program was read from standard input" in said


def test_initializer_that_does_not_unpickle(tmp_path: Path) -> None:
    """That is told apart from a main module that cannot be imported."""
    program = """
import poolwatch

class Odd:
    def __reduce__(self):
        return int, ("no number",)

if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        pool = poolwatch.Pool(
            1, initializer=print, initargs=(Odd(),), context=method, max_boot_failures=2
        )
        try:
            pool.apply(pow, (2, 3))
        except poolwatch.BootError as error:
            print(error)
        pool.terminate()
        pool.join()
"""
    said = run(program, "", tmp_path)
    assert said.count("a fresh interpreter could not load the initializer: ValueError(") == 2
