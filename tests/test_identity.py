"""Workers are told apart by multiprocessing's identity, as those of its own pool are."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import work
from helpers import DEADLINE, Stage, eventually, kill_and_wait

import poolwatch

pytestmark = pytest.mark.timeout(40)


def identity() -> tuple[int, ...]:
    return multiprocessing.current_process()._identity  # type: ignore[attr-defined]


def ring_identity(bell: str, gate: str) -> tuple[tuple[int, ...], str]:
    """Ring, wait to be let go, return the identity and the name."""
    work.ring_and_wait(bell, gate)
    return identity(), multiprocessing.current_process().name


def identity_in_nested_pool() -> tuple[int, ...]:
    with poolwatch.Pool(1) as pool:
        return pool.apply(identity)


@pytest.mark.every_start_method
def test_each_worker_has_a_number_of_its_own(make_pool: Any, stage: Stage) -> None:
    """Two workers are 1 and 2; the replacement of one that died is 3."""
    pool = make_pool(2)
    jobs = [pool.apply_async(ring_identity, (stage.bell, stage.gate)) for _ in range(2)]
    pids = stage.heard_pids(2)
    stage.let_go(2)
    found = dict(job.get(DEADLINE) for job in jobs)
    own = identity()
    assert sorted(found) == [(*own, 1), (*own, 2)]
    assert all(name.endswith(f"-{path[-1]}") for path, name in found.items())
    kill_and_wait(pids[0])
    eventually(lambda: pids[0] not in [worker.pid for worker in pool.workers])
    jobs = [pool.apply_async(ring_identity, (stage.bell, stage.gate)) for _ in range(2)]
    stage.heard_pids(2)
    stage.let_go(2)
    assert (*own, 3) in dict(job.get(DEADLINE) for job in jobs)


def test_nested_pool_continues_the_path(make_pool: Any) -> None:
    """A worker of a job's own pool has the job's worker in its identity."""
    pool = make_pool(1)
    assert pool.apply_async(identity_in_nested_pool).get(DEADLINE) == (*identity(), 1, 1)
