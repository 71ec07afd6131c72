"""The messages between the parent, the guardian and the zygote, and the channel that carries them.

A channel is a socket pair that keeps message boundaries (``SOCK_SEQPACKET``); descriptors travel
with the message they belong to.
"""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import socket
from collections import deque
from dataclasses import dataclass

from poolwatch.transport.frames import read_ancillary

_MESSAGE_BYTES = 64 * 1024
_ANCILLARY_BYTES = socket.CMSG_SPACE(8 * array.array("i").itemsize)


@dataclass(frozen=True, slots=True)
class StartWorker:
    """To the zygote: make a worker.

    Attributes:
        token: number of the worker in its pool.
        name: its name.
        descriptors: how many travel with this message: stream, ledger row, crash file, stack file,
            and with ``capture_stderr`` the pipe for standard error.
    """

    token: int
    name: str
    descriptors: int = 4


@dataclass(frozen=True, slots=True)
class SignalWorker:
    """To the zygote: send a signal (where the parent has no pidfd)."""

    token: int
    signum: int


@dataclass(frozen=True, slots=True)
class SweepWorker:
    """To the zygote: kill what a worker left behind although it exited with status 0."""

    token: int


@dataclass(frozen=True, slots=True)
class StartZygote:
    """To the guardian: fork a zygote."""


@dataclass(frozen=True, slots=True)
class StartGuardian:
    """To the zygote: fork a guardian, the old one has died."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """To either: kill what is left, reap it, exit."""


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """From the zygote. Descriptor: the worker's pidfd, where there are pidfds."""

    token: int
    pid: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """From the zygote: fork failed, with this errno; the parent tries again later."""

    token: int
    errno: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """From the zygote: a worker's first and only exit status.

    Attributes:
        token: which worker.
        pid: its process id, free from now on.
        exitcode: negative for a signal.
        peak_rss: greatest resident set in bytes, as the kernel counted it.
        core_dumped: the kernel has written a core dump.
    """

    token: int
    pid: int
    exitcode: int
    peak_rss: int
    core_dumped: bool = False


@dataclass(frozen=True, slots=True)
class HelperStarted:
    """A zygote or guardian was forked. Descriptors: the parent's end of its channel, its pidfd.

    Attributes:
        pid: its process id.
        has_channel: False when the parent made the channel itself (the first zygote).
    """

    pid: int
    has_channel: bool


@dataclass(frozen=True, slots=True)
class ZygoteExited:
    """From the guardian: the zygote died; its workers died with it and were swept up."""

    pid: int
    exitcode: int


Message = (
    StartWorker
    | SignalWorker
    | SweepWorker
    | StartZygote
    | StartGuardian
    | Shutdown
    | WorkerStarted
    | StartFailed
    | WorkerExited
    | HelperStarted
    | ZygoteExited
)


class Channel:
    """One end of a control channel."""

    __slots__ = ("_out", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._out: deque[tuple[bytes, list[int]]] = deque()

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Return the parent's end, non-blocking, and the socket for the other side."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self.sock.fileno()

    def send(self, message: Message, fds: list[int] | None = None) -> bool:
        """Write one message; the descriptors remain the caller's.

        Returns:
            False when the (non-blocking) channel is full and :meth:`flush` must be called.

        Raises:
            ConnectionError: the other side is gone.
        """
        data = pickle.dumps(message)
        if not self._out:
            try:
                socket.send_fds(self.sock, [data], fds or [])
                return True
            except BlockingIOError:
                pass
        self._out.append((data, [os.dup(fd) for fd in fds or []]))
        return False

    def flush(self) -> bool:
        """Write what waits; return True when nothing is left."""
        while self._out:
            data, fds = self._out[0]
            try:
                socket.send_fds(self.sock, [data], fds)
            except BlockingIOError:
                return False
            self._out.popleft()
            _close_all(fds)
        return True

    def flush_quietly(self) -> bool:
        """Do what :meth:`flush` does; a channel that has ended has nothing left."""
        try:
            return self.flush()
        except OSError:
            return True

    def receive(self, flags: int = 0) -> tuple[Message, list[int]] | None:
        """Read one message and its descriptors; None when the other side is gone.

        Args:
            flags: of ``recvmsg``: ``MSG_DONTWAIT`` where the socket itself would block.

        Raises:
            BlockingIOError: nothing to read.
        """
        try:
            # Not socket.recv_fds, which takes flags and drops them.
            data, ancillary, _, _ = self.sock.recvmsg(_MESSAGE_BYTES, _ANCILLARY_BYTES, flags)
        except ConnectionError:
            return None
        fds = read_ancillary(ancillary)
        if not data:
            _close_all(fds)
            return None
        message: Message = pickle.loads(data)
        return message, fds

    def close(self) -> None:
        """Close the socket and what waited for it; may be called more than once."""
        while self._out:
            _close_all(self._out.popleft()[1])
        self.sock.close()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
