"""Finds what a test has left behind: processes, threads, descriptors and files.

A `LeakWatch` is opened before the test and asked afterwards. Everything is compared with how it was
before, so that what other programs do on the machine does not count:

* A process is the test's own if it descends from the test process, if its environment carries the
  test's mark (all that was exec'ed from here on), or if it holds the test's marked descriptor (all
  that was forked from here on: a fork keeps the environment of the last exec in /proc). The last
  two find orphans that some other process has adopted.
* A thread, a descriptor, a file in the test's own temporary directory are its own by nature.
* A name in /dev/shm is the test's own unless a process that is not has it open or mapped.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil

MARK = "POOLWATCH_TEST"  # the environment variable that every process of a test carries
PATIENCE = 5.0  # seconds in which what a test has ended may still be on its way out
SHARED_MEMORY = Path("/dev/shm")
STANDING: set[int] = set()
"""Processes that serve several tests. They, and what descends from them, are no test's own: whoever
has started them sees to it that nothing is left."""


class LeakWatch:
    """One test's belongings, from `__init__` (before the test) to `close()` (after it)."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._environment = {name: os.environ.get(name) for name in (MARK, "TMPDIR")}
        self._tempdir = tempfile.tempdir
        self.directory = Path(tempfile.mkdtemp(prefix="pw-"))  # short: sockets are made in it
        os.environ[MARK] = self.mark
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.directory)
        self._marked_descriptor = os.memfd_create(f"{MARK}-{self.mark}")
        self._pids = set(psutil.pids())
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()
        self._shared = _names(SHARED_MEMORY)

    def close(self) -> None:
        """Gives back the temporary directory, the environment and the marked descriptor."""
        os.close(self._marked_descriptor)
        for name, value in self._environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = self._tempdir
        shutil.rmtree(self.directory, ignore_errors=True)

    def leftovers(self, patience: float = PATIENCE) -> list[str]:
        """One line for each thing that is still there when `patience` seconds have passed."""
        deadline = time.monotonic() + patience
        pause = threading.Event()
        gc.collect()
        while (found := list(self._look())) and time.monotonic() < deadline:
            pause.wait(0.02)
            gc.collect()
        return found

    def kill(self) -> None:
        """Kills every process that the test has left, and reaps those that are our children."""
        left = self.processes()
        children = [process for process in psutil.Process().children() if process in left]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(children, timeout=2)

    def processes(self) -> list[psutil.Process]:
        """The test's processes, zombies among them, that are there now and were not before."""
        own_helpers = {
            os.getpid(),
            resource_tracker._resource_tracker._pid,
            forkserver._forkserver._forkserver_pid,
        }
        fresh = [pid for pid in psutil.pids() if pid not in self._pids | own_helpers]
        return [process for process in _processes(fresh) if self._is_ours(process)]

    def _look(self) -> Iterator[str]:
        for process in self.processes():
            yield f"process {_describe(process)}"
        for thread in set(threading.enumerate()) - self._threads:
            yield f"thread {thread.name}"
        helpers = {resource_tracker._resource_tracker._fd, _forkserver_descriptor()}
        for number, target in _descriptors().items():
            if self._descriptors.get(number) != target and number not in helpers:
                yield f"descriptor {number} -> {target}"
        for path in sorted(self.directory.rglob("*")):
            yield f"file {path}"
        fresh = _names(SHARED_MEMORY) - self._shared
        for name in sorted(fresh - self._used_by_strangers(fresh)):
            yield f"file {SHARED_MEMORY / name}"

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == self.mark:
                return True
        held = _descriptors(process.pid).values()
        if any(self.mark in target for target in held):
            return True
        with contextlib.suppress(psutil.Error):
            family = {process.pid, *(parent.pid for parent in process.parents())}
            return os.getpid() in family and not family & STANDING
        return False

    def _used_by_strangers(self, names: set[str]) -> set[str]:
        """Those of the names in /dev/shm that some other program has mapped or open."""
        used: set[str] = set()
        if not names:
            return used
        ours = {process.pid for process in self.processes()} | {os.getpid()}
        inodes = {name: _inode(SHARED_MEMORY / name) for name in names}
        for process in _processes(pid for pid in psutil.pids() if pid not in ours):
            opened = "\n".join(_descriptors(process.pid).values())
            mapped: set[int] = set()
            with contextlib.suppress(OSError):
                # A semaphore is mapped under a first name, which is gone; its number stays.
                lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                mapped = {int(line.split()[4]) for line in lines if str(SHARED_MEMORY) in line}
            used |= {
                name
                for name in names
                if str(SHARED_MEMORY / name) in opened or inodes[name] in mapped
            }
        return used


def _processes(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def _descriptors(pid: int | str = "self") -> dict[int, str]:
    """Descriptor -> what it leads to; empty where we may not look or nobody is left."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # among them the descriptor of this very listing
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def _forkserver_descriptor() -> int | None:
    return forkserver._forkserver._forkserver_alive_fd


def _names(directory: Path) -> set[str]:
    return set(os.listdir(directory)) if directory.is_dir() else set()


def _inode(path: Path) -> int:
    """The number of a file; 0 when it is gone."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        command = " ".join(process.cmdline())[:200]
        return f"{process.pid} (parent {process.ppid()}, {process.status()}): {command}"
    return f"{process.pid} (just ended)"
