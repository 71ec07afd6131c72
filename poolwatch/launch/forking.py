"""The launcher for ``fork``: each worker is forked from the parent as it is at that moment.

Every worker gets a small zygote of its own, forked from the parent, so that deaths are reported and
descendants found as with the other methods. What is weaker: the fork happens in a process with
threads (locks that they hold stay locked in the worker for ever), and nobody sweeps up when such a
zygote itself is killed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from typing import NamedTuple

from poolwatch.launch import control
from poolwatch.launch.control import Channel, Message
from poolwatch.launch.guardians import Child, fork_zygote
from poolwatch.launch.launcher import Launcher, Zygote
from poolwatch.worker.main import WorkerSetup


class _Forked(NamedTuple):
    """What a forking thread has to report."""

    token: int
    channel: Channel | None
    child: Child | None
    errno: int


class ForkLauncher(Launcher):
    """Forks a zygote for every worker."""

    def __init__(self, setup: WorkerSetup) -> None:
        super().__init__(setup.capture_stderr)
        self._setup = setup
        self._alive: list[Zygote] = []
        self._fork_lock = threading.Lock()
        self._forkers: set[threading.Thread] = set()
        self._forked: deque[_Forked] = deque()

    def is_gone(self) -> bool:
        """Return True when no helper is left after :meth:`stop`."""
        return not self._alive and not self._forkers and not self._forked

    def wait(self, seconds: float) -> bool:
        """Wait for the zygotes' end and close everything; see the base class."""
        for forker in list(self._forkers):
            forker.join(seconds)
        while self._forked:  # a forker that takes longer may still add to it
            forked = self._forked.popleft()
            if forked.channel is not None:
                # It may have been forked while we ended; the end of its channel ends it.
                self._alive.append(Zygote(forked.channel, child=forked.child))
                forked.channel.close()
        done = True
        for zygote in self._alive:
            child = zygote.child
            if child is not None and not child.wait(seconds):
                done = False
                child.kill()
                child.wait(seconds)
        self.close()
        return done

    def close(self) -> None:
        """Close the parent's descriptors; may be called more than once."""
        for zygote in self._alive:
            zygote.close()
            if zygote.child is not None:
                zygote.child.close()
        self._alive.clear()

    def replace_zygote(self, token: int) -> None:
        """The zygote does not answer: kill it; the worker is then started anew."""
        for zygote in self._alive:
            if token in zygote.tokens and zygote.child is not None:
                zygote.child.kill()

    def _zygotes(self) -> list[Zygote]:
        return self._alive

    def _order(self, order: control.StartWorker, fds: list[int]) -> None:
        """Fork on a thread of its own.

        Python runs hooks before a fork, which take locks (that of ``logging``, for one). While
        somebody holds such a lock no worker can be made, but deaths and limits must not wait.
        """
        own = [os.dup(fd) for fd in fds]
        forker = threading.Thread(target=self._fork, args=(order, own), name="fork", daemon=True)
        try:
            forker.start()
        except RuntimeError:  # no more threads to be had, so no processes either
            self._forked.append(_Forked(order.token, None, None, errno.EAGAIN))
            for fd in own:
                os.close(fd)
            # Not from inside the caller, which has not yet noted that it asked.
            self._watcher.call_later(0, self._take_forked)
        else:
            self._forkers.add(forker)

    def _fork(self, order: control.StartWorker, fds: list[int]) -> None:
        channel, child, error_number = None, None, 0
        try:
            with self._fork_lock:  # or one zygote would inherit the next one's end of its channel
                channel, sock = Channel.pair()
                try:
                    channel.send(order, fds)
                    child = fork_zygote(self._setup, sock, [channel.fileno(), *fds])
                finally:
                    sock.close()
        except OSError as error:
            error_number = error.errno or 0
        except RuntimeError:  # Python 3.12 forks no more once the interpreter ends
            error_number = errno.EAGAIN
        for fd in fds:
            os.close(fd)
        self._forked.append(_Forked(order.token, channel, child, error_number))
        self._forkers.discard(threading.current_thread())
        if not self._stopping:
            self._watcher.call_later(0, self._take_forked)

    def _take_forked(self) -> None:
        while self._forked:
            token, channel, child, error_number = self._forked.popleft()
            if child is None or channel is None:
                if channel is not None:
                    channel.close()
                self._reports.worker_not_started(token, error_number)
                continue
            zygote = Zygote(channel, child=child, pid=child.pid, tokens={token})
            self._alive.append(zygote)
            self._watch_zygote(zygote)

    def _on_message(self, zygote: Zygote, message: Message, fds: list[int]) -> None:
        super()._on_message(zygote, message, fds)
        if not zygote.tokens:
            zygote.send(control.Shutdown())  # its worker is gone, and so is its purpose

    def _zygote_gone(self, zygote: Zygote) -> None:
        self._alive.remove(zygote)
        zygote.close()
        if zygote.child is not None:
            zygote.child.wait(1.0)
            zygote.child.close()
        if zygote.tokens and not self._stopping:
            reason = f"the zygote (pid {zygote.pid}) that made this worker has died"
            self._reports.zygote_died(sorted(zygote.tokens), reason)
