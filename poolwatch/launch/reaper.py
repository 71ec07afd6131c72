"""What guardian and zygote share: an event loop without threads that reaps and sweeps.

It sleeps in ``poll`` on the control channel, on the parent's pidfd and on a pipe that ``SIGCHLD``
writes to. The parent's end is seen by its pidfd *or* by the channel's end of file: a forked child
of the parent may hold the channel open, and not every kernel has pidfds.

One kind of process is never killed: a resource tracker of multiprocessing, which a job starts by
using shared memory or a named semaphore. It ends by itself when the last process that it keeps
track for has gone, and removes what they have left in ``/dev/shm``; killed, it would leave that
there for ever.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from abc import ABC, abstractmethod
from time import monotonic
from typing import NoReturn

import psutil

from poolwatch.launch.control import Channel, Message
from poolwatch.transport import kernel
from poolwatch.worker import signals

_SWEEP_SECONDS = 0.5  # a process in an uninterruptible wait must not hold up the next report
_SWEEP_ROUNDS = 1000
_CHILDREN_BYTES = 1 << 20
_MESSAGES_AT_ONCE = 16
_TRACKER = b"resource_tracker import main"  # on its command line, multiprocessing's and loky's
_TRACKER_SECONDS = 0.6  # how long its end is waited for; that takes it some ms once it is up

_kept: list[object] = []  # what must not be finalized


class Reaper(ABC):
    """A single-threaded process that owns children and outlives none of its reasons to exist."""

    def __init__(self, channel: Channel, owner_pid: int) -> None:
        self.channel = channel
        self.owner_pid = owner_pid  # the process that made the pool
        self.spared: set[int] = set()  # children that a sweep leaves alone
        self._trackers: set[int] = set()  # and these, of which nobody else needs to know
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._owner_pidfd = kernel.open_pidfd(owner_pid)
        self._children_fd = self._open_children()
        # Where there is epoll: poll fails when it is given more than RLIMIT_NOFILE descriptors.
        self._poller = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._descriptors = [channel.fileno(), self._wake_read, self._wake_write]
        self._descriptors += [fd for fd in (self._owner_pidfd, self._children_fd) if fd is not None]
        if isinstance(self._poller, select.epoll):
            self._descriptors.append(self._poller.fileno())

    @abstractmethod
    def handle(self, message: Message, fds: list[int]) -> None:
        """Act on one message of the parent."""

    @abstractmethod
    def child_exited(self, pid: int) -> bool:
        """Deal with a child that has exited and is still a zombie; False: a stranger, reap it."""

    def serve(self) -> NoReturn:
        """Run until told to shut down or until the parent is gone."""
        self._take_over_signals()
        kernel.become_subreaper()
        sources = [self.channel.fileno(), self._wake_read]
        if self._owner_pidfd is not None:
            sources.append(self._owner_pidfd)
        for fd in sources:
            self._poller.register(fd, select.POLLIN)
        self._reap()  # an exit before the handler was installed would never be told
        while True:
            ready = {fd for fd, _ in self._poller.poll()}
            if self._owner_pidfd in ready:
                self.shut_down()
            if self._wake_read in ready:
                self._drain_wakeups()
                self._reap()
            if self.channel.fileno() in ready:
                self._take_messages()

    def _take_messages(self) -> None:
        """Act on the messages that are there, as many as can be had without waiting."""
        messages: list[tuple[Message, list[int]]] = []
        ended = False
        while len(messages) < _MESSAGES_AT_ONCE and not ended:
            try:
                received = self.channel.receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if received is None:
                ended = True
            else:
                messages.append(received)
        self.handle_all(messages)
        if ended:
            self.shut_down()

    def handle_all(self, messages: list[tuple[Message, list[int]]]) -> None:
        """Act on messages of the parent, in order."""
        for message, fds in messages:
            self.handle(message, fds)

    def children(self) -> list[int]:
        """Return the pids of this (single-threaded) process's children, zombies included."""
        if self._children_fd is None:
            return [child.pid for child in psutil.Process().children()]
        return [int(pid) for pid in os.pread(self._children_fd, _CHILDREN_BYTES, 0).split()]

    def _open_children(self) -> int | None:
        """Open the kernel's list of our children; None where there is no such file.

        Kept open: a sweep must not fail when there are no descriptors left.
        """
        pid = os.getpid()
        try:
            return os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    def _take_over_signals(self) -> None:
        """A signal to the process group must not take the pool's reaper."""
        signals.disregard()
        signal.signal(kernel.STACK_SIGNAL, signal.SIG_IGN)  # its default kills a booting worker
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _drain_wakeups(self) -> None:
        try:
            while os.read(self._wake_read, 512):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        """Look before reaping: a child's pid stays its own until its story has been told."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            if not self.child_exited(info.si_pid):
                self._trackers.discard(info.si_pid)
                os.waitpid(info.si_pid, 0)

    def sweep(self) -> None:
        """Kill the children that are not spared, and theirs as they arrive, until none arrives.

        Descendants of a killed process become our children when it dies, so killing children
        alone reaches the whole tree, also what has a session of its own.
        """
        deadline = monotonic() + _SWEEP_SECONDS
        for _ in range(_SWEEP_ROUNDS):
            doomed = self._doomed()
            if not doomed or monotonic() > deadline:
                return
            for pid in doomed:
                _kill(pid)
            for pid in doomed:
                wait_for_exit(pid, deadline - monotonic())
                os.waitpid(pid, os.WNOHANG)

    def _doomed(self) -> list[int]:
        kept = self.spared | self._trackers
        doomed = [pid for pid in self.children() if pid not in kept]
        trackers = {pid for pid in doomed if _is_tracker(pid)}
        self._trackers |= trackers
        return [pid for pid in doomed if pid not in trackers]

    def _await_trackers(self) -> None:
        """Wait for trackers, whose processes have all gone; one that is slow ends without us."""
        deadline = monotonic() + _TRACKER_SECONDS
        for pid in self._trackers.intersection(self.children()):
            wait_for_exit(pid, deadline - monotonic())
            os.waitpid(pid, os.WNOHANG)

    def close_descriptors(self) -> None:
        """In a forked child: let go of what belongs to this process.

        By number, and the objects stay as they are: a child that calls their methods writes to
        pages of memory that it could go on sharing. They must live as long as the process: their
        numbers may belong to somebody else by then.
        """
        _kept.append(self)
        signal.set_wakeup_fd(-1)
        for fd in self._descriptors:
            os.close(fd)

    def shut_down(self) -> NoReturn:
        """Kill everything that is left, reap it, exit."""
        signal.set_wakeup_fd(-1)
        self.spared.clear()
        self.sweep()
        self._await_trackers()
        os._exit(0)


def wait_for_exit(pid: int, seconds: float) -> None:
    """Wait until a child has exited, without reaping it, no longer than so many seconds."""
    pidfd = kernel.open_pidfd(pid)
    if pidfd is None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)
    finally:
        os.close(pidfd)


def _is_tracker(pid: int) -> bool:
    """True for a resource tracker; this is asked of what is about to be killed only."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read().split(b"\0")
    except OSError:
        return False
    return b"-c" in arguments and any(_TRACKER in argument for argument in arguments)


def _kill(pid: int) -> None:
    """Kill a child that has not been reaped, so that the pid is its own."""
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        pass  # it has become somebody else's process (setuid); the rounds are bounded
