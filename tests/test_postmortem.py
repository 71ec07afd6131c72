"""A loss explains itself: in the exception, the log, the event, and as plain values."""

from __future__ import annotations

import inspect
import json
import logging
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import death_work
import faults
import pytest
import work
from helpers import (
    DEADLINE,
    TESTS,
    Stage,
    assert_full_strength,
    eventually,
    only_worker,
    script_environment,
)

from poolwatch import (
    JobCancelled,
    Postmortem,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
    events,
    postmortem,
)

pytestmark = pytest.mark.timeout(40)


def loss_of(pool: Any, func: Any, *args: Any, **options: Any) -> WorkerLostError:
    with pytest.raises(WorkerLostError) as caught:
        pool.apply_async(func, args, **options).get(DEADLINE)
    return caught.value


def record_of(pool: Any, func: Any, *args: Any, **options: Any) -> Postmortem:
    record = loss_of(pool, func, *args, **options).postmortem
    assert record is not None
    return record


def guilty_line() -> int:
    lines, first = inspect.getsourcelines(death_work.decode)
    return next(first + n for n, line in enumerate(lines) if "must be named" in line)


@pytest.mark.every_start_method
def test_abort_three_calls_deep(make_pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    """File, line and function are in the exception, the log, the event and the plain values."""
    caplog.set_level(logging.INFO, "poolwatch")
    pool = make_pool(1)
    heard: list[events.JobLost] = []
    pool.listen(heard.append, events.JobLost)
    error = loss_of(pool, death_work.parse, "<html>", tag="page 7", correlation_id="c7")
    place = f"tests/death_work.py:{guilty_line()} in decode"
    record = error.postmortem
    assert record is not None
    assert record.verdict == f"aborted in C code called from {place}"
    assert "parse('<html>')" in str(error)
    assert place in str(error)
    for function in ("decode", "read", "parse"):
        assert re.search(rf"death_work.py\", line \d+ in {function}", str(error))
    eventually(lambda: heard)
    assert heard[0].postmortem is record
    (logged,) = [entry for entry in caplog.records if "lost" in entry.getMessage()]
    assert logged.levelno == logging.ERROR
    assert place in logged.getMessage()
    assert "\n" not in logged.getMessage()
    assert logged.postmortem is record  # type: ignore[attr-defined]
    assert "in parse" in (logged.stack_info or "")
    values = json.loads(json.dumps(record.as_dict()))
    assert values["verdict"] == record.verdict
    assert values["traceback"] == record.traceback
    assert (values["tag"], values["correlation_id"]) == ("page 7", "c7")
    assert (values["signal_name"], values["attempt"], values["phase"]) == ("SIGABRT", 1, "running")


def test_record_tells_who_and_when(make_pool: Any) -> None:
    """Worker, age, jobs done before, time of death, run time, greatest memory."""
    pool = make_pool(1)
    pid, began = only_worker(pool), time.time()
    for number in range(3):
        pool.apply(work.square, (number,))
    record = record_of(pool, death_work.abort_with)
    assert (record.pid, record.jobs_done) == (pid, 4)
    assert record.age is not None
    assert record.run_time is not None
    assert 0 <= record.run_time <= record.age
    assert record.when is not None
    assert began <= record.when <= time.time()
    assert record.peak_rss is not None
    assert record.peak_rss > 2**20
    assert record.memory_limit is record.rss is record.stderr is record.core is None


@pytest.mark.parametrize(
    ("args", "named", "text"),
    [
        ((), {}, "abort_with()"),
        ((1, "a", None, 2.5), {"key": b"v"}, "abort_with(1, 'a', None, 2.5, key=b'v')"),
        ((list(range(9)),), {}, "abort_with([0, 1, 2, 3, ...])"),
        (({1}, Path("x")), {}, "abort_with({1}, PosixPath('x'))"),
    ],
)
def test_call_is_shown(make_pool: Any, args: tuple, named: dict, text: str) -> None:
    """The function with its arguments, as they were sent, shortened."""
    with pytest.raises(WorkerLostError) as caught:
        make_pool(1).apply_async(death_work.abort_with, args, named).get(DEADLINE)
    assert caught.value.postmortem.call == text


def test_nobody_s_repr_is_called(make_pool: Any, tmp_path: Path) -> None:
    """What an object was sent as is shown; its own ``__repr__`` is never asked."""
    path = str(tmp_path / "asked")
    record = record_of(make_pool(1), death_work.abort_with, death_work.NoRepr(path))
    assert record.call is not None
    assert record.call.startswith("abort_with(NoRepr(path=")
    assert not os.path.exists(path)


def test_arguments_that_kill_are_not_loaded_here(make_pool: Any) -> None:
    """Arguments that kill whoever unpickles them are shown without being unpickled."""
    record = record_of(make_pool(1), death_work.abort_with, DiesWhenLoaded())
    assert record.call is not None
    assert "kill_self" in record.call or "DiesWhenLoaded" in record.call


class DiesWhenLoaded:
    def __reduce__(self) -> Any:
        return faults.kill_self, (int(signal.SIGKILL),)


def test_guilty_item_of_a_chunk_is_shown(make_pool: Any) -> None:
    """Of a map, the call with the item that killed the worker."""
    result = make_pool(1).map_async(death_work.abort_if, range(8), 8)
    losses = [error for ok, error in result.outcomes(DEADLINE) if not ok]
    assert {error.postmortem.call for error in losses} == {"abort_if(3)"}


def test_large_arguments_are_only_counted(make_pool: Any) -> None:
    """Nobody reads megabytes to show two hundred characters."""
    record = record_of(make_pool(1), death_work.abort_with, b"x" * 10**6)
    assert record.call is not None
    assert re.fullmatch(r"abort_with\(<\d+ bytes of arguments>\)", record.call)


def test_c_library_s_last_line_is_in_the_verdict(
    make_pool: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """With capture_stderr the reason that C code gave is kept, and passed on as well."""
    pool = make_pool(1, capture_stderr=True)
    pool.apply(death_work.print_to_stderr, ("a line before",))
    error = loss_of(pool, death_work.complain_and_abort, "double free or corruption (fasttop)")
    record = error.postmortem
    assert record is not None
    assert record.verdict.endswith("in complain_and_abort: double free or corruption (fasttop)")
    assert record.stderr is not None
    assert record.stderr.endswith("double free or corruption (fasttop)")
    assert record.stderr in str(error)
    pool.close()
    pool.join(DEADLINE)
    written = capfd.readouterr().err
    assert "a line before" in written
    assert "double free" in written


@pytest.mark.every_start_method
def test_standard_error_is_passed_on(make_pool: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """More than a pipe holds comes through, in order, with each start method."""
    pool = make_pool(2, capture_stderr=True)
    lines = [f"line {number} {'x' * 200}" for number in range(1000)]
    for line in lines:
        pool.apply_async(death_work.print_to_stderr, (line,))
    pool.close()
    pool.join(DEADLINE)
    written = [line for line in capfd.readouterr().err.splitlines() if line.startswith("line ")]
    assert sorted(written) == sorted(lines)


def test_child_that_holds_standard_error_hurts_nobody(make_pool: Any) -> None:
    """What a job left running may keep its end of the pipe after its worker has gone."""
    pool = make_pool(1, capture_stderr=True, maxtasksperchild=1)
    pool.apply(death_work.leave_a_child_with_stderr)
    assert pool.apply(work.square, (3,)) == 9
    pool.close()
    pool.join(DEADLINE)


def test_verdict_on_a_kill_from_outside(make_pool: Any, stage: Stage) -> None:
    """SIGKILL from outside is called that, and no out-of-memory kill."""
    pool = make_pool(1)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    os.kill(job.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError) as caught:
        job.get(DEADLINE)
    assert type(caught.value) is WorkerLostError
    record = caught.value.postmortem
    assert record is not None
    assert record.verdict == "killed by SIGKILL from outside (not by this pool)"
    assert not record.out_of_memory
    assert record.oom is None


@pytest.mark.parametrize(
    ("func", "args", "verdict"),
    [
        (faults.exit_at_once, (3,), "exited by itself with os._exit(3), or exit(3) in C code"),
        (faults.exit_at_once, (0,), "exited by itself with os._exit(0), or exit(0) in C code"),
        (
            death_work.exit_from_outside_python,
            (),
            "exited by itself with os._exit(3), or exit(3) in C code",
        ),
        (
            death_work.use_up_processor_time,
            (),
            "used up its processor time (RLIMIT_CPU), and was killed for it by SIGXCPU",
        ),
        (
            death_work.die_of,
            (int(signal.SIGUSR2),),
            "killed by SIGUSR2, which is not of this pool's doing",
        ),
    ],
)
def test_verdict(make_pool: Any, func: Any, args: tuple, verdict: str) -> None:
    """What follows from an exit status, and no more."""
    assert record_of(make_pool(1), func, *args).verdict == verdict


def test_what_the_pool_did_is_not_called_a_kill_from_outside(make_pool: Any, stage: Stage) -> None:
    """The record of a job over its limit says that it was the pool, and why."""
    pool = make_pool(1)
    job = pool.apply_async(faults.hang, (stage.bell,), timeout=0.3)
    with pytest.raises(Exception, match="ran longer") as caught:
        job.get(DEADLINE)
    assert caught.value.postmortem.verdict.startswith("killed by this pool: job 1 hang ran longer")


def test_job_that_swallowed_its_end_leaves_no_trace(make_pool: Any, stage: Stage) -> None:
    """Its worker's later death is told as what it is."""
    pool = make_pool(1)
    pid = only_worker(pool)
    job = pool.apply_async(faults.swallow_exit, (stage.bell,))
    stage.heard()
    job.terminate()
    job.get(DEADLINE)
    assert only_worker(pool) == pid
    record = record_of(pool, faults.kill_self, int(signal.SIGKILL))
    assert record.verdict == "killed by SIGKILL from outside (not by this pool)"


def test_terminated_job_s_worker_is_told_so(make_pool: Any, stage: Stage) -> None:
    """The event of the worker's end names the order."""
    pool = make_pool(1)
    heard: list[events.WorkerDown] = []
    pool.listen(heard.append, events.WorkerDown)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    job.terminate()
    eventually(lambda: heard)
    assert heard[0].verdict == "killed by this pool: its job was terminated or cancelled"


def test_core_dump_is_found(make_pool: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Where the kernel writes core dumps to files, the record says which."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"core dumps go elsewhere: {pattern}")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard == 0:
        pytest.skip("core dumps are forbidden here")
    monkeypatch.chdir(tmp_path)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        record = record_of(make_pool(1), death_work.abort_with)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert record.core is not None
    assert os.path.dirname(record.core) == str(tmp_path)
    assert os.path.exists(record.core)
    assert record.core in record.summary()


def test_evidence_that_cannot_be_had_is_left_out(
    make_pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong meanwhile: the job has its end, and the pool goes on."""

    def fail(*args: object) -> Any:
        raise FileNotFoundError(2, "no such directory")

    for name in ("_last_stacks", "_core_dump", "_read_stderr", "c_hint"):
        monkeypatch.setattr(postmortem, name, fail)
    pool = make_pool(1)
    record = record_of(pool, death_work.abort_with)
    assert record.verdict == "aborted"
    assert record.traceback is None
    assert pool.apply(work.square, (3,)) == 9


def test_crash_of_a_job_s_child_is_not_the_worker_s(make_pool: Any) -> None:
    """What a process that a job forked says when it dies is not taken for the worker's."""
    pool = make_pool(1)
    assert pool.apply(death_work.fork_a_child_that_aborts) != 0
    record = record_of(pool, death_work.parse, "x")
    assert record.verdict.endswith("in decode")
    assert "fork_a_child" not in (record.traceback or "")


def test_old_complaints_are_no_reasons(make_pool: Any) -> None:
    """Only what came after the job had begun is looked at for the reason of its crash."""
    pool = make_pool(1, capture_stderr=True)
    pool.apply(death_work.print_to_stderr, ("free(): invalid pointer, or so they say",))
    (worker,) = pool._core.supervisor.crew.workers.values()
    eventually(worker.stderr.tail)
    record = record_of(pool, death_work.abort_with)
    assert "free()" not in record.verdict
    assert "free()" in (record.stderr or "")


def test_one_long_line_of_stderr_is_kept(make_pool: Any) -> None:
    """Also when it is longer than what is kept of all."""
    pool = make_pool(1, capture_stderr=True)
    record = record_of(pool, death_work.complain_and_abort, "x" * 40_000)
    assert record.stderr is not None
    assert len(record.stderr) > 1000


def test_signal_that_was_ordered_is_the_pool_s_doing(make_pool: Any, stage: Stage) -> None:
    """Whichever signal the job was terminated with."""
    pool = make_pool(1)
    heard: list[events.WorkerDown] = []
    pool.listen(heard.append, events.WorkerDown)
    job = pool.apply_async(faults.hang, (stage.bell,))
    stage.heard()
    job.terminate(signal.SIGABRT)
    eventually(lambda: heard)
    assert heard[0].verdict == "killed by this pool: its job was terminated or cancelled"


def test_worker_that_closed_its_stream_was_killed_by_the_pool(make_pool: Any) -> None:
    """Nothing more can come from it, so the pool ends it, and says so."""
    record = record_of(make_pool(1), faults.close_every_descriptor_and_hang)
    assert record.verdict == "killed by this pool: something in it had closed its stream"


def test_crash_of_an_idle_worker_is_told_as_one(make_pool: Any) -> None:
    """A signal from outside, while it waits for a job: no C code of anybody's is blamed."""
    pool = make_pool(1)
    heard: list[events.WorkerDown] = []
    pool.listen(heard.append, events.WorkerDown)
    pid = only_worker(pool)
    eventually(lambda: pool.workers[0].phase == "idle")
    os.kill(pid, signal.SIGSEGV)
    eventually(lambda: heard)
    assert heard[0].verdict == "segmentation fault while it waited for a job"


def test_job_that_was_told_to_end_ends_so(make_pool: Any, stage: Stage) -> None:
    """Also when its limit passes while it does not listen."""
    pool = make_pool(1, terminate_grace=1.0)
    job = pool.apply_async(death_work.stubborn, (stage.bell,), timeout=0.6)
    stage.heard()
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.get(DEADLINE)
    job = pool.apply_async(death_work.stubborn, (stage.bell,), timeout=0.6)
    stage.heard()
    assert job.terminate()
    with pytest.raises(Terminated):
        job.get(DEADLINE)


def test_attempt_is_told_of_a_job_over_its_limit(make_pool: Any, stage: Stage) -> None:
    """This time included."""
    job = make_pool(1).apply_async(faults.hang, (stage.bell,), timeout=0.2)
    with pytest.raises(TimeLimitExceeded) as caught:
        job.get(DEADLINE)
    assert caught.value.postmortem is not None
    assert caught.value.postmortem.attempt == 1


@pytest.mark.parametrize(
    "tag", [death_work.UnpleasantTag(), threading.Lock(), float("nan"), ["a", 1]]
)
def test_any_tag_will_do(make_pool: Any, tag: Any) -> None:
    """The record is JSON, and the error pickles, whatever the caller has marked the job with."""
    error = loss_of(make_pool(1), death_work.abort_with, tag=tag)
    assert error.postmortem is not None
    assert error.postmortem.tag is tag
    json.loads(json.dumps(error.postmortem.as_dict(), allow_nan=False))
    again = pickle.loads(pickle.dumps(error))
    assert again.postmortem.verdict == error.postmortem.verdict


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_parent_without_standard_error(redirection: str) -> None:
    """What the workers write goes nowhere, and above all not into the pool's own descriptors."""
    script = TESTS / "scripts" / "captured.py"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {redirection}', sys.executable, str(script)],
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE * 2,
    )
    assert done.stdout.split() == ["20", "jobs,", "0", "troubles"]


def test_arguments_are_told_of_jobs_that_never_began(make_pool: Any, stage: Stage) -> None:
    """A death costs the jobs behind it nothing; the record names the guilty one."""
    pool = make_pool(1)
    first = pool.apply_async(death_work.parse, ("<p>",))
    others = [pool.apply_async(work.square, (n,)) for n in range(20)]
    with pytest.raises(WorkerLostError):
        first.get(DEADLINE)
    assert [job.get(DEADLINE) for job in others] == [n * n for n in range(20)]
    assert_full_strength(pool)
