"""Names of processes in ps, where setproctitle is installed."""

from __future__ import annotations

import sys
from typing import Any

import child_work
import pytest

from poolwatch.worker import title


@pytest.mark.every_start_method("fork")
def test_processes_of_a_pool_have_titles(make_pool: Any) -> None:
    """The worker, its zygote and the guardian say whose they are and what."""
    pytest.importorskip("setproctitle", reason="the extra 'title' is not installed")
    pool = make_pool(1, name="named")
    assert pool.apply(child_work.command_lines) == (
        f"poolwatch: named {pool.workers[0].name}",
        "poolwatch: named zygote",
        "poolwatch: named guardian",
    )


def test_titles_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without setproctitle nothing happens, and it is looked for once."""
    monkeypatch.setitem(sys.modules, "setproctitle", None)
    monkeypatch.setattr(title, "_missing", False)
    title.set_title("pool", "worker")
    assert title._missing
