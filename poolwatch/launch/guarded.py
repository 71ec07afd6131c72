"""The launcher with a guardian: ``zygote`` (the default), ``forkserver`` and ``spawn``.

Guardian and zygote are kept alive. The death of one is repaired by the other. When both are gone at
once, new ones are made from the present process.
"""

from __future__ import annotations

import os
import socket

from poolwatch.launch import control
from poolwatch.launch.control import Channel, Message
from poolwatch.launch.guardians import Child, FreshStart, fork_guardian
from poolwatch.launch.launcher import Launcher, Reports, Watcher, Zygote, drain
from poolwatch.worker.main import WorkerSetup

_FIRST_PAUSE = 0.05  # seconds until the next attempt when fork has failed; doubled each time
_LONGEST_PAUSE = 1.0


class GuardedLauncher(Launcher):
    """Makes workers with one zygote, whose guardian can make the next one."""

    def __init__(self, method: str, setup: WorkerSetup, name: str) -> None:
        """Take the snapshot: fork, or start, the guardian and the first zygote.

        Raises:
            OSError: the guardian could not be made.
            Exception: with ``spawn`` and ``forkserver``, what pickling the setup raised.
        """
        super().__init__(setup.capture_stderr)
        self._setup = setup
        self._fresh = None if method == "zygote" else FreshStart(setup, name, method)
        self._guardian: Child | None = None
        self._guard_channel: Channel | None = None
        self._zygote: Zygote | None = None
        self._waiting: list[tuple[control.StartWorker, list[int]]] = []  # until there is a zygote
        self._pause = _FIRST_PAUSE
        self._adoption_failed = False
        self._has_made_workers = False  # this guardian's zygotes have
        self._guardian_exitcode: int | None = None  # of the last that has died, if it is known
        self._make_guardian()

    def attach(self, reports: Reports, watcher: Watcher) -> None:
        """Say whom to tell, and who calls us when there is something to read."""
        super().attach(reports, watcher)
        self._watch_both()

    def helper_pids(self) -> list[int]:
        """Return the process ids of the guardian and the zygote, as far as they are known."""
        guardian = [self._guardian.pid] if self._guardian is not None else []
        return guardian + super().helper_pids()

    def replace_zygote(self, token: int) -> None:
        """The zygote does not answer: kill it; without one it is the guardian that hangs."""
        super().replace_zygote(token)
        if self._zygote is None and self._guardian is not None:
            self._guardian.kill()  # the end of its channel comes next, and makes all anew

    def stop(self) -> None:
        """Have everything killed that is left, and the helpers exit; does not wait."""
        super().stop()
        if self._guard_channel is not None:
            try:
                self._guard_channel.send(control.Shutdown())
            except ConnectionError:
                pass  # gone already

    def is_gone(self) -> bool:
        """Return True when no helper is left after :meth:`stop`."""
        return self._guardian is None and self._zygote is None

    def wait(self, seconds: float) -> bool:
        """Wait for the helpers' end and close everything; see the base class."""
        done = self._guardian is None or self._guardian.wait(seconds)
        if not done and self._guardian is not None:
            if self._zygote is not None:
                self._zygote.kill()
            self._guardian.kill()
            self._guardian.wait(seconds)
        self.close()
        return done

    def close(self) -> None:
        """Close the parent's descriptors; may be called more than once."""
        if self._guardian is not None:
            self._guardian.close()
        if self._guard_channel is not None:
            self._guard_channel.close()
        if self._zygote is not None:
            self._zygote.close()
        if self._fresh is not None:
            self._fresh.close()
        for _, fds in self._waiting:
            for fd in fds:
                os.close(fd)
        self._waiting.clear()
        self._guardian = self._guard_channel = self._zygote = self._fresh = None

    def _zygotes(self) -> list[Zygote]:
        return [] if self._zygote is None else [self._zygote]

    def _order(self, order: control.StartWorker, fds: list[int]) -> None:
        if self._zygote is None:
            self._waiting.append((order, [os.dup(fd) for fd in fds]))
        else:
            self._zygote.tokens.add(order.token)
            self._send(self._zygote, order, fds)

    # -- keeping both alive --------------------------------------------------------------------

    def _make_guardian(self) -> None:
        guard_channel, guard_sock = Channel.pair()
        zygote_channel, zygote_sock = Channel.pair()
        try:
            if self._fresh is not None:
                self._guardian = self._fresh.start(guard_sock, zygote_sock)
            else:
                ours = [guard_channel.fileno(), zygote_channel.fileno()]
                self._guardian = fork_guardian(self._setup, guard_sock, zygote_sock, ours)
        except BaseException:
            guard_channel.close()
            zygote_channel.close()
            raise
        finally:
            guard_sock.close()
            zygote_sock.close()
        self._guard_channel = guard_channel
        self._zygote = Zygote(zygote_channel)
        self._has_made_workers = False
        self._guardian_exitcode = None

    def _watch_both(self) -> None:
        if self._guard_channel is not None:
            self._watcher.watch(self._guard_channel, self._on_guardian)
        if self._zygote is not None:
            self._watch_zygote(self._zygote)

    def _on_guardian(self) -> None:
        if self._guard_channel is None:
            return
        messages, ended = drain(self._guard_channel)
        for message, fds in messages:
            match message:
                case control.HelperStarted(pid, False):
                    self._name_zygote(pid, fds)
                case control.HelperStarted(pid, True):
                    self._adopt_zygote(pid, fds)
                case control.ZygoteExited() if self._adoption_failed:
                    self._adoption_failed = False
                    self._try_again("too many open files to take on a zygote")
                case control.ZygoteExited():
                    self._ask_for_zygote()
                case control.StartFailed(_, errno):
                    self._try_again(f"the zygote could not be forked: {os.strerror(errno)}")
                case _:
                    raise AssertionError(f"unexpected message {message}")
        if ended:
            self._guardian_gone()

    def _name_zygote(self, pid: int, fds: list[int]) -> None:
        """The first zygote is there; its channel was made before."""
        if self._zygote is None or self._zygote.pid is not None:
            for fd in fds:
                os.close(fd)
            return
        self._zygote.pid = pid
        self._zygote.pidfd = fds[0] if fds else None

    def _adopt_zygote(self, pid: int, fds: list[int]) -> None:
        if not fds:
            # Our descriptor table is full. The zygote sees the end of its channel and leaves, and
            # the next one is not asked for at once.
            self._adoption_failed = True
            return
        pidfd = fds[1] if len(fds) > 1 else None
        self._zygote = Zygote(_channel_of(fds[0]), pid=pid, pidfd=pidfd)
        self._watch_zygote(self._zygote)
        self._pause = _FIRST_PAUSE
        self._give_waiting_orders()

    def _give_waiting_orders(self) -> None:
        waiting, self._waiting = self._waiting, []
        for order, fds in waiting:
            self._order(order, fds)
            for fd in fds:
                os.close(fd)

    def _on_message(self, zygote: Zygote, message: Message, fds: list[int]) -> None:
        match message:
            case control.HelperStarted() if fds:
                for fd in fds[1:]:
                    os.close(fd)
                self._guard_channel = _channel_of(fds[0])
                self._watcher.watch(self._guard_channel, self._on_guardian)
            case control.HelperStarted():
                # Our descriptor table is full; the guardian sees the end of its channel and leaves.
                self._reports.launcher_trouble("too many open files to take on a guardian")
            case control.StartFailed(0, errno):
                # Without a guardian for now. Should the zygote die, all is made anew.
                self._reports.launcher_trouble(
                    f"the guardian could not be forked: {os.strerror(errno)}"
                )
            case _:
                if isinstance(message, control.WorkerStarted):
                    self._has_made_workers = True
                super()._on_message(zygote, message, fds)

    def _guardian_gone(self) -> None:
        """The dormant twin has died; the zygote lives on and makes a new one."""
        self._drop_guardian()
        if self._stopping:
            return
        self._reports.launcher_trouble("the zygote's guardian has died; the zygote forks another")
        if self._zygote is None:
            self._make_all_anew()
        else:
            self._zygote.has_guardian = False
            self._send(self._zygote, control.StartGuardian())

    def _drop_guardian(self) -> None:
        if self._guard_channel is not None:
            self._watcher.unwatch(self._guard_channel)
            self._guard_channel.close()
            self._guard_channel = None
        if self._guardian is not None:
            self._guardian.kill()
            self._guardian.wait(1.0)
            self._guardian_exitcode = self._guardian.exitcode
            self._guardian.close()
            self._guardian = None

    def _zygote_gone(self, zygote: Zygote) -> None:
        zygote.close()
        if zygote is self._zygote:
            self._zygote = None
        if self._stopping:
            return
        reason = f"the zygote (pid {zygote.pid}) that made this worker has died"
        self._reports.zygote_died(sorted(zygote.tokens), reason)
        if self._guard_channel is None:
            self._make_all_anew()
        elif not zygote.has_guardian:
            self._ask_for_zygote()  # this guardian is not its parent and has nothing to report

    def _ask_for_zygote(self) -> None:
        if self._guard_channel is not None and not self._stopping:
            try:
                self._guard_channel.send(control.StartZygote())
            except ConnectionError:
                pass  # gone as well: the end of its channel comes next, and makes all anew

    def _make_all_anew(self) -> None:
        """Guardian and zygote are both gone: start again from here.

        This forks from a process with threads, which the guardian exists to avoid; it takes
        somebody who kills both at the same moment, and then it is this or no pool.
        """
        if self._stopping:
            return
        self._drop_guardian()
        if not self._has_made_workers:
            self._reports.helpers_died(self._guardian_exitcode)
            if self._stopping:
                return
        self._reports.launcher_trouble("guardian and zygote have both died; both are made anew")
        try:
            self._make_guardian()
        except OSError as error:
            self._try_again(f"the guardian could not be made: {error}")
            return
        self._watch_both()
        self._give_waiting_orders()

    def _try_again(self, trouble: str) -> None:
        self._reports.launcher_trouble(trouble)
        again = self._ask_for_zygote if self._guard_channel is not None else self._make_all_anew
        self._watcher.call_later(self._pause, again)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def _channel_of(fd: int) -> Channel:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return Channel(sock)
