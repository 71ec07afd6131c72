"""Shared memory that jobs make goes when its process goes, as with multiprocessing's pool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import eventually, run_script

from poolwatch.launch import reaper

pytestmark = pytest.mark.timeout(60)
WAYS = ["close", "with", "next", "kill", "cancel", "terminate", "limit"]


@pytest.mark.parametrize("how", WAYS)
def test_segment_goes_with_its_worker(tmp_path: Path, how: str) -> None:
    """However a worker ends, what its jobs have left in /dev/shm is removed."""
    name = f"poolwatch-test-{os.getpid()}-{how}"
    assert run_script("shared_memory.py", "zygote", how, name, tmp_path / "flag") == "True\n"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_segment_goes_with_other_start_methods(tmp_path: Path, method: str) -> None:
    """With spawn the program's own tracker sees to it, when the program ends."""
    name = f"poolwatch-test-{os.getpid()}-{method}"
    run_script("shared_memory.py", method, "kill", name, tmp_path / "flag")
    eventually(lambda: not Path("/dev/shm", name).exists())


def test_trackers_are_known_by_their_command_line() -> None:
    """A program that only mentions the tracker's name, or is gone, is none."""
    wait = "import sys; sys.stdin.read()"
    for line, expected in (
        (["-c", f"{wait}\nfrom multiprocessing.resource_tracker import main;main(3)"], True),
        (["-c", wait, "resource_tracker"], False),
    ):
        with subprocess.Popen([sys.executable, *line], stdin=subprocess.PIPE) as process:
            try:
                assert process.stdin is not None
                eventually(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes() != b"")
                assert reaper._is_tracker(process.pid) is expected
            finally:
                process.kill()
    assert not reaper._is_tracker(process.pid)
