"""Programs and processes that jobs start hear signals as they would in the program itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from helpers import DEADLINE, Stage, run_script

from poolwatch.transport.kernel import STACK_SIGNAL

pytestmark = pytest.mark.timeout(40)
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2]


def end_of_program(signum: int) -> int:
    """Start a program, send it a signal, return its status."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"up\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"up\n"
        program.send_signal(signum)
        program.stdin.close()
        return program.wait(DEADLINE)


def ignored_by_programs() -> int:
    """Return the mask of signals that a program starts with ignored.

    Without 32 and 33, which are the C library's own: its posix_spawn, which Python 3.13 uses,
    ignores them for the program.
    """
    text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    (line,) = [line for line in text.splitlines() if line.startswith("SigIgn")]
    return int(line.split()[1], 16) & ~(0b11 << 31)


def dispositions() -> list[Any]:
    return [signal.getsignal(signum) for signum in SIGNALS]


def dispositions_of_child() -> list[Any]:
    """Return what a forked child of the job does on signals."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(dispositions()))
    child.start()
    child.join()
    return ours.recv()


def read_through_signals(bell: str, gate: str) -> bytes:
    """Ring with this pid; return what comes through the gate, with one plain read."""
    with open(bell, "w") as file:
        file.write(f"{os.getpid()}\n")
    fd = os.open(gate, os.O_RDONLY)
    try:
        return os.read(fd, 1)
    finally:
        os.close(fd)


@pytest.mark.every_start_method
def test_programs_hear_signals(make_pool: Any) -> None:
    """A program that a job starts is ended by the signals that end programs."""
    pool = make_pool(1)
    ends = [pool.apply_async(end_of_program, (signum,)).get(DEADLINE) for signum in SIGNALS]
    assert ends == [end_of_program(signum) for signum in SIGNALS]
    assert pool.apply_async(ignored_by_programs).get(DEADLINE) == ignored_by_programs()


def test_forked_children_hear_signals(make_pool: Any) -> None:
    """So does a process that a job forks."""
    pool = make_pool(1)
    expected = [signal.getsignal(signal.SIGINT), *[signal.SIG_DFL] * 4]
    assert pool.apply_async(dispositions_of_child).get(DEADLINE) == expected


@pytest.mark.every_start_method
def test_worker_is_not_disturbed(make_pool: Any, stage: Stage) -> None:
    """The worker and the system call that its job waits in go on."""
    pool = make_pool(1)
    job = pool.apply_async(read_through_signals, (stage.bell, stage.gate))
    pid = int(stage.heard())
    for signum in (*SIGNALS, signal.SIGPIPE, signal.SIGUSR1):
        os.kill(pid, signum)
    stage.let_go()
    assert job.get(DEADLINE) == b"."
    assert pool.apply_async(os.getpid).get(DEADLINE) == pid


@pytest.mark.every_start_method
def test_many_signals_at_once_find_room(make_pool: Any, stage: Stage) -> None:
    """All that were sent while the worker could not run arrive together, each within the other."""
    pool = make_pool(1)
    job = pool.apply_async(read_through_signals, (stage.bell, stage.gate))
    pid = int(stage.heard())
    os.kill(pid, signal.SIGSTOP)
    for signum in (*SIGNALS, signal.SIGPIPE, signal.SIGUSR1, STACK_SIGNAL):
        os.kill(pid, signum)
    os.kill(pid, signal.SIGCONT)
    stage.let_go()
    assert job.get(DEADLINE) == b"."


def test_what_the_program_ignores_stays_ignored() -> None:
    """Under nohup, programs that jobs start ignore SIGHUP as the program does."""
    assert run_script("ignores.py").splitlines() == ["0", "True"]


def test_signals_while_a_fresh_worker_starts() -> None:
    """Ctrl-C does not reach a worker whose interpreter is just starting."""
    code = (
        "import os, signal; from poolwatch.worker import signals;"
        "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM);"
        "signals.disregard(); signals.let_through(); print('alive')"
    )
    starter = (
        "import os, sys; from poolwatch.worker import signals;"
        f"signals.hold_back(); os.execv(sys.executable, [sys.executable, '-c', {code!r}])"
    )
    out = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True)
    assert out.stdout == "alive\n", out.stderr
