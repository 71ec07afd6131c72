"""The crawler on Celery in examples/ runs, loses tasks with a reason, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery_rig import redis_program

START = Path(__file__).parent.parent / "examples" / "celery_crawler" / "start.py"


@pytest.mark.timeout(120)
@pytest.mark.skipif(redis_program() is None, reason="no redis-server for this Python")
def test_the_crawler_on_celery() -> None:
    """Beat sends, pages abort, the log says why, the statistics count; nothing is left over."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(START), "--losses", "2"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(START.parents[2])},
    )
    log, _, statistics = done.stdout.partition("the part of the pool:")
    log += done.stderr
    assert done.returncode == 0, log
    pool = json.loads(statistics)
    assert sum(pool["poolwatch"]["losses"].values()) >= 2
    assert set(pool["poolwatch"]["losses"]) <= {"SIGABRT", "time limit"}
    assert len(pool["processes"]) == pool["max-concurrency"] == 2
    assert "succeeded in" in log
    assert "Task handler raised error: " in log
    assert "in go_wrong" in log
    assert "worker: Warm shutdown" in log


@pytest.mark.timeout(60)
@pytest.mark.skipif(redis_program() is None, reason="no redis-server for this Python")
def test_a_worker_that_cannot_start_ends_the_example(tmp_path: Path) -> None:
    """It does not wait for ever for a worker that has ended, and says which program that was."""
    (tmp_path / "redis.py").write_text("raise SystemExit(3)\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(START)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(START.parents[2])])},
    )
    assert done.returncode == 1, done.stderr
    assert "ended with status 3, see above: " in done.stderr
    assert "-A crawler" in done.stderr
