"""The results as pictures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Run


def draw(run: Run, folder: Path, stem: str) -> list[str]:
    """Draw what there is to draw; return the names of the files."""
    return []
