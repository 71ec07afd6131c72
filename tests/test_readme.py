"""The README's Python blocks run as they stand, and say what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block: str, tmp_path: Path) -> None:
    """Each block is a program of its own that ends well."""
    script = tmp_path / "block.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(README.parent)},
    )
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"print\(.*\)\s+# ([^;:\n]+)", block):
        assert promised.strip() in done.stdout


def test_there_are_blocks() -> None:
    """The pattern finds the example and the policy."""
    assert len(BLOCKS) >= 2
    assert any("apply_async" in block for block in BLOCKS)
