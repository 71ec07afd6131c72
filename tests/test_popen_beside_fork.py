"""Programs that other threads start while a pool is being made."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import Any
from unittest import mock

import pytest
from helpers import DEADLINE, bounded


@pytest.mark.parametrize("capture_output", [False, True])
@pytest.mark.every_start_method("spawn", "forkserver")
def test_popen_in_another_thread_does_not_wait_for_the_pool(
    make_pool: Any, capture_output: bool
) -> None:
    """A process that is forked while another thread starts a program keeps none of its pipes."""
    started, made = threading.Event(), threading.Event()

    def start() -> None:
        subprocess.run(
            ["cat"],
            check=True,
            env={"PATH": os.environ["PATH"]},
            input=b"" if capture_output else None,
            stdin=None if capture_output else subprocess.DEVNULL,
            capture_output=capture_output,
        )

    popen = threading.Thread(target=start, daemon=True)
    with mock.patch("os.fsencode", side_effect=in_the_middle_of(os.fsencode, popen, started, made)):
        popen.start()
        assert started.wait(DEADLINE)
        pool = make_pool(1)
        assert bounded(lambda: pool.apply(pow, (2, 3))) == 8
        made.set()
        popen.join(DEADLINE)
    assert not popen.is_alive()


def in_the_middle_of(real: Any, thread: threading.Thread, started: Any, made: Any) -> Any:
    """Call the real function, but in one thread wait there once until the pool has been made."""

    def call(value: Any) -> Any:
        if threading.current_thread() is thread and not started.is_set():
            started.set()
            assert made.wait(DEADLINE)
        return real(value)

    return call
