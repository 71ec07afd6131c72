"""What a job finds around it: environment, directory, context variables."""

from __future__ import annotations

import contextvars
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import child_work
import pytest
from helpers import DEADLINE, Stage, bounded

from poolwatch import (
    JobDecodingError,
    RetryLost,
    SoftTimeLimitExceeded,
    Terminated,
)

A = "POOLWATCH_A"


@pytest.fixture(autouse=True)
def _clean_context() -> Any:
    """What a test sets in its own context is gone after it."""
    token = child_work.tenant.set(None)
    yield
    child_work.tenant.reset(token)


def in_context(call: Any, **values: Any) -> Any:
    """Calls in a context of its own, in which these variables are set and no others."""

    def run() -> Any:
        for name, value in values.items():
            getattr(child_work, name).set(value)
        return call()

    return contextvars.Context().run(run)


# -- environment and directory --------------------------------------------------------------------


@pytest.mark.every_start_method
def test_env_and_cwd_hold_for_the_job_and_no_longer(make_pool: Any, tmp_path: Path) -> None:
    """A job sees its variables and its directory; the next one in that worker sees neither."""
    pool = make_pool(1)
    before = pool.apply(child_work.look_around, (A,))
    job = pool.apply_async(child_work.look_around, (A,), env={A: "1"}, cwd=tmp_path)
    assert job.get(DEADLINE) == (str(tmp_path), {A: "1"})
    assert pool.apply(child_work.look_around, (A,)) == before
    assert before[1] == {A: None}


@pytest.mark.parametrize("func", [child_work.raise_around, child_work.leave_around])
def test_surroundings_are_restored_after_a_job_that_fails(
    make_pool: Any, tmp_path: Path, func: Any
) -> None:
    """Also a job that raises or exits leaves its worker as it was."""
    pool = make_pool(1)
    before = pool.apply(child_work.look_around, (A,))
    with pytest.raises((KeyError, SystemExit)):
        pool.apply_async(func, env={A: "1"}, cwd=tmp_path).get(DEADLINE)
    assert pool.apply(child_work.look_around, (A,)) == before


def test_surroundings_are_restored_after_a_soft_limit(
    make_pool: Any, stage: Stage, tmp_path: Path
) -> None:
    """A soft limit interrupts the job, and the same worker is as it was."""
    pool = make_pool(1)
    before, pid = pool.apply(child_work.look_around, (A,)), pool.apply(os.getpid)
    job = pool.apply_async(
        child_work.ring_and_spin, (stage.bell,), env={A: "1"}, cwd=tmp_path, soft_timeout=0.3
    )
    with pytest.raises(SoftTimeLimitExceeded):
        job.get(DEADLINE)
    assert pool.apply(child_work.look_around, (A,)) == before
    assert pool.apply(os.getpid) == pid


def test_job_with_surroundings_can_be_terminated(
    make_pool: Any, stage: Stage, tmp_path: Path
) -> None:
    """terminate() reads as such, also within settings."""
    pool = make_pool(1)
    job = pool.apply_async(child_work.ring_and_spin, (stage.bell,), env={A: "1"}, cwd=tmp_path)
    assert stage.heard() == "in"
    job.terminate()
    with pytest.raises(Terminated):
        job.get(DEADLINE)
    assert pool.apply(child_work.look_around, (A,))[1] == {A: None}


def test_directory_that_does_not_exist_fails_its_job_only(make_pool: Any, tmp_path: Path) -> None:
    """The error names the argument and the path; the worker goes on, with its environment."""
    pool = make_pool(1)
    before, pid = pool.apply(child_work.look_around, (A,)), pool.apply(os.getpid)
    missing = tmp_path / "missing"
    job = pool.apply_async(child_work.look_around, env={A: "1"}, cwd=missing)
    with pytest.raises(FileNotFoundError, match="cwd cannot be entered") as caught:
        job.get(DEADLINE)
    assert caught.value.filename == str(missing)
    assert pool.apply(child_work.look_around, (A,)) == before
    assert pool.apply(os.getpid) == pid


def test_job_may_spoil_its_environment(make_pool: Any) -> None:
    """Restoring copes with a job that deletes the variables, and what it set itself stays."""
    pool = make_pool(1)
    assert pool.apply_async(child_work.spoil_environment, env={A: "1"}).get(DEADLINE) is None
    assert pool.apply_async(os.getenv, (A,)).get(DEADLINE) is None
    job = pool.apply_async(os.getenv, ("POOLWATCH_OWN",))
    assert job.get(DEADLINE) in ("own", None)  # os.getenv looks into the mapping put there


def test_workers_own_directory_may_vanish_meanwhile(make_pool: Any, tmp_path: Path) -> None:
    """The directory to go back to has been removed: the jobs that follow run."""
    pool = make_pool(1)
    old = tmp_path / "old"
    old.mkdir()
    pool.apply(child_work.enter, (str(old),))
    job = pool.apply_async(child_work.remove_old_directory, (str(old),), cwd=tmp_path)
    assert job.get(DEADLINE) == str(tmp_path)
    pid = pool.apply(os.getpid)
    assert pool.apply_async(child_work.variables, cwd=tmp_path).get(DEADLINE)
    assert pool.apply(os.getpid) == pid


def test_settings_survive_a_retry(make_pool: Any, tmp_path: Path) -> None:
    """A job that is started again finds the same surroundings."""
    pool = make_pool(1, contextvars=[child_work.tenant])
    job = in_context(
        lambda: pool.apply_async(
            child_work.crash_the_first_time,
            (str(tmp_path / "flag"),),
            env={A: "kept"},
            lost_worker_policy=RetryLost(2),
        ),
        tenant="t",
    )
    assert job.get(DEADLINE)[:2] == ("kept", "t")


def test_settings_survive_sending_by_value(make_pool: Any, tmp_path: Path) -> None:
    """A function that the worker does not know is sent by value, with the same settings."""
    pool = make_pool(1)
    pool.apply(os.getpid)
    path = tmp_path / "module_of_the_job.py"
    path.write_text("import os\ndef look(): return os.environ.get('POOLWATCH_A'), os.getcwd()\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import module_of_the_job
    finally:
        sys.path.remove(str(tmp_path))
    job = pool.apply_async(module_of_the_job.look, env={A: "late"}, cwd=tmp_path)
    assert job.get(DEADLINE) == ("late", str(tmp_path))


# -- context variables ----------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_listed_context_variables_travel(make_pool: Any) -> None:
    """apply_async, map and imap see the submitter's values; others stay at home."""
    pool = make_pool(1, contextvars=[child_work.tenant, child_work.locale])

    def submit() -> list[Any]:
        child_work.unlisted.set("submitter's")
        return [
            pool.apply(child_work.variables),
            *pool.map(child_work.look_at_item, range(4), 2),
            *pool.map(child_work.look_at_item, range(2), 1),
            *pool.imap(child_work.look_at_item, iter(range(2))),
            *pool.imap_unordered(child_work.look_at_item, range(4), 2),
        ]

    assert bounded(lambda: in_context(submit, tenant=[7], locale="de")) == [([7], "de", "own")] * 13


def test_values_are_those_at_the_call(make_pool: Any) -> None:
    """What the submitter sets later does not show, and what it has not set is unset."""
    pool = make_pool(1, contextvars=[child_work.tenant, child_work.locale])
    first = in_context(lambda: pool.apply_async(child_work.variables), tenant="first")
    second = in_context(lambda: pool.apply_async(child_work.variables))
    assert first.get(DEADLINE)[:2] == ("first", "en")
    assert second.get(DEADLINE)[:2] == ("unset", "en")


def test_unset_variable_stays_unset_where_workers_inherit_a_value(start_method: str) -> None:
    """The pool was made where the variable was set; a job submitted elsewhere finds it unset."""
    from poolwatch import Pool

    child_work.tenant.set("of the pool's maker")
    with Pool(1, contextvars=[child_work.tenant]) as pool:
        job = in_context(lambda: pool.apply_async(child_work.variables))
        assert job.get(DEADLINE)[0] == "unset"


def test_what_a_job_sets_does_not_leak(make_pool: Any) -> None:
    """A job runs in a context of its own."""
    pool = make_pool(1, contextvars=[child_work.tenant])
    job = in_context(lambda: pool.apply_async(child_work.set_variables))
    job.get(DEADLINE)
    job = in_context(lambda: pool.apply_async(child_work.variables))
    assert job.get(DEADLINE)[:2] == ("unset", "en")


def test_settings_go_with_large_payloads(make_pool: Any) -> None:
    """A payload that travels in a memory file has its settings in front too."""
    pool = make_pool(1, contextvars=[child_work.tenant])
    job = in_context(
        lambda: pool.apply_async(child_work.length_and_variables, (b"x" * 3_000_000,)), tenant="big"
    )
    assert job.get(DEADLINE) == (3_000_000, "big")


class Refuses:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def test_value_that_does_not_pickle_fails_the_submission(make_pool: Any) -> None:
    """The handle's error names the variable; a map fails with it too, and the pool goes on."""
    pool = make_pool(1, contextvars=[child_work.tenant])
    job = in_context(lambda: pool.apply_async(child_work.variables), tenant=Refuses())
    with pytest.raises(pickle.PicklingError, match="'tenant' does not pickle"):
        job.get(DEADLINE)
    result = in_context(
        lambda: pool.map_async(child_work.look_at_item, range(5), 2), tenant=Refuses()
    )
    with pytest.raises(pickle.PicklingError, match="'tenant' does not pickle"):
        result.get(DEADLINE)
    items = in_context(lambda: pool.imap(child_work.look_at_item, range(2)), tenant=Refuses())
    for _ in range(2):
        with pytest.raises(pickle.PicklingError, match="'tenant'"):
            items.next(DEADLINE)
    assert pool.apply_async(child_work.variables).get(DEADLINE)


def test_value_that_does_not_unpickle_fails_its_job_only(make_pool: Any) -> None:
    """The error names the variable; the same worker runs the next job."""
    pool = make_pool(1, contextvars=[child_work.tenant])
    pid = pool.apply(os.getpid)
    big = b"x" * 2_000_000
    for args in ((), (big,)):  # a descriptor that comes with it is closed
        job = in_context(
            lambda args=args: pool.apply_async(child_work.variables, args),
            tenant=child_work.LoadsNowhere(),
        )
        with pytest.raises(JobDecodingError, match=r"'tenant' could not be unpickled.*refused"):
            job.get(DEADLINE)
    assert pool.apply(os.getpid) == pid


@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_variable_that_fresh_workers_cannot_find_is_refused_at_once(make_pool: Any) -> None:
    """Fresh workers find a variable by name: a local one is an error at Pool()."""
    with pytest.raises(pickle.PicklingError, match="'nowhere' is no global variable"):
        make_pool(1, contextvars=[contextvars.ContextVar("nowhere")])
