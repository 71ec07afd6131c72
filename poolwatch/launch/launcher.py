"""The parent's side of making workers: what the supervisor asks for, and what it is told.

A launcher gives each worker its private stream, row and files, hands the worker's ends to a
zygote, and turns the zygote's messages into calls of a :class:`Reports`. Two kinds: with a guardian
(``guarded``), and one that forks from the present parent each time (``forking``).
"""

from __future__ import annotations

import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from poolwatch.launch import control
from poolwatch.launch.control import Channel, Message
from poolwatch.launch.guardians import Child
from poolwatch.transport import kernel, ledger
from poolwatch.transport.streams import Stream


class Reports(Protocol):
    """What a launcher tells (the supervisor implements it)."""

    def worker_started(self, token: int, pid: int, pidfd: int | None) -> None:
        """The process exists; the receiver owns the pidfd."""

    def worker_not_started(self, token: int, errno: int) -> None:
        """Making the process failed for want of processes, memory or descriptors."""

    def worker_exited(
        self, token: int, exitcode: int, peak_rss: int, core_dumped: bool = False
    ) -> None:
        """The process has ended and been reaped."""

    def zygote_died(self, tokens: list[int], reason: str) -> None:
        """These workers have lost their zygote; they die, and nobody will report it."""

    def helpers_died(self, exitcode: int | None) -> None:
        """Guardian and zygote have both died before they could make a worker.

        Args:
            exitcode: of the guardian, as far as it is known.
        """

    def launcher_trouble(self, text: str) -> None:
        """Something is wrong that the launcher deals with; worth a line in the log."""


class Watcher(Protocol):
    """What a launcher needs of the event loop."""

    def watch(self, source: Channel, on_readable: Callable[[], None]) -> None:
        """Call back whenever the channel has something to read."""

    def unwatch(self, source: Channel) -> None:
        """Stop that."""

    def watch_writable(self, source: Channel, on_writable: Callable[[], bool]) -> None:
        """Call back whenever the channel can be written to, until the callback returns True."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> object:
        """Call back once, after so many seconds."""


@dataclass(slots=True, eq=False)
class WorkerHands:
    """The parent's ends of one worker.

    Attributes:
        stream: jobs go out, results come in.
        row: the worker's row of the ledger.
        crash_fd: faulthandler writes the traceback of a crash into this file.
        stack_fd: faulthandler writes the stacks that were asked for into this one.
        stderr_fd: what the worker writes to standard error comes in here; None where it is not
            captured. Whoever takes it closes it.
    """

    stream: Stream
    row: ledger.Row
    crash_fd: int
    stack_fd: int
    stderr_fd: int | None = None

    def close(self) -> None:
        """Close everything."""
        self.stream.close()
        self.row.close()
        os.close(self.crash_fd)
        os.close(self.stack_fd)

    def abandon(self) -> None:
        """Close everything in a forked child, where the parent's locks may be held for ever."""
        self.stream.abandon()
        os.close(self.crash_fd)
        os.close(self.stack_fd)


@dataclass(slots=True, eq=False)
class Zygote:
    """One zygote as the parent knows it.

    Attributes:
        channel: our end of its control channel.
        child: set where it is a direct child of ours, which we must reap.
        pid: its process id, once it has been told.
        pidfd: owned; stands for it.
        has_guardian: its parent is the present guardian, which will report its death.
        tokens: the workers that it has been asked for and that have not been reported dead.
    """

    channel: Channel
    child: Child | None = None
    pid: int | None = None
    pidfd: int | None = None
    has_guardian: bool = True
    tokens: set[int] = field(default_factory=set)

    def kill(self) -> None:
        """Send it SIGKILL; one that is gone is no error."""
        if self.pidfd is None:
            return
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def send(self, message: Message, fds: list[int] | None = None) -> bool:
        """Write a message; its end of file is seen by whoever reads, so no error here.

        Returns:
            False when the channel is full and must be flushed.
        """
        try:
            return self.channel.send(message, fds)
        except ConnectionError:
            return True

    def close(self) -> None:
        """Close our descriptors; may be called more than once."""
        self.channel.close()
        pidfd, self.pidfd = self.pidfd, None
        if pidfd is not None:
            os.close(pidfd)


class Launcher(ABC):
    """Makes workers through zygotes; the rest of the parent sees only this."""

    def __init__(self, captures_stderr: bool = False) -> None:
        self._captures_stderr = captures_stderr
        self._reports: Reports
        self._watcher: Watcher
        self._stopping = False

    def attach(self, reports: Reports, watcher: Watcher) -> None:
        """Say whom to tell, and who calls us when there is something to read."""
        self._reports = reports
        self._watcher = watcher

    def launch(self, token: int, name: str, notes: Mapping[int, int]) -> WorkerHands:
        """Ask for a worker; reports tell how that went.

        Args:
            token: number of the worker in its pool.
            name: its name.
            notes: fields of its row that must be there before it looks, by their indices.

        Raises:
            OSError: no descriptors left for its stream, row and files.
        """
        hands, sock, ledger_fd = _make_ends()
        for index, value in notes.items():
            hands.row.fields[index] = value
        fds, theirs = [sock.fileno(), ledger_fd, hands.crash_fd, hands.stack_fd], [ledger_fd]
        try:
            if self._captures_stderr:
                hands.stderr_fd, stderr = os.pipe()
                os.set_blocking(hands.stderr_fd, False)
                fds.append(stderr)
                theirs.append(stderr)
            self._order(control.StartWorker(token, name, len(fds)), fds)
        except BaseException:
            hands.close()
            if hands.stderr_fd is not None:
                os.close(hands.stderr_fd)
            raise
        finally:
            sock.close()
            for fd in theirs:
                os.close(fd)
        return hands

    @abstractmethod
    def _order(self, order: control.StartWorker, fds: list[int]) -> None:
        """Give the order to a zygote, or keep it until there is one."""

    @abstractmethod
    def _zygotes(self) -> list[Zygote]:
        """Return the zygotes that there are."""

    def signal(self, token: int, signum: int) -> None:
        """Send a signal to a worker through its zygote (where there are no pidfds)."""
        for zygote in self._zygotes():
            if token in zygote.tokens:
                self._send(zygote, control.SignalWorker(token, signum))

    def sweep(self, token: int) -> None:
        """Kill what a worker left behind that exited with status 0 in the middle of a job."""
        for zygote in self._zygotes():
            self._send(zygote, control.SweepWorker(token))

    def replace_zygote(self, token: int) -> None:
        """The zygote does not answer to an order: kill it, so that another comes."""
        for zygote in self._zygotes():
            if token in zygote.tokens:
                zygote.kill()

    def helper_pids(self) -> list[int]:
        """Return the process ids of the helpers, as far as they are known."""
        return [zygote.pid for zygote in self._zygotes() if zygote.pid is not None]

    def stop(self) -> None:
        """Have everything killed that is left, and the helpers exit; does not wait."""
        self._stopping = True
        for zygote in self._zygotes():
            zygote.send(control.Shutdown())

    @abstractmethod
    def is_gone(self) -> bool:
        """Return True when no helper is left after :meth:`stop`."""

    @abstractmethod
    def wait(self, seconds: float) -> bool:
        """Wait for the helpers' end and close everything.

        Returns:
            False when they had to be killed after so many seconds.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the parent's descriptors; all that a forked child does."""

    @abstractmethod
    def _zygote_gone(self, zygote: Zygote) -> None:
        """Deal with the end of a zygote."""

    def _send(self, zygote: Zygote, message: Message, fds: list[int] | None = None) -> None:
        if not zygote.send(message, fds):
            self._watcher.watch_writable(zygote.channel, zygote.channel.flush_quietly)

    def _watch_zygote(self, zygote: Zygote) -> None:
        self._watcher.watch(zygote.channel, lambda: self._on_zygote(zygote))

    def _on_zygote(self, zygote: Zygote) -> None:
        messages, ended = drain(zygote.channel)
        for message, fds in messages:
            self._on_message(zygote, message, fds)
        if ended:
            self._watcher.unwatch(zygote.channel)
            self._zygote_gone(zygote)

    def _on_message(self, zygote: Zygote, message: Message, fds: list[int]) -> None:
        match message:
            case control.WorkerStarted(token, pid):
                self._reports.worker_started(token, pid, fds[0] if fds else None)
            case control.StartFailed(token, errno):
                zygote.tokens.discard(token)
                self._reports.worker_not_started(token, errno)
            case control.WorkerExited(token, _, exitcode, peak_rss, core_dumped):
                zygote.tokens.discard(token)
                self._reports.worker_exited(token, exitcode, peak_rss, core_dumped)
            case _:
                raise AssertionError(f"unexpected message {message}")


def _make_ends() -> tuple[WorkerHands, socket.socket, int]:
    """Return our ends of a new worker, its end of the stream and its descriptor of the row.

    Raises:
        OSError: no descriptors left.
    """
    with ExitStack() as undo:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(ours.close)
        undo.callback(theirs.close)
        fds = []
        for make in (
            ledger.create,
            lambda: kernel.anonymous_file("poolwatch-crash"),
            lambda: kernel.anonymous_journal("poolwatch-stack"),
        ):
            fds.append(make())
            undo.callback(os.close, fds[-1])
        row = ledger.Row.map(fds[0])
        row.fields[ledger.RING] = kernel.membarrier()  # before the worker can look
        undo.pop_all()
    return WorkerHands(Stream(ours), row, fds[1], fds[2]), theirs, fds[0]


def drain(channel: Channel) -> tuple[list[tuple[Message, list[int]]], bool]:
    """Read every message that is there; true: and that was the end of the channel."""
    received: list[tuple[Message, list[int]]] = []
    while True:
        try:
            item = channel.receive()
        except BlockingIOError:
            return received, False
        if item is None:
            return received, True
        received.append(item)
