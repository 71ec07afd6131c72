"""Entry points of interpreters that are started afresh: for ``spawn`` and ``forkserver``.

The parent writes what they need into a memory file once; its layout is two pickles. The first
holds the preparation data of multiprocessing (``sys.path``, the main module, ...), the second the
:class:`WorkerSetup`, which can be loaded only after the first has been acted upon.
"""

from __future__ import annotations

import io
import multiprocessing.process
import multiprocessing.resource_tracker
import multiprocessing.spawn
import os
import pickle
import socket
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from poolwatch.launch.zygote import Guardian, Nursery, run_helper
from poolwatch.transport import codec, frames
from poolwatch.worker import signals
from poolwatch.worker.main import WorkerEnds, WorkerSetup
from poolwatch.worker.process import run_bootstrapped, serve_as_worker

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@dataclass(slots=True)
class Preparation:
    """What a fresh interpreter needs before it can load anything of the user's.

    Attributes:
        owner_pid: the process that made the pool.
        data: multiprocessing's preparation data.
        tracker_fd: descriptor of its resource tracker, inherited.
        inherited: descriptors that the setup's pickle refers to by number.
        fork_workers: True to fork workers from the guardian's zygote (``forkserver``), False to
            start each afresh (``spawn``).
        held_back: signals that the program holds back.
    """

    owner_pid: int
    data: dict[str, Any]
    tracker_fd: int
    inherited: list[int]
    fork_workers: bool
    held_back: set[int]


def command(entry: str, *numbers: int) -> list[str]:
    """Return the command line that starts a fresh interpreter at one of the functions here."""
    arguments = ", ".join(map(str, numbers))
    code = (
        f"import sys; sys.path.append({_ROOT!r}); "
        f"from poolwatch.launch.fresh import {entry}; {entry}({arguments})"
    )
    executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
    flags = multiprocessing.util._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [executable, *flags, "-c", code]


def guardian_main(setup_fd: int, guardian_fd: int, zygote_fd: int) -> NoReturn:
    """Become the guardian of a pool whose workers start from a fresh interpreter."""
    signals.disregard()
    preparation, rest = _read_setup(setup_fd)
    signals.let_through(preparation.held_back)
    _adopt_tracker(preparation)
    setup = WorkerSetup(pool=preparation.data["name"])
    nursery = Nursery(preparation.owner_pid, setup)
    if preparation.fork_workers:
        loaded = _load_setup(preparation, rest)
        if isinstance(loaded, bytes):
            # The workers tell the parent, as those of "spawn" do: it counts them, and knows why.
            nursery.exec_worker = lambda fds, name: _report_failure(fds[0], loaded)
        else:
            nursery.setup = loaded
    else:
        kept = [setup_fd, preparation.tracker_fd, *preparation.inherited]
        nursery.exec_worker = lambda fds, name: _exec_worker(fds, name, setup_fd, kept)
    run_helper(
        Guardian,
        socket.socket(fileno=guardian_fd),
        nursery,
        socket.socket(fileno=zygote_fd),
    )


def _exec_worker(own: list[int], name: str, setup_fd: int, kept: list[int]) -> NoReturn:
    parent_pid = os.getppid()
    for fd in (*own, *kept):
        os.set_inheritable(fd, True)
    number = int(name.rpartition("-")[2])
    line = command("worker_main", parent_pid, number, setup_fd, *own)
    signals.hold_back()
    os.execv(line[0], line)


def worker_main(
    parent_pid: int,
    number: int,
    setup_fd: int,
    sock_fd: int,
    *rest_of_ends: int,
) -> NoReturn:
    """Become a worker in a fresh interpreter."""
    signals.disregard()
    signals.let_through()
    ends = WorkerEnds(socket.socket(fileno=sock_fd), *rest_of_ends)
    for fd in (sock_fd, *rest_of_ends, setup_fd):
        os.set_inheritable(fd, False)
    preparation, rest = _read_setup(setup_fd)
    _adopt_tracker(preparation)
    setup = _load_setup(preparation, rest)
    if isinstance(setup, bytes):
        _report_failure(sock_fd, setup)
    name = f"{preparation.data['name']}-{number}"
    run_bootstrapped(name, lambda: serve_as_worker(setup, ends, name, parent_pid))


def _report_failure(sock_fd: int, failure: bytes) -> NoReturn:
    """Be a worker that cannot boot, and says why."""
    try:
        socket.socket(fileno=sock_fd).sendall(frames.pack(frames.BOOT_FAILED, failure, 0))
    finally:
        os._exit(1)


def _read_setup(setup_fd: int) -> tuple[Preparation, io.BytesIO]:
    size = os.fstat(setup_fd).st_size
    rest = io.BytesIO(os.pread(setup_fd, size, 0))  # pread: all workers share one file offset
    preparation: Preparation = pickle.load(rest)
    return preparation, rest


def _adopt_tracker(preparation: Preparation) -> None:
    """Use the parent's resource tracker; one of our own would unlink what others still use."""
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    tracker._fd = preparation.tracker_fd


def _load_setup(preparation: Preparation, rest: io.BytesIO) -> WorkerSetup | bytes:
    """Import the main module and unpickle the setup; or return the failure, for the parent."""
    current = multiprocessing.process.current_process()
    current._inheriting = True  # type: ignore[attr-defined]
    prepared = False
    try:
        multiprocessing.spawn.prepare(preparation.data)
        prepared = True
        setup: WorkerSetup = pickle.load(rest)
    except BaseException as error:  # noqa: BLE001  (told to the parent, which decides)
        saying = _what_failed(preparation.data, prepared, error)
        return codec.encode_failure(error, saying)
    finally:
        del current._inheriting  # type: ignore[attr-defined]
    return setup


def _what_failed(data: dict[str, Any], prepared: bool, error: BaseException) -> str:
    """Put into words what a fresh interpreter could not do, and what can be done about it."""
    if prepared:
        return f"a fresh interpreter could not load the initializer: {codec.safe_repr(error)}"
    main = data.get("init_main_from_path") or data.get("init_main_from_name")
    text = f"a fresh interpreter could not import the main module {main}"
    if isinstance(error, RuntimeError) and "bootstrapping phase" in str(error):
        return (
            f'{text}: it has no guard `if __name__ == "__main__":` around what starts processes, '
            "such as the making of this pool"
        )
    if os.path.basename(str(main)) == "<stdin>":
        return f"{text}: the program was read from standard input, and cannot be read again"
    return f"{text}: {codec.safe_repr(error)}"
