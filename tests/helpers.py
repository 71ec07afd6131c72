"""How the tests wait: handshakes with jobs, processes that end, conditions that come true.

Nothing here sleeps and hopes. A job says "I am running" through a FIFO, the end of a process is
seen through its pidfd, and only what has no descriptor to wait for is looked at again and again,
in `eventually`.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import work

DEADLINE = 12.0  # seconds; far more than anything here takes, also on a busy machine
TESTS = Path(__file__).parent
T = TypeVar("T")


class Stage:
    """A bell that jobs ring when they run, and a gate where they wait to be let go.

    Both are FIFOs that the test holds open in both directions: nobody blocks while opening one,
    and nobody sees an end of file, however many processes have inherited the descriptors.
    """

    def __init__(self, directory: Path | str) -> None:
        self.bell = os.path.join(directory, "bell")
        self.gate = os.path.join(directory, "gate")
        os.mkfifo(self.bell)
        os.mkfifo(self.gate)
        self._bell = os.open(self.bell, os.O_RDWR | os.O_NONBLOCK)
        self._gate = os.open(self.gate, os.O_RDWR | os.O_NONBLOCK)
        self._heard = b""

    def close(self) -> None:
        os.close(self._bell)
        os.close(self._gate)

    def heard(self, timeout: float = DEADLINE) -> str:
        """The next line that a job rang the bell with; AssertionError if none comes."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        while b"\n" not in self._heard:
            rest = deadline - time.monotonic()
            rung = rest > 0 and poll.poll(rest * 1000)
            assert rung, f"no job rang within {timeout} s"
            self._heard += os.read(self._bell, 65536)
        line, self._heard = self._heard.split(b"\n", 1)
        return line.decode()

    def heard_pids(self, count: int) -> list[int]:
        return [int(self.heard()) for _ in range(count)]

    def let_go(self, count: int = 1) -> None:
        """Lets that many jobs through the gate, those that wait or those that will."""
        os.write(self._gate, b"." * count)


@contextlib.contextmanager
def private_stage() -> Iterator[Stage]:
    """A stage of its own, for a helper that must not hear other jobs' bells."""
    directory = tempfile.mkdtemp(prefix="stage-")
    stage = Stage(directory)
    try:
        yield stage
    finally:
        stage.close()
        shutil.rmtree(directory)


class ProcessWatch:
    """Sees processes end, through pidfds opened while they still lived."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._open: dict[int, int] = {}
        self.add(pids)

    def add(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self._open[os.pidfd_open(pid)] = pid

    def __enter__(self) -> ProcessWatch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def alive(self, timeout: float = 0.0) -> list[int]:
        """The pids of those that have not ended when `timeout` seconds have passed."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLIN)
        while self._open:
            rest = max(0.0, deadline - time.monotonic())
            ended = poll.poll(rest * 1000)
            if not ended:
                break
            for descriptor, _ in ended:
                poll.unregister(descriptor)
                del self._open[descriptor]
                os.close(descriptor)
        return sorted(self._open.values())

    def assert_gone(self, timeout: float = DEADLINE) -> None:
        left = self.alive(timeout)
        assert not left, f"still alive after {timeout} s: {left}"


def assert_gone(*pids: int, timeout: float = DEADLINE) -> None:
    """Fails if one of the processes is alive when `timeout` seconds have passed."""
    with ProcessWatch(pids) as watch:
        watch.assert_gone(timeout)


def kill_and_wait(pid: int, signum: int = signal.SIGKILL) -> None:
    with ProcessWatch([pid]) as watch:
        os.kill(pid, signum)
        watch.assert_gone()


def eventually(condition: Callable[[], object], timeout: float = DEADLINE) -> None:
    """Returns once the condition holds; AssertionError when it does not come to hold."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not come true within {timeout} s"
        pause.wait(0.01)


def bounded(call: Callable[[], T], timeout: float = DEADLINE) -> T:
    """What the call returns or raises; AssertionError if it does neither in time."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome[:] = [True, call()]
        except BaseException as error:  # noqa: BLE001  raised again in the caller's thread
            outcome[:] = [False, error]

    thread = threading.Thread(target=run, name=f"bounded {call}", daemon=True)
    thread.start()
    thread.join(timeout)
    assert outcome, f"{call} did not return within {timeout} s"
    returned, value = outcome
    if not returned:
        raise value
    return value  # type: ignore[no-any-return]


def worker_pids(pool: Any) -> list[int]:
    """The processes that there are; one that comes up may not have been reported yet."""
    return sorted(worker.pid for worker in pool.workers if worker.pid is not None)


def idle(pool: Any, count: int) -> None:
    """Wait until the pool has so many workers, all of them idle."""
    eventually(lambda: [worker.phase for worker in pool.workers] == ["idle"] * count)


@contextlib.contextmanager
def killing(
    pool: Any, progress: Callable[[], int] | None = None, least: int = 0
) -> Iterator[set[int]]:
    """Somebody outside kills a worker every 20 ms, whatever it does; gives the pids of the killed.

    But one must have booted, for a pool is broken when its workers are killed more quickly than
    they come up; and `progress` must have grown by `least` since the last one was killed, so that
    also on a busy machine the jobs get done.
    """
    killed: set[int] = set()
    over = threading.Event()
    chance = random.Random(1)

    def kill() -> None:
        reached = 0
        while not over.wait(0.02):
            workers = pool.workers
            now = progress() if progress else 0
            if now - reached >= least and any(worker.phase != "booting" for worker in workers):
                reached = now
                pid = chance.choice([worker.pid for worker in workers if worker.pid])
                with contextlib.suppress(ProcessLookupError):
                    _kill_worker(pool, pid, killed)

    thread = threading.Thread(target=kill, name="killer")
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join(DEADLINE)


def _kill_worker(pool: Any, pid: int, killed: set[int]) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        if pid not in worker_pids(pool):
            raise ProcessLookupError  # another process may have got its number
        killed.add(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)


def assert_full_strength(pool: Any) -> None:
    """All the workers asked for are there, and all of them take a job at the same time."""
    with private_stage() as stage:
        jobs = [
            pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
            for _ in range(pool.processes)
        ]
        pids = sorted(stage.heard_pids(pool.processes))
        assert len(set(pids)) == pool.processes
        eventually(lambda: worker_pids(pool) == pids)  # a recycled one may still be leaving
        stage.let_go(pool.processes)
        assert sorted(job.get(DEADLINE) for job in jobs) == pids


@contextlib.contextmanager
def one_batch(pool: Any) -> Iterator[None]:
    """What is submitted to the pool of one meanwhile goes to its worker in one go, many at a time.

    The pool sends short jobs ahead, so it is given some; the worker is stopped until all are in.
    """
    pid = only_worker(pool)
    for job in [pool.apply_async(work.square, (n,)) for n in range(300)]:
        job.get(DEADLINE)
    os.kill(pid, signal.SIGSTOP)
    try:
        for n in range(200):
            pool.apply_async(work.square, (n,))
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def only_worker(pool: Any) -> int:
    """The pid of the one worker of a pool of one, once it works."""
    return int(pool.apply_async(os.getpid).get(DEADLINE))


def outcome(job: Any) -> Any:
    """The job's result, or the loss that it has ended with."""
    from poolwatch import WorkerLostError

    try:
        return job.get(DEADLINE)
    except WorkerLostError as error:
        return error


def chain(error: BaseException | None) -> list[BaseException]:
    """The error, its cause, the cause's cause and so on."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def lines(path: Path | str) -> list[str]:
    """What jobs have noted in the file, a line each; nothing if no job has."""
    path = Path(path)
    return path.read_text().splitlines() if path.exists() else []


def script_environment() -> dict[str, str]:
    """The environment for a script that imports poolwatch and the tests' modules."""
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(TESTS.parent), str(TESTS)])
    return {**os.environ, "PYTHONPATH": path.strip(os.pathsep)}


def script_command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(TESTS / "scripts" / name), *map(str, arguments)]


def run_script(name: str, *arguments: object, prefix: tuple[str, ...] = ()) -> str:
    """What the script in tests/scripts prints; AssertionError if it fails or hangs."""
    try:
        done = subprocess.run(
            [*prefix, *script_command(name, *arguments)],
            env=script_environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE * 2,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{name} hangs: {error.stdout!r} {error.stderr!r}") from error
    assert done.returncode == 0, f"{name}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def running_script(name: str, *arguments: object, **options: Any) -> Iterator[subprocess.Popen]:
    """The script as a process, killed at the end if it has not ended by itself."""
    script = subprocess.Popen(
        script_command(name, *arguments),
        env=script_environment(),
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        yield script
    finally:
        script.kill()
        script.wait(DEADLINE)
        script.stdout.close()
