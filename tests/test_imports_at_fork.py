"""A fork while a thread imports a module leaves no lock taken for ever in the workers."""

from __future__ import annotations

import importlib
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import DEADLINE, Stage, eventually, run_script

from poolwatch.launch import imports

pytestmark = pytest.mark.timeout(40)

SLOW = """
import work
before = 1
work.ring_and_wait({bell!r}, {gate!r})
after = 2
"""
FORKING = pytest.mark.parametrize("start_method", ["zygote", "fork"], indirect=True)


class Importing(NamedTuple):
    """A module that a thread is importing, as far as its middle."""

    name: str
    thread: threading.Thread


@pytest.fixture
def importing(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Importing]:
    name = f"slow_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(SLOW.format(bell=stage.bell, gate=stage.gate))
    monkeypatch.syspath_prepend(tmp_path)
    thread = threading.Thread(target=importlib.import_module, args=(name,))
    thread.start()
    stage.heard()
    yield Importing(name, thread)
    stage.let_go()
    thread.join(DEADLINE)
    sys.modules.pop(name, None)


def names_in(module: str) -> list[str]:
    """What a worker sees of the module; in a worker."""
    found = vars(importlib.import_module(module))
    return [name for name in ("before", "after") if name in found]


@FORKING
def test_module_that_a_thread_is_importing(make_pool: Any, importing: Importing) -> None:
    """Workers see what there is of it, and do not wait for the thread, which they do not have."""
    pool = make_pool(1)
    assert pool.apply_async(names_in, (importing.name,)).get(DEADLINE) == ["before"]


@FORKING
def test_import_that_ends_is_waited_for(
    make_pool: Any, importing: Importing, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fork comes behind it, and workers have the whole module."""
    monkeypatch.setattr(imports, "PATIENCE", DEADLINE)
    made: list[Any] = []
    maker = threading.Thread(target=lambda: made.append(make_pool(1)))
    maker.start()
    eventually(lambda: imports.let_others_finish.__code__ in code_that_runs())
    stage.let_go()
    maker.join(DEADLINE)
    job = made[0].apply_async(names_in, (importing.name,))
    assert job.get(DEADLINE) == ["before", "after"]


def code_that_runs() -> list[Any]:
    """The code of the two innermost functions of every thread."""
    tops = sys._current_frames().values()
    return [frame.f_code for top in tops for frame in (top, top.f_back) if frame is not None]


@FORKING
def test_pool_that_is_made_while_its_module_is_imported(start_method: str) -> None:
    """The thread that imports it waits for the pool, which finds the functions of the module."""
    assert run_script("pool_at_import.py", start_method) == "[0, 1, 4]\n"
