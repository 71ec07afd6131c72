"""The parent's view of the guardian process, forked or started afresh."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.context
import multiprocessing.resource_tracker
import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from multiprocessing.reduction import ForkingPickler
from types import FrameType

from poolwatch.launch import imports
from poolwatch.launch.fresh import Preparation, command
from poolwatch.launch.zygote import Guardian, Nursery, Zygote, run_helper
from poolwatch.transport import kernel
from poolwatch.worker import signals
from poolwatch.worker.main import WorkerSetup

_EXECUTE_CHILD = subprocess.Popen._execute_child.__code__  # type: ignore[attr-defined]
_MAKE_PIPES = (
    subprocess.Popen.__init__.__code__,
    subprocess.Popen._get_handles.__code__,  # type: ignore[attr-defined]
)
_PIPES = {  # by the argument that asks for them, the names of both ends
    "stdin": ("p2cread", "p2cwrite"),
    "stdout": ("c2pread", "c2pwrite"),
    "stderr": ("errread", "errwrite"),
}
_FRAMES_OF_POPEN = 16  # more than it ever has on top of it


class Child:
    """A direct child of the parent that must be reaped: a guardian, or with ``fork`` a zygote."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exitcode: int | None = None  # as subprocess has it; None while it is not known
        self._pidfd = kernel.open_pidfd(pid)
        self._reaped = False

    def kill(self) -> None:
        """Send SIGKILL, unless it has been reaped."""
        if self._reaped:
            return
        try:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self, seconds: float) -> bool:
        """Wait no longer than so many seconds for its end and reap it; False if it still lives."""
        if self._reaped:
            return True
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return False
        try:
            pid, status = os.waitpid(self.pid, 0 if self._pidfd is None else os.WNOHANG)
            self._reaped = pid != 0
            if self._reaped:
                self.exitcode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            self._reaped = True  # the program waits for any child, and was quicker
        if self._reaped:
            self.close()
        return self._reaped

    def close(self) -> None:
        """Close the pidfd; may be called more than once."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)


def fork_guardian(
    setup: WorkerSetup, sock: socket.socket, zygote_sock: socket.socket, close: list[int]
) -> Child:
    """Fork the guardian from this process as it is now.

    Args:
        setup: what all workers have in common; inherited, never pickled.
        sock: the guardian's end of its channel.
        zygote_sock: the end of the first zygote's channel.
        close: descriptors that the guardian must not keep: the parent's ends of both.

    Raises:
        OSError: fork failed.
    """
    owner = os.getpid()
    pid, held_back = _fork()
    if pid == 0:
        _close(close)
        run_helper(Guardian, sock, Nursery(owner, setup), zygote_sock, held_back)
    return Child(pid)


def fork_zygote(setup: WorkerSetup, sock: socket.socket, close: list[int]) -> Child:
    """Fork a zygote without a guardian (start method ``fork``); see :func:`fork_guardian`."""
    owner = os.getpid()
    pid, held_back = _fork()
    if pid == 0:
        _close(close)
        run_helper(Zygote, sock, Nursery(owner, setup), held_back=held_back)
    return Child(pid)


def _fork() -> tuple[int, set[int]]:
    """Fork; in the child, signals are still held back.

    Returns:
        What ``os.fork`` does, and the signals that were held back before.
    """
    # What is in the buffers now would otherwise be printed by every worker as well.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError, OSError):
            pass
    with warnings.catch_warnings():
        # Python 3.12 warns of forking while threads run. The zygote exists to do this once, early.
        warnings.simplefilter("ignore", DeprecationWarning)
        imports.let_others_finish()
        pipes = _pipes_of_starting_programs()
        pid = -1
        held_back = signals.held_back()
        try:
            signals.hold_back()
            pid = os.fork()
        finally:
            if pid != 0:
                # Called directly: a signal that is taken by another thread may raise at the
                # beginning of any function of Python, and the mask would stay.
                signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
    if pid == 0:
        imports.forget_others()
        for fd, inode in pipes.items():
            if _inode(fd) == inode:  # it may have been closed meanwhile, and be the user's by now
                os.close(fd)
    return pid, held_back


def _pipes_of_starting_programs() -> dict[int, int | None]:
    """Return the pipes that ``subprocess.Popen`` makes in other threads, with their inodes.

    It waits for the end of the one through which it hears of its child, and ``communicate()`` for
    the end of the program's output. A process that is forked in the middle of it inherits them, and
    unless it lets go, both wait as long as that process lives.
    """
    tops = sys._current_frames()
    # Our own frame, among our own variables, would be a cycle that keeps a dropped pool alive.
    del tops[threading.get_ident()]
    pipes = []
    for top in tops.values():
        frame: FrameType | None = top
        for _ in range(_FRAMES_OF_POPEN):
            if frame is None:
                break
            pipes += _pipes_of(frame)
            frame = frame.f_back
    return {pipe: _inode(pipe) for pipe in pipes if isinstance(pipe, int) and pipe >= 0}


def _pipes_of(frame: FrameType) -> list[object]:
    if frame.f_code is _EXECUTE_CHILD:
        return [frame.f_locals.get("errpipe_write")]
    if frame.f_code in _MAKE_PIPES:
        values = frame.f_locals
        wanted = [ends for name, ends in _PIPES.items() if values.get(name) == subprocess.PIPE]
        return [values.get(end) for ends in wanted for end in ends]
    return []


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


def _tracker_fd() -> int:
    """Return the descriptor of the resource tracker, which is started if need be."""
    fd: int = multiprocessing.resource_tracker.getfd()  # type: ignore[assignment]
    return fd


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class InheritedFd:
    """How multiprocessing's reducers name a descriptor that the child has under its number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        """Return the descriptor; called in the child."""
        return self.fd


class FreshStart:
    """Starts guardians in a fresh interpreter, for ``spawn`` and ``forkserver``.

    The setup is pickled once, with multiprocessing's rules for starting a process: locks and
    queues among ``initargs`` reach the workers.
    """

    DupFd = InheritedFd

    def __init__(self, setup: WorkerSetup, name: str, method: str) -> None:
        self.inherited: list[int] = []
        self._data = multiprocessing.spawn.get_preparation_data(name)
        self._fork_workers = method == "forkserver"
        self._setup = self._pickle(setup)

    def _pickle(self, value: object) -> bytes:
        file = io.BytesIO()
        multiprocessing.context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            ForkingPickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
        finally:
            multiprocessing.context.set_spawning_popen(None)
        return file.getvalue()

    def duplicate_for_child(self, fd: int) -> int:
        """Called by multiprocessing's reducers: the child will know ``fd`` under this number."""
        kept = os.dup(fd)
        self.inherited.append(kept)
        return kept

    def start(self, sock: socket.socket, zygote_sock: socket.socket) -> Child:
        """Start the guardian; see :func:`fork_guardian`.

        Raises:
            OSError: the interpreter could not be started.
        """
        # The tracker may have been started anew since the last guardian was.
        tracker_fd = _tracker_fd()
        held_back = signals.held_back()
        preparation = Preparation(
            os.getpid(), self._data, tracker_fd, self.inherited, self._fork_workers, held_back
        )
        setup_fd = kernel.anonymous_file("poolwatch-setup")
        try:
            with open(os.dup(setup_fd), "wb") as target:
                target.write(self._pickle(preparation) + self._setup)
            own = [setup_fd, sock.fileno(), zygote_sock.fileno()]
            try:
                signals.hold_back()
                process = subprocess.Popen(
                    command("guardian_main", *own),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[*own, tracker_fd, *self.inherited],
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, held_back)  # directly, as above
        finally:
            os.close(setup_fd)
        process.returncode = 0  # reaped by pid, as the other kind of guardian
        return Child(process.pid)

    def close(self) -> None:
        """Close what was kept for further guardians."""
        fds, self.inherited = self.inherited, []
        _close(fds)
