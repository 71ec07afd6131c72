"""The zygote makes the workers and reports their deaths; the guardian keeps its place.

Both are forks of the same moment: the pool's snapshot. They do nothing between messages.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from poolwatch.launch import control
from poolwatch.launch.control import Channel, Message
from poolwatch.launch.reaper import Reaper, wait_for_exit
from poolwatch.transport import kernel, ledger
from poolwatch.worker import signals
from poolwatch.worker.main import WorkerEnds, WorkerSetup
from poolwatch.worker.process import run_bootstrapped, serve_as_worker
from poolwatch.worker.title import set_title

_ZYGOTE_SECONDS = 0.3  # how long the guardian waits for the zygote's own cleaning up
_FIELD = struct.Struct("=Q")  # of the ledger
_RSS_UNIT = 1024 if kernel.LINUX else 1  # ru_maxrss is in KiB on Linux and in bytes on macOS


Exec = Callable[[list[int], str], NoReturn]
"""Replaces a freshly forked process by a fresh interpreter that becomes the worker.

Its arguments are the worker's descriptors and its name.
"""


@dataclass(slots=True)
class Nursery:
    """From what workers are made.

    Attributes:
        owner_pid: the process that made the pool.
        setup: what all workers have in common.
        exec_worker: None to fork workers; else what a forked process calls to become a fresh one.
    """

    owner_pid: int
    setup: WorkerSetup
    exec_worker: Exec | None = None


class Zygote(Reaper):
    """Forks workers, reaps them, kills what they leave behind."""

    def __init__(self, channel: Channel, nursery: Nursery) -> None:
        super().__init__(channel, nursery.owner_pid)
        self._nursery = nursery
        self._tokens: dict[int, int] = {}  # worker's pid -> token
        self._left: dict[int, set[int]] = {}  # token -> orphans of a worker that left in peace

    def handle(self, message: Message, fds: list[int]) -> None:
        """Act on one message of the parent."""
        match message:
            case control.SignalWorker(token, signum):
                for pid in [pid for pid, known in self._tokens.items() if known == token]:
                    os.kill(pid, signum)
            case control.SweepWorker(token):
                self.spared -= self._left.pop(token, set())
                self.sweep()
            case control.StartGuardian():
                guardian = fork_helper(Guardian, self, self._nursery)
                if guardian is not None:
                    self.spared.add(guardian)
            case _:
                self.shut_down()

    def handle_all(self, messages: list[tuple[Message, list[int]]]) -> None:
        """Act on messages; workers that are asked for at the same time are forked together.

        Nothing is done between two of those forks: every page of memory that this process writes
        to in between is one that those two workers no longer share.
        """
        orders: list[tuple[control.StartWorker, list[int]]] = []
        for message, fds in messages:
            if isinstance(message, control.StartWorker):
                orders.append((message, fds))
            else:
                self._start_workers(orders)
                orders = []
                self.handle(message, fds)
        self._start_workers(orders)

    def _start_workers(self, orders: list[tuple[control.StartWorker, list[int]]]) -> None:
        parent_pid = os.getpid()
        if self._nursery.setup.before_fork is not None:
            self._call_before_forks(self._nursery.setup.before_fork, len(orders))
        everything = [fd for _, fds in orders for fd in fds]
        made: list[int | OSError] = []
        for order, fds in orders:
            try:
                if len(fds) != order.descriptors:
                    raise OSError(errno.EMFILE, "the worker's descriptors did not fit our table")
                pid = os.fork()
            except OSError as error:
                made.append(error)
                continue
            if pid == 0:
                self._be_worker(order.name, fds, everything, parent_pid)
            made.append(pid)
        for fd in everything:
            os.close(fd)
        for (order, _), result in zip(orders, made, strict=True):
            self._report(order.token, result)

    def _call_before_forks(self, call: Callable[[], object], count: int) -> None:
        """Call the user's code as often as workers are about to be forked."""
        try:
            for _ in range(count):
                call()
        except Exception:  # noqa: BLE001  (the user's code; workers are made all the same)
            traceback.print_exc()

    def _be_worker(
        self, name: str, fds: list[int], everything: list[int], parent_pid: int
    ) -> NoReturn:
        self.close_descriptors()
        _pin(fds[1])
        for fd in everything:
            if fd not in fds:
                os.close(fd)
        if self._nursery.exec_worker is not None:
            self._nursery.exec_worker(fds, name)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fds[0])
        ends = WorkerEnds(sock, *fds[1:])
        serve_as_worker(self._nursery.setup, ends, name, parent_pid)

    def _report(self, token: int, made: int | OSError) -> None:
        if isinstance(made, OSError):
            self.channel.send(control.StartFailed(token, made.errno or 0))
            return
        self._tokens[made] = token
        self.spared.add(made)
        pidfd = kernel.open_pidfd(made)
        self.channel.send(control.WorkerStarted(token, made), [] if pidfd is None else [pidfd])
        if pidfd is not None:
            os.close(pidfd)

    def child_exited(self, pid: int) -> bool:
        """Sweep up after a worker, reap it, report it."""
        token = self._tokens.pop(pid, None)
        if token is None:
            self._forget_orphan(pid)
            return False
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is not None and status.si_code == os.CLD_EXITED and status.si_status == 0:
            self._spare_orphans(token)
        else:
            self.sweep()
        _, wait_status, usage = os.wait4(pid, 0)
        self.spared.discard(pid)
        exitcode = os.waitstatus_to_exitcode(wait_status)
        self.channel.send(
            control.WorkerExited(
                token,
                pid,
                exitcode,
                int(usage.ru_maxrss * _RSS_UNIT),
                os.WCOREDUMP(wait_status),
            )
        )
        return True

    def _spare_orphans(self, token: int) -> None:
        """A worker left in peace: what its finished jobs detached lives until the pool closes.

        Should the parent find that a job was running after all (``os._exit(0)``), it says so.
        """
        orphans = {pid for pid in self.children() if pid not in self.spared}
        if orphans:
            self._left[token] = orphans
            self.spared |= orphans

    def _forget_orphan(self, pid: int) -> None:
        self.spared.discard(pid)
        for orphans in self._left.values():
            orphans.discard(pid)


class Guardian(Reaper):
    """The zygote's dormant twin and parent: forks it, and the next one when it dies."""

    def __init__(self, channel: Channel, nursery: Nursery) -> None:
        super().__init__(channel, nursery.owner_pid)
        self._nursery = nursery
        self._zygote = 0

    def handle(self, message: Message, fds: list[int]) -> None:
        """Act on one message of the parent."""
        if isinstance(message, control.StartZygote):
            self.start_zygote(None)
        else:
            self.shut_down()

    def start_zygote(self, sock: socket.socket | None) -> None:
        """Fork a zygote; the channel is given for the first one, whose parent's end exists."""
        pid = fork_helper(Zygote, self, self._nursery, sock)
        if pid is not None:
            self._zygote = pid
            self.spared.add(pid)

    def child_exited(self, pid: int) -> bool:
        """When the zygote dies, sweep up what it leaves, and report it."""
        if pid != self._zygote:
            return False
        self._zygote = 0
        self.sweep()  # the zygote itself is spared: it is dead, and reaped below
        _, status = os.waitpid(pid, 0)
        self.spared.discard(pid)
        self.channel.send(control.ZygoteExited(pid, os.waitstatus_to_exitcode(status)))
        return True

    def shut_down(self) -> NoReturn:
        """Let the zygote clean up first; it knows of the same end."""
        if self._zygote:
            wait_for_exit(self._zygote, _ZYGOTE_SECONDS)
        super().shut_down()


def _pin(ledger_fd: int) -> None:
    """Pin this process, a worker to be, to the processor in its row, if there is one.

    Here, before anything of the user's: threads that the initializer or, in a fresh interpreter, an
    import starts would not follow later. What the process executes or forks inherits it. A
    processor may have been taken away since the pool was made; then the worker runs wherever it
    may, and the parent says so once it is up.
    """
    (processor,) = _FIELD.unpack(os.pread(ledger_fd, _FIELD.size, _FIELD.size * ledger.PROCESSOR))
    if processor:
        try:
            os.sched_setaffinity(0, {processor - 1})
        except OSError as error:
            refused = _FIELD.pack(error.errno or 0)
            os.pwrite(ledger_fd, refused, _FIELD.size * ledger.UNPINNED)


def fork_helper(
    role: type[Zygote] | type[Guardian],
    maker: Reaper,
    nursery: Nursery,
    sock: socket.socket | None = None,
) -> int | None:
    """Fork a zygote or guardian and tell the parent.

    Args:
        role: what the new process becomes.
        maker: the process that forks.
        nursery: from what workers are made.
        sock: its end of the channel, if the parent has the other end already.

    Returns:
        The new process's pid, or None when fork failed (the parent has been told).
    """
    ours = None
    try:
        if sock is None:
            ours, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
    except OSError as error:
        maker.channel.send(control.StartFailed(0, error.errno or 0))
        return None
    else:
        if pid == 0:
            maker.close_descriptors()
            if ours is not None:
                ours.close()
            run_helper(role, sock, nursery)
        pidfd = kernel.open_pidfd(pid)
        fds = [] if ours is None else [ours.fileno()]
        maker.channel.send(
            control.HelperStarted(pid, ours is not None), fds if pidfd is None else [*fds, pidfd]
        )
        if pidfd is not None:
            os.close(pidfd)
        return pid
    finally:
        if sock is not None:
            sock.close()
        if ours is not None:
            ours.close()


def run_helper(
    role: type[Zygote] | type[Guardian],
    sock: socket.socket,
    nursery: Nursery,
    zygote_sock: socket.socket | None = None,
    held_back: set[int] | None = None,
) -> NoReturn:
    """In a freshly forked process: become a zygote or guardian; never returns.

    Args:
        role: what this process becomes.
        sock: its end of its control channel.
        nursery: from what workers are made.
        zygote_sock: for a guardian, the channel of the zygote that it forks at once.
        held_back: signals that are to be held back from now on; others may have been until now.
    """
    signal.set_wakeup_fd(-1)
    signals.disregard()
    if held_back is not None:
        signals.let_through(held_back)

    def serve() -> NoReturn:
        set_title(nursery.setup.pool, role.__name__.lower())
        gc.freeze()  # a collection in a worker must not write to what it shares with the others
        pid = os.getpid()
        helper = role(Channel(sock), nursery)
        if zygote_sock is not None and isinstance(helper, Guardian):
            helper.start_zygote(zygote_sock)
        try:
            helper.serve()
        except ConnectionError:
            if os.getpid() != pid:
                raise  # not ours: out of a worker that was forked in there
            os._exit(0)  # the parent is gone, in the middle of a report

    if role is Zygote:
        run_bootstrapped("poolwatch-zygote", serve)
    try:
        serve()
    finally:
        os._exit(1)
