"""What each kind of death does: to its own job, to the other jobs, and to the pool.

Run with ``python -m benchmarks.deaths``; ``--markdown`` prints a table, ``--only NAME`` chooses
pools, ``--rounds N`` repeats each cell, for some outcomes are a matter of luck. The whole of it
takes some minutes a round, because what hangs is given its time.

Each cell is one death in one pool, in a process of its own. Two workers; some innocent jobs of a
tenth of a second, the guilty job, then more innocent jobs, all submitted at once. What became of
them is told in this order:

* the guilty job: the class of its exception and the seconds since it was submitted, "its result",
  or "hangs" when nothing has come within 15 s (billiard needs 10 s to give up a lost worker);
* the innocent jobs: "others unharmed", "others fail too" with the classes of their exceptions, or
  "others hang";
* jobs submitted to the same pool after all that: "pool works", "pool broken" or "pool hangs".

Where a pool offers time limits, and the death is about one, the job is given a limit of 1 s. All
other settings are the pool's defaults.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import psutil

JOB_SECONDS = 15.0  # what has not ended by then is said to hang
PROBE_SECONDS = 3.0
CELL_SECONDS = 30.0  # a cell that takes longer is cut off and has hung in a call to the pool
MARK = "POOLWATCH_DEATHS_CELL"  # in the environment of a cell and of all that it starts: its folder

Job = Callable[..., object]
Submit = Callable[[Job, "tuple[Any, ...]", "float | None"], Any]


# -- the jobs ----------------------------------------------------------------------------------


class Unloadable(Exception):
    """Can be pickled but not unpickled: its arguments do not match those of its constructor."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")


def innocent() -> int:
    """Take a tenth of a second, so that jobs wait for each other and both workers get some."""
    time.sleep(0.1)
    return os.getpid()


def kill_self() -> None:
    """Die of SIGKILL, as by the kernel's hand when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    """Die of SIGABRT, as C code does when it finds its data corrupt."""
    os.abort()


def segfault() -> None:
    """Read from address zero."""
    ctypes.string_at(0)


def leave() -> None:
    """End the process without a word, and as if all were well."""
    os._exit(0)


def raise_unloadable() -> NoReturn:
    """Raise what only the worker can handle."""
    raise Unloadable("this", "that")


def return_unpicklable() -> object:
    """Return what cannot leave the process."""
    return threading.Lock()


def accept(argument: object) -> None:
    """Do nothing with an argument."""


def hold_lock() -> int:
    """Stay in C code that never lets go of the interpreter lock nor looks for signals."""
    return sum(range(10**12))


def die_as_parent() -> None:
    """Start a child in a session of its own, leave its pid in the cell's folder, die."""
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    child_file().write_text(str(child.pid))
    kill_self()


def refuse_to_start() -> NoReturn:
    """Fail as an initializer."""
    raise ValueError("not today")


def child_file() -> Path:
    """Return the file with the pid of the guilty job's child."""
    return Path(os.environ[MARK], "child")


# -- the deaths --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Death:
    """A row: what is run, and what is looked at afterwards.

    Args:
        title: for the table.
        job: the guilty job; None when it is idle workers that are killed.
        args: its arguments.
        limit: its time limit in seconds, if the pool offers limits; else the cell is not run.
        initializer: of the workers. With one, the job is submitted alone: all would end alike.
        leaves_child: whether to look for the job's child.
    """

    title: str
    job: Job | None
    args: tuple[Any, ...] = ()
    limit: float | None = None
    initializer: Job | None = None
    leaves_child: bool = False


DEATHS = (
    Death("a job is killed by SIGKILL", kill_self),
    Death("a job aborts (SIGABRT)", abort),
    Death("a job segfaults", segfault),
    Death("a job calls os._exit(0)", leave),
    Death("idle workers are killed from outside, one after the other", None),
    Death("a job raises an exception that pickles but does not unpickle", raise_unloadable),
    Death("a job returns what does not pickle", return_unpicklable),
    Death("arguments do not unpickle in the worker", accept, (Unloadable("this", "that"),)),
    Death("the initializer raises", innocent, initializer=refuse_to_start),
    Death("a limit of 1 s on C code that holds the GIL", hold_lock, limit=1.0),
    Death("a killed job has a child in its own session", die_as_parent, leaves_child=True),
)


# -- the pools ---------------------------------------------------------------------------------


def open_poolwatch(initializer: Job | None) -> Submit:
    """Make a pool and return the way to submit to it; so do the next functions."""
    import poolwatch

    pool = poolwatch.Pool(2, initializer)
    return lambda job, args, limit: pool.apply_async(job, args, timeout=limit)


def open_multiprocessing(initializer: Job | None) -> Submit:
    """The standard library's older pool."""
    import multiprocessing

    pool = multiprocessing.Pool(2, initializer)
    return lambda job, args, limit: pool.apply_async(job, args)


def open_futures(initializer: Job | None) -> Submit:
    """The standard library's newer pool."""
    executor = futures.ProcessPoolExecutor(2, initializer=initializer)
    return lambda job, args, limit: executor.submit(job, *args)


def open_billiard(initializer: Job | None) -> Submit:
    """Celery's pool; a job's own limit is ignored unless limits are enabled."""
    from billiard.pool import Pool

    pool = Pool(2, initializer, enable_timeouts=True)
    return lambda job, args, limit: pool.apply_async(job, args, timeout=limit)


def open_pebble(initializer: Job | None) -> Submit:
    """Pebble's pool."""
    from pebble import ProcessPool

    pool = ProcessPool(max_workers=2, initializer=initializer)
    return lambda job, args, limit: pool.schedule(job, args=args, timeout=limit)


def open_loky(initializer: Job | None) -> Submit:
    """The executor that loky keeps; made anew when it is asked for and found broken."""
    from loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=2, initializer=initializer)
    return lambda job, args, limit: executor.submit(job, *args)


@dataclass(frozen=True, slots=True)
class Peer:
    """A column: a pool.

    Args:
        name: for the table and the command line.
        open: makes the pool.
        limits: whether jobs can be given time limits.
        renews: the call of its own by which a broken pool is exchanged, which is ``open``.
    """

    name: str
    open: Callable[[Job | None], Submit]
    limits: bool = False
    renews: str | None = None

    @property
    def module(self) -> str:
        """The top-level module that must be installed."""
        return self.name.partition(".")[0]


PEERS = (
    Peer("poolwatch", open_poolwatch, limits=True),
    Peer("multiprocessing.Pool", open_multiprocessing),
    Peer("concurrent.futures.ProcessPoolExecutor", open_futures),
    Peer("billiard.Pool", open_billiard, limits=True),
    Peer("pebble.ProcessPool", open_pebble, limits=True),
    Peer("loky", open_loky, renews="get_reusable_executor()"),
)


# -- handles: futures and results of multiprocessing's kind ------------------------------------


def send(submit: Submit, job: Job, args: tuple[Any, ...] = (), limit: float | None = None) -> Any:
    """Submit; if the pool refuses, return a handle that has ended with the refusal."""
    try:
        return submit(job, args, limit)
    except Exception as error:  # noqa: BLE001  (each pool has its own way to refuse)
        refused: futures.Future[None] = futures.Future()
        refused.set_exception(error)
        return refused


def ended(handle: Any, deadline: float) -> bool:
    """Wait until a job has ended or the time is up; always look once."""
    seconds = max(0.0, deadline - time.monotonic())
    if isinstance(handle, futures.Future):
        return bool(futures.wait([handle], seconds).done)
    handle.wait(seconds)
    return bool(handle.ready())


def value_of(handle: Any) -> Any:
    """Return the job's value, or raise its exception."""
    return handle.result() if isinstance(handle, futures.Future) else handle.get()


def error_of(handle: Any) -> str | None:
    """Return the class of the exception that an ended job has ended with."""
    try:
        value_of(handle)
    except BaseException as error:  # noqa: BLE001  (the job's own exception, of whatever class)
        inner = getattr(error, "exc", None)  # billiard's losses and limits come in a wrapper
        wrapped = f" of {type(inner).__name__}" if isinstance(inner, BaseException) else ""
        return type(error).__name__ + wrapped
    return None


# -- a cell, in its own process ----------------------------------------------------------------


def tell(words: str) -> None:
    """Put some words into the cell; they stay also if what comes next never returns."""
    with Path(os.environ[MARK], "words").open("a") as file:
        file.write(words + "\n")


def tell_guilty(handle: Any, begun: float) -> None:
    """Tell what became of the guilty job."""
    if not ended(handle, begun + JOB_SECONDS):
        tell("hangs")
        return
    seconds = time.monotonic() - begun
    error = error_of(handle)
    tell(f"{error} ({seconds:.1f} s)" if error else "its result")


def tell_others(handles: list[Any], begun: float) -> None:
    """Tell what became of the innocent jobs."""
    if not all(ended(handle, begun + JOB_SECONDS) for handle in handles):
        tell("others hang")
        return
    errors = {error for error in map(error_of, handles) if error}
    tell(f"others fail too: {', '.join(sorted(errors))}" if errors else "others unharmed")


def state_of(submit: Submit) -> str:
    """Return what a pool still is good for."""
    deadline = time.monotonic() + PROBE_SECONDS
    handles = [send(submit, innocent) for _ in range(4)]
    if not all(ended(handle, deadline) for handle in handles):
        return "hangs"
    return "broken" if any(map(error_of, handles)) else "works"


def tell_pool(peer: Peer, submit: Submit, initializer: Job | None) -> None:
    """Tell what the pool is good for, and if it is broken, whether it exchanges itself."""
    state = state_of(submit)
    if state == "broken" and peer.renews and state_of(peer.open(initializer)) == "works":
        state += f", {peer.renews} makes another"
    tell(f"pool {state}")


def tell_child() -> None:
    """Tell whether the guilty job's child still runs, some time after the death."""
    deadline = time.monotonic() + 1.0
    try:
        child = psutil.Process(int(child_file().read_text()))
        while child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)
        left = child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        left = False
    tell("child left" if left else "child gone")


def kill_idle(handles: list[Any]) -> None:
    """Kill the workers that have run these jobs, with time for the pool after each.

    One death alone would be a matter of luck: where idle workers take turns with a lock, all
    depends on whether it is the holder that dies.
    """
    workers = {psutil.Process(value_of(handle)) for handle in handles}
    for worker in workers:
        kill([worker])
        time.sleep(1.0)


def run_cell(peer_name: str, title: str) -> None:
    """Have one death in one pool, tell what comes of it, and leave without tidying up."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    peer = next(peer for peer in PEERS if peer.name == peer_name)
    death = next(death for death in DEATHS if death.title == title)
    submit = peer.open(death.initializer)
    alone = death.initializer is not None
    others = [] if alone else [send(submit, innocent) for _ in range(4)]
    if death.job is None:
        kill_idle(others)
    begun = time.monotonic()
    guilty = death.job and send(submit, death.job, death.args, death.limit)
    others += [] if alone else [send(submit, innocent) for _ in range(4)]
    if guilty is not None:
        tell_guilty(guilty, begun)
    if others:
        tell_others(others, begun)
    tell_pool(peer, submit, death.initializer)
    if death.leaves_child:
        tell_child()
    tell("end")
    os._exit(0)


# -- the cells, one after the other ------------------------------------------------------------


def marked(folder: str) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Return what a cell has started, whatever its session: trackers of resources last."""
    others: list[psutil.Process] = []
    trackers: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == folder:
                tracks = any("resource_tracker" in word for word in process.cmdline())
                (trackers if tracks else others).append(process)
        except psutil.Error:
            continue  # it has ended, or belongs to somebody else
    return others, trackers


def kill_marked(folder: str) -> None:
    """Kill what a cell has started. Trackers get the time to remove the semaphores of the rest."""
    others, trackers = marked(folder)
    while others:
        kill(others)
        others, trackers = marked(folder)
    kill(psutil.wait_procs(trackers, 3.0)[1])


def kill(processes: list[psutil.Process]) -> None:
    """Kill processes, those excepted that have ended in the meantime."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def measure(peer: Peer, death: Death) -> str:
    """Run a cell in a fresh process, and return its words."""
    call = f"from benchmarks.deaths import run_cell; run_cell({peer.name!r}, {death.title!r})"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", call],
            env={**os.environ, MARK: folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(CELL_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        process.kill()
        process.wait()
        kill_marked(folder)
        file = Path(folder, "words")
        return summary(file.read_text().splitlines() if file.exists() else [], code)


def summary(words: list[str], code: int | None) -> str:
    """Return the words of a cell as one text; it says so if the cell did not come to its end."""
    if words and words[-1] == "end":
        return "; ".join(words[:-1])
    if code is None:
        return "; ".join([*words, "the caller hangs"])
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return "; ".join([*words, f"the caller dies too ({how})"])


def cell(peer: Peer, death: Death, rounds: int) -> str:
    """Return the text of a cell; if its rounds differ in more than seconds, the text of each."""
    if importlib.util.find_spec(peer.module) is None:
        return "not installed"
    if death.limit is not None and not peer.limits:
        return "no limits offered"
    seen: dict[str, list[str]] = {}
    for _ in range(rounds):
        text = measure(peer, death)
        seen.setdefault(re.sub(r"[\d.]+ s", "", text), []).append(text)
    if len(seen) == 1:
        return text
    return "; or ".join(f"{len(texts)} of {rounds} times: {texts[0]}" for texts in seen.values())


# -- the output --------------------------------------------------------------------------------


def versions(peers: Iterable[Peer]) -> str:
    """Return what has been measured, in a line."""
    texts = [f"Python {sys.version.split()[0]}"]
    for module in sorted({peer.module for peer in peers} - sys.stdlib_module_names):
        try:
            texts.append(f"{module} {metadata.version(module)}")
        except metadata.PackageNotFoundError:
            continue  # not installed, or run from its source
    return ", ".join(texts)


def print_plain(peers: list[Peer], rounds: int) -> None:
    """Print a block for each death, as it is measured."""
    width = max(len(peer.name) for peer in peers)
    for death in DEATHS:
        print(f"\n{death.title}")
        for peer in peers:
            print(f"  {peer.name:{width}}  {cell(peer, death, rounds)}", flush=True)


def print_markdown(peers: list[Peer], rounds: int) -> None:
    """Print a table with a row for each death, as it is measured."""
    names = [f"`{peer.name}`" for peer in peers]
    print("\n" + " | ".join(["| death", *names]) + " |")
    print("|" + " --- |" * (1 + len(peers)))
    for death in DEATHS:
        cells = [cell(peer, death, rounds).replace("; ", "<br>") for peer in peers]
        print(" | ".join([f"| {death.title}", *cells]) + " |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [peer.name for peer in PEERS]
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--only", action="append", choices=names, help="a pool; may be repeated")
    parser.add_argument("--rounds", type=int, default=1, help="of each cell (default 1)")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if peer.name in (options.only or names)]
    print(versions(peers))
    (print_markdown if options.markdown else print_plain)(peers, options.rounds)


if __name__ == "__main__":
    main()
