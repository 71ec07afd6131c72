"""Signals in a worker: it acts on its pool's orders only.

The guarantee: no signal that reaches a worker from outside (Ctrl-C, a SIGTERM to the process
group) disturbs a job, and a signal that the pool sends acts on the job it was meant for or on none.

A signal carries no argument, and between its sending and its arrival the job may end and another
begin. So the supervisor writes the job's serial into the row first, and the handler acts only if
that serial is the running job's and the job's own code is what runs.

What a worker is not to heed it handles by doing nothing. It does not ignore it: that would be
passed on to the programs that jobs start, which would not hear Ctrl-C or a SIGHUP any more, whereas
handlers end with ``exec``. What the program itself ignores (``nohup``) stays ignored.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable
from types import FrameType

from poolwatch.exceptions import SoftTimeLimitExceeded
from poolwatch.transport import kernel, ledger

_DISREGARDED = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE")
    if hasattr(signal, name)
]
_OURS = {
    signal.SIGTERM,
    kernel.SOFT_LIMIT_SIGNAL,
    kernel.STACK_SIGNAL,
    kernel.FATAL_STACK_SIGNAL,
    kernel.ALARM_SIGNAL,
}

_soft_limit_error: Callable[..., BaseException] = SoftTimeLimitExceeded


def raise_at_soft_limit(error: Callable[..., BaseException]) -> None:
    """Raise another error in jobs of this worker whose soft limit has passed.

    For an initializer whose jobs catch the error of the program that they are written for.

    Args:
        error: its class; called with a text.
    """
    global _soft_limit_error
    _soft_limit_error = error


class Orders:
    """The handlers, and what they need to know of the running job.

    Attributes:
        serial: serial of the job whose own code runs now; 0 between jobs.
        terminating: the job was told to end by a terminate order.
    """

    __slots__ = ("_fields", "serial", "terminating")

    def __init__(self, fields: memoryview) -> None:
        self._fields = fields
        self.serial = 0
        self.terminating = False

    def install(self, crash_fd: int, stack_fd: int) -> None:
        """Take over the worker's signals; faulthandler writes into the two given files."""
        signal.set_wakeup_fd(-1)
        disregard()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(kernel.SOFT_LIMIT_SIGNAL, self._on_soft_limit)
        faulthandler.enable(file=crash_fd, all_threads=True)
        faulthandler.register(kernel.STACK_SIGNAL, file=stack_fd, all_threads=True, chain=False)
        # A worker that is killed because its job has gone too far must not run on between the dump
        # and the kill: a call in C that the signal interrupts would return, and the job with it.
        # The handler that is chained to is the kernel's, which ends the process.
        signal.signal(kernel.FATAL_STACK_SIGNAL, signal.SIG_DFL)
        faulthandler.register(
            kernel.FATAL_STACK_SIGNAL, file=stack_fd, all_threads=True, chain=True
        )
        kernel.enlarge_signal_stack()
        self.unblock()

    def block(self) -> None:
        """Before a job forks: what is meant for its child must not be swallowed by our handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)

    def unblock(self) -> None:
        """After the fork, in both processes."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)

    def uninstall(self) -> None:
        """In a process that a job forks: listen to signals as any process does."""
        if signal.getsignal(signal.SIGTERM) == self._on_terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(kernel.SOFT_LIMIT_SIGNAL) == self._on_soft_limit:
            signal.signal(kernel.SOFT_LIMIT_SIGNAL, signal.SIG_DFL)
        for signum in _DISREGARDED:
            if signal.getsignal(signum) is _do_nothing:
                is_interrupt = signum == signal.SIGINT
                signal.signal(
                    signum, signal.default_int_handler if is_interrupt else signal.SIG_DFL
                )
        faulthandler.unregister(kernel.STACK_SIGNAL)
        faulthandler.unregister(kernel.FATAL_STACK_SIGNAL)
        signal.signal(kernel.STACK_SIGNAL, signal.SIG_DFL)  # it was ignored before

    def begin(self, serial: int) -> None:
        """The job's own code runs from here on; an order may have come before that."""
        self.terminating = False
        self.serial = serial
        fields = self._fields
        if fields[ledger.TERM_ORDER] == serial:
            self._on_terminate(signal.SIGTERM, None)
        if fields[ledger.SOFT_ORDER] == serial:
            self._on_soft_limit(kernel.SOFT_LIMIT_SIGNAL, None)

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        serial = self.serial
        if serial and self._fields[ledger.TERM_ORDER] == serial:
            self.terminating = True
            self.serial = 0  # once: a second one must not break out of what follows
            raise SystemExit(f"job terminated by its pool (signal {signum})")

    def _on_soft_limit(self, signum: int, frame: FrameType | None) -> None:
        serial = self.serial
        fields = self._fields
        if (
            serial
            and fields[ledger.SOFT_ORDER] == serial
            and fields[ledger.SOFT_ITEM] == fields[ledger.ITEM]
        ):
            self._fields[ledger.SOFT_ORDER] = 0  # once per job: what it does next is its own affair
            raise _soft_limit_error("the job's soft time limit has passed")


def disregard() -> None:
    """Have no effect from signals that may come from outside, without ignoring them.

    System calls go on as if nothing had come, as far as the kernel does that.
    """
    for signum in _DISREGARDED:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _do_nothing)
            signal.siginterrupt(signum, False)


def held_back() -> set[int]:
    """Return what this thread holds back now."""
    return {*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))}


def hold_back() -> None:
    """Before a process is made that will disregard signals: they wait there until it does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _DISREGARDED)


def let_through(held_back: set[int] | None = None) -> None:
    """In a process that disregards signals: those that were held back may come.

    Args:
        held_back: what is held back from now on; by default only these signals are let through.
    """
    if held_back is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _DISREGARDED)
    else:
        signal.pthread_sigmask(signal.SIG_SETMASK, held_back)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    pass


def die_of(signum: int) -> None:
    """End this process with the given signal, so that its exit status tells the truth."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
