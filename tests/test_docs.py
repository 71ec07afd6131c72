"""README and docs tell the truth: every block runs, every public name is in the reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import poolwatch
import poolwatch.aio

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path) -> None:
    """Each block is a program of its own that ends well and prints what it says."""
    script = tmp_path / "block.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"print\(.*\)\s+# ([^;:\n]+)", block):
        assert promised.strip() in done.stdout


def test_sample_of_a_crash_is_what_is_printed(tmp_path: Path) -> None:
    """But for the numbers."""
    (tmp_path / "crawler").mkdir()
    lines = [""] * 89
    lines[29:31] = ["def parse(page):", "    links(page)"]
    lines[86:88] = ["def links(page):", "    import os; os.abort()"]
    (tmp_path / "crawler" / "parse.py").write_text("\n".join(lines))
    (tmp_path / "program.py").write_text(
        "from crawler.parse import parse\nfrom poolwatch import Pool, WorkerLostError\n\n"
        "with Pool(2) as pool:\n    pool.apply(abs, (1,))\n"
        "    try:\n        pool.apply(parse, ('/about',))\n"
        "    except WorkerLostError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        capture_output=True,
        text=True,
        timeout=40,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    sample = re.search(r"```\n(Worker exited .*?)\n```", PAGES[0].read_text(), flags=re.DOTALL)
    assert sample is not None

    def general(text: str) -> str:
        text = re.sub(r"0x[0-9a-f]{16}|pid \d+|[\d.]+ s;|poolwatch-\d", "#", text)
        return text.replace(f"{tmp_path}/", "/srv/").strip()

    assert general(done.stdout) == general(sample[1])


def test_there_are_blocks() -> None:
    """The pattern finds them."""
    assert len(BLOCKS) >= 20
    assert any("apply_async" in block.values[0] for block in BLOCKS)


def documented() -> str:
    """The names that the reference is made for, and what it says itself."""
    return "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))


# Those that are somebody else's, or are a page of their own.
BORROWED = {"__version__", "events", "TimeoutError"}


@pytest.mark.parametrize("name", sorted(set(poolwatch.__all__) - BORROWED))
def test_public_name_is_in_the_reference(name: str) -> None:
    """With a docstring, which is what the page shows."""
    value = getattr(poolwatch, name)
    assert value.__doc__
    in_errors = getattr(value, "__module__", "") in (
        "poolwatch.exceptions",
        "multiprocessing.context",
    )
    assert in_errors or re.search(rf"poolwatch\.{name}\b", documented()), name


def test_every_event_has_a_docstring() -> None:
    """The reference shows the whole module."""
    assert "::: poolwatch.events\n" in documented()
    for name, value in vars(poolwatch.events).items():
        if isinstance(value, type) and value.__module__ == "poolwatch.events":
            assert value.__doc__, name


@pytest.mark.parametrize("name", poolwatch.aio.__all__)
def test_public_name_of_aio_is_in_the_reference(name: str) -> None:
    """The same for asyncio."""
    assert f"::: poolwatch.aio.{name}\n" in documented()
    assert getattr(poolwatch.aio, name).__doc__


def test_every_page_is_in_the_navigation() -> None:
    """And the navigation names no page that is not there."""
    named = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert named == pages
