"""However a program ends that has a pool, it ends at once, and nothing of the pool is left."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import DEADLINE, ProcessWatch, Stage, running_script, script_environment

pytestmark = pytest.mark.timeout(60)

STATUS = {"end": 0, "sys.exit": 7, "error": 1, "os._exit": 7, "SIGTERM": -15, "SIGKILL": -9}
STATES = ["idle", "running", "waiting", "imap"]


def end_one(stage: Stage, how: str, state: str, where: str, start_method: str = "zygote") -> None:
    """Has a script end in some way, and sees everything else end."""
    script = running_script(
        "exits.py", how, state, where, start_method, stage.bell, stage.gate,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with script as parent:
        heard = stage.heard()
        while not heard.startswith("pids "):  # the jobs ring too
            heard = stage.heard()
        pids = [int(pid) for pid in heard.split()[1:]]
        assert len(pids) >= 2
        with ProcessWatch(pids) as watch:
            if how.startswith("SIG"):
                parent.send_signal(getattr(signal, how))
            else:
                stage.let_go()
            _, errors = parent.communicate(timeout=DEADLINE)
            watch.assert_gone()
    assert parent.returncode == STATUS[how], errors
    tracebacks = errors.count("Traceback")
    assert tracebacks == (how == "error"), errors
    assert "resource_tracker" not in errors


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", STATUS)
def test_program_ends_and_leaves_nothing(stage: Stage, how: str, state: str) -> None:
    """Its exit status is its own; jobs that run, jobs that wait and half an imap do not hold it."""
    end_one(stage, how, state, "module")


@pytest.mark.parametrize("where", ["function", "thread"])
@pytest.mark.parametrize("state", STATES[1:])
@pytest.mark.parametrize("how", ["end", "error"])
def test_it_does_not_matter_who_has_the_pool(
    stage: Stage, how: str, state: str, where: str
) -> None:
    """A function's frame in a traceback, or a daemon thread that is gone."""
    end_one(stage, how, state, where)


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("how", ["end", "SIGTERM"])
def test_start_method_does_not_matter(stage: Stage, how: str, start_method: str) -> None:
    """Nor how the workers were made."""
    end_one(stage, how, "running", "module", start_method)


# -- Ctrl-C in a terminal ---------------------------------------------------------------------


def printed_by(text: str, tmp_path: Path, method: str) -> str:
    """What a program prints that is run in a process group of its own; no errors."""
    script = tmp_path / "program.py"
    script.write_text(text)
    ended = subprocess.run(
        [sys.executable, str(script), method],
        env=script_environment(),
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.stderr == ""
    return ended.stdout


BOOTING = """\
import os, signal, sys, threading
import work
from poolwatch import Pool

def strike_while_it_boots():
    while not is_up.wait(0.001):
        os.killpg(0, signal.SIGINT)
        os.killpg(0, signal.SIGTERM)

if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, frame: None)
    is_up = threading.Event()
    threading.Thread(target=strike_while_it_boots).start()
    pool = Pool(2, context=sys.argv[1])
    print(pool.map(work.square, range(5), 1))
    is_up.set()
    pool.close()
    pool.join()
    print([each for each in (signal.SIGINT, signal.SIGTERM)
           if each in signal.pthread_sigmask(signal.SIG_BLOCK, [])])
"""


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn", "forkserver"])
def test_signals_to_the_group_while_it_boots(tmp_path: Path, method: str) -> None:
    """They do not hurt what makes the workers, from its first moment on."""
    assert printed_by(BOOTING, tmp_path, method) == "[0, 1, 4, 9, 16]\n[]\n"


HELD_BACK = """\
import re, signal, sys
import work
from poolwatch import Pool

def held_back():
    with open("/proc/self/status") as status:
        return int(re.search(r"SigBlk:\\s*(\\w+)", status.read()).group(1), 16)

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGQUIT])
    before = held_back()
    with Pool(1, context=sys.argv[1]) as pool:
        print(held_back() == before, pool.apply(held_back) == before)
"""


@pytest.mark.parametrize("method", ["zygote", "fork", "forkserver"])
def test_what_the_program_holds_back(tmp_path: Path, method: str) -> None:
    """Making a pool does not change it, and workers hold it back as well."""
    assert printed_by(HELD_BACK, tmp_path, method) == "True True\n"


GROUP = """\
import sys, os, threading
import work
from helpers import DEADLINE, assert_full_strength, worker_pids
from poolwatch import Pool

if __name__ == "__main__":
    bell, gate = sys.argv[1:]
    pool = Pool(2)
    assert_full_strength(pool)
    before = worker_pids(pool)
    try:
        {call}
    except KeyboardInterrupt:
        print("interrupted")
    work.ring(bell, "caught")
    print("same workers", worker_pids(pool) == before)
    print(pool.map(work.square, range(5), 1))
    pool.close()
    pool.join()
"""


@pytest.mark.parametrize(
    "call",
    [
        "pool.apply(work.ring_and_wait, (bell, gate))",
        "pool.map(work.echo_after, [(bell, gate, 1)])",
        "next(pool.imap(work.echo_after, [(bell, gate, 1)]))",
        "pool.apply_async(work.ring_and_wait, (bell, gate)).wait()",
    ],
)
def test_ctrl_c_to_the_group_hurts_no_worker(stage: Stage, tmp_path: Path, call: str) -> None:
    """The parent has its KeyboardInterrupt at once; the jobs end, and the pool works on."""
    script = tmp_path / "group.py"
    script.write_text(GROUP.format(call=call))
    parent = subprocess.Popen(
        [sys.executable, str(script), stage.bell, stage.gate],
        env=script_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stage.heard()  # the job runs
        os.killpg(parent.pid, signal.SIGINT)
        assert stage.heard() == "caught"
        stage.let_go()
        out, errors = parent.communicate(timeout=DEADLINE)
    finally:
        parent.kill()
        parent.communicate()
    assert errors == ""
    assert out.splitlines() == ["interrupted", "same workers True", "[0, 1, 4, 9, 16]"]


# -- where functions are typed in ---------------------------------------------------------------

SESSION = """\
from poolwatch import Pool
def before(n):
    return n + 1

pool = Pool(2)
def after(n):
    return before(n) * 2

class Made:
    def __init__(self, n):
        self.n = n

print("results", pool.map(before, [1, 2]), pool.map(after, [1, 2]))
print("results", pool.apply(lambda n: n * 3, (5,)), [made.n for made in pool.map(Made, [7, 8])])
def before(n):
    return -n

print("results", pool.map(before, [1, 2]), pool.map(after, [1, 2]))
print("results", list(pool.imap(after, range(3))))
pool.close()
pool.join()
"""
RESULTS = [
    "results [2, 3] [4, 6]",
    "results 15 [7, 8]",
    "results [-1, -2] [-2, -4]",
    "results [0, -2, -4]",
]


def results_in(text: str) -> list[str]:
    found = [line[line.index("results ") :] for line in text.splitlines() if "results " in line]
    return [line.strip() for line in found if "print(" not in line]


@pytest.mark.parametrize("options", [["-c", SESSION], ["-"], [], ["-i"], ["-i", "-q"]], ids=repr)
def test_functions_without_a_file(options: list[str]) -> None:
    """``python -c``, a script on standard input, and an interactive session that is fed."""
    done = subprocess.run(
        [sys.executable, *options],
        input="" if "-c" in options else SESSION,
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert results_in(done.stdout) == RESULTS


@contextlib.contextmanager
def terminal(*command: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A program on a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = {**script_environment(), "TERM": "dumb", "PYTHON_BASIC_REPL": "1"}
    options: Any = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "env": environment}
    program = subprocess.Popen(command, start_new_session=True, **options)
    os.close(theirs)
    try:
        yield ours, program
    finally:
        program.kill()
        program.wait(DEADLINE)
        os.close(ours)


def read_until(descriptor: int, end: str) -> str:
    """What comes out of a terminal, up to some text or its end."""
    deadline, text = time.monotonic() + DEADLINE, ""
    while end not in text:
        rest = deadline - time.monotonic()
        assert rest > 0, f"{end!r} did not come: {text}"
        if select.select([descriptor], [], [], rest)[0]:
            try:
                data = os.read(descriptor, 65536)
            except OSError:
                break  # the program has closed the terminal
            text += data.decode(errors="replace")
    return text


def test_functions_that_are_typed_in() -> None:
    """A real interactive session on a terminal, line by line, up to its end by Ctrl-D."""
    with terminal(sys.executable, "-q") as (descriptor, program):
        text = read_until(descriptor, ">>> ")
        for line in SESSION.splitlines():
            os.write(descriptor, line.encode() + b"\n")
            inside = line.startswith((" ", "def", "class"))
            text += read_until(descriptor, "... " if inside else ">>> ")
        os.write(descriptor, b"\x04")
        text += read_until(descriptor, "never comes")
        assert program.wait(DEADLINE) == 0, text
    assert results_in(text) == RESULTS, text
    assert "Traceback" not in text
