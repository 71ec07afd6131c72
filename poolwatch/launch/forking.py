"""The launcher for ``fork``: each worker is forked from the parent as it is at that moment.

Every worker gets a small zygote of its own, forked from the parent, so that deaths are reported and
descendants found as with the other methods. What is weaker: the fork happens in a process with
threads (locks that they hold stay locked in the worker for ever), and nobody sweeps up when such a
zygote itself is killed.
"""

from __future__ import annotations

from poolwatch.launch import control
from poolwatch.launch.control import Channel, Message
from poolwatch.launch.guardians import fork_zygote
from poolwatch.launch.launcher import Launcher, Zygote
from poolwatch.worker.main import WorkerSetup


class ForkLauncher(Launcher):
    """Forks a zygote for every worker."""

    def __init__(self, setup: WorkerSetup) -> None:
        super().__init__()
        self._setup = setup
        self._alive: list[Zygote] = []

    def wait(self, seconds: float) -> bool:
        """Wait for the zygotes' end and close everything; see the base class."""
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
        channel, sock = Channel.pair()
        try:
            child = fork_zygote(self._setup, sock, [channel.fileno()])
        except OSError as error:
            channel.close()
            errno = error.errno or 0
            token = order.token
            # Not from inside the caller, which has not yet noted that it asked.
            self._watcher.call_later(0, lambda: self._reports.worker_not_started(token, errno))
            return
        finally:
            sock.close()
        zygote = Zygote(channel, child=child, pid=child.pid, tokens={order.token})
        self._alive.append(zygote)
        self._watch_zygote(zygote)
        zygote.send(order, fds)

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
