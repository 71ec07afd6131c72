"""What a type checker knows about ``AsyncPool``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TESTS

pytest.importorskip("mypy")
pytestmark = pytest.mark.timeout(120)

PROGRAM = """\
from collections.abc import AsyncIterator

from poolwatch.aio import AsyncPool, JobFuture


def job(number: int, *, scale: float = 1.0) -> str:
    return str(number * scale)


async def main(pool: AsyncPool, source: AsyncIterator[int]) -> None:
    a: str = await pool.apply(job, 1)
    b: JobFuture[str] = pool.submit(job, 1, scale=2.0)
    c: str = await pool.options(timeout=1).apply(job, 1)
    d: list[str] = await pool.map(job, [1])
    e: list[str] = [text async for text in pool.imap(job, source)]
    f: list[str] = [text async for text in pool.imap_unordered(job, [1])]
    async with AsyncPool(2, timeout=3) as own:
        g: AsyncPool = own
    await pool.apply(job, "text")  # arg-type
    await pool.apply(job)  # call-arg
    await pool.options(tag=1).submit(job, 1, no_such=2)  # call-arg
    h: int = await pool.apply(job, 1)  # arg-type
    await pool.map(job, ["text"])  # arg-type
    AsyncPool(2, no_such=3)  # call-arg
"""


def test_calls_have_the_types_of_their_functions(tmp_path: Path) -> None:
    """The value's type comes out, and wrong arguments are errors, under mypy --strict."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    found = re.findall(r"program\.py:(\d+): error: .*\[(.*)\]", done.stdout)
    expected = [
        (str(number), line.split("# ")[1])
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if "# " in line
    ]
    assert found == expected, done.stdout + done.stderr
