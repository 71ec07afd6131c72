"""An event loop of the embedding program reads the workers' streams, in the supervisor's place.

Some programs sleep in a loop of their own and must hear of every outcome there: Celery's hub. When
the supervisor reads a result and then wakes the host, two threads are woken for each, and the
interpreter's lock changes hands several times. So the streams may be *lent* to a host: an epoll
descriptor that has them all goes into its loop, and it calls :meth:`Hosting.take_in`.

A stream is read either by the host or by the supervisor, never by both. The host has those of
workers that are up and takes only the simplest in: outcomes and acceptances in the rings. At
anything else (a great result, a farewell, the end of the stream) the stream goes back to the
supervisor, who lends it again when it has read it. Deaths, limits and all decisions stay with the
supervisor.

A host may be slow, or stand still. As long as there is work the supervisor looks every some
milliseconds whether it comes by, and does its part when it does not.
"""

from __future__ import annotations

import select
from collections.abc import Callable

from poolwatch.dispatcher import Dispatcher
from poolwatch.intake import Intake
from poolwatch.job import Job
from poolwatch.loop import EventLoop
from poolwatch.transport.streams import Stream
from poolwatch.workers import WorkerProcess, WorkerState

_PATIENCE = 0.02  # seconds between two looks whether the host comes by


class Hosting:
    """The streams that a host reads. One lock guards it all, the dispatcher's."""

    def __init__(
        self,
        loop: EventLoop,
        dispatcher: Dispatcher,
        intake: Intake,
        on_readable: Callable[[WorkerProcess], None],
        repair: Callable[[Job | None], None],
    ) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._intake = intake
        self._on_readable = on_readable
        self._repair = repair
        self._poller: select.epoll | None = None
        self._lent: dict[int, WorkerProcess] = {}  # by descriptor
        self._claimed = False
        self._ended = False
        self._visits = 0  # of the host
        self._seen = 0  # of those, by the supervisor's last look
        dispatcher.on_unattended = self._look_later

    # -- the host's side -----------------------------------------------------------------------

    def claim(self) -> select.epoll | None:
        """Have the streams lent from now on. Any thread; may be called again.

        Returns:
            What becomes readable when :meth:`take_in` is to be called; whoever has it in a loop
            closes it, or drops it, once it is out of there. None where the system has no epoll or
            no descriptor left, or the pool has ended: then the supervisor reads.
        """
        with self._dispatcher.lock:
            if self._ended or not hasattr(select, "epoll"):
                return None
            if self._poller is None:
                try:
                    self._poller = select.epoll()
                except OSError:
                    return None
            if not self._claimed:
                self._claimed = True
                self._loop.call_soon(self._lend_all)
                self._look_later()
            return self._poller

    def take_in(self) -> None:
        """Take in what has come. In the host's thread; never blocks.

        It runs nothing of the user's but policies that may refuse jobs, as submissions do. A signal
        handler may raise in the middle of it; nothing is lost then, as with ``Assist``.
        """
        dispatcher = self._dispatcher
        with dispatcher.lock:
            poller = self._poller
            if dispatcher.entered or poller is None:
                return  # a signal handler runs the host's loop: the next round will do
            self._visits += 1
            dispatcher.entered = True
            try:
                self._take_each(poller)
            except BaseException:
                job = self._intake.current
                self._loop.call_soon(lambda: self._repair(job))
                raise
            finally:
                dispatcher.entered = False

    def _take_each(self, poller: select.epoll) -> None:
        for fd, _ in poller.poll(0):
            worker = self._lent.get(fd)
            if worker is not None and not self._intake.take_hosted(worker):
                self._hand_over(fd, worker)

    def release(self) -> None:
        """Have the supervisor read everything again; the host comes by no more. Any thread."""
        if self._claimed:
            self._claimed = False
            self._dispatcher.attended = True
            self._loop.call_soon(self._take_all_back)

    def abandon(self) -> None:
        """Close it in a forked child, where the lock may be held for ever."""
        if self._poller is not None:
            self._poller.close()

    # -- the supervisor's side, in its thread --------------------------------------------------

    def lend(self, worker: WorkerProcess) -> None:
        """Lend a stream that the supervisor has just read, if there is a host."""
        if not self._claimed or worker.state is not WorkerState.UP:
            return
        with self._dispatcher.lock:
            poller, fd = self._poller, worker.stream.fileno()
            if poller is None or worker.leave_timer is not None or _is_busy(worker.stream):
                return
            if fd not in self._lent:
                try:
                    poller.register(fd, select.EPOLLIN)
                except OSError:
                    return  # the kernel has no room for it: it is read here, then
                self._lent[fd] = worker
                self._loop.unwatch(worker.stream)

    def take_back(self, worker: WorkerProcess) -> None:
        """Read a stream oneself from now on."""
        if not self._lent:
            return
        with self._dispatcher.lock:
            fd = worker.stream.fileno()
            if self._lent.get(fd) is worker:
                self._withdraw(fd)
                self._watch(worker)

    def end(self) -> None:
        """The pool ends: have nothing more read by the host, which may be using the descriptor."""
        self._ended = True
        self._claimed = False
        self._dispatcher.attended = True
        self._take_all_back()
        with self._dispatcher.lock:
            self._poller = None

    def _take_all_back(self) -> None:
        for worker in list(self._lent.values()):
            self.take_back(worker)

    def _lend_all(self) -> None:
        for worker in self._dispatcher.everybody():
            self.lend(worker)

    def _look_later(self) -> None:
        """There is something to be done: see to it that it is noticed. The lock is held."""
        # In this order: a signal handler may raise in between.
        self._loop.call_later(_PATIENCE, self._look)
        self._dispatcher.attended = True

    def _look(self) -> None:
        """Do the host's part if it has not come by since the last look."""
        dispatcher = self._dispatcher
        with dispatcher.lock:
            poller = self._poller
            if not self._claimed or poller is None:
                return
            if not (dispatcher.unfinished or dispatcher.recalls.held_up):
                dispatcher.attended = False  # until a worker is sent something
                return
            if self._visits == self._seen:
                self._stand_in(poller)
            self._seen = self._visits
            self._look_later()

    def _stand_in(self, poller: select.epoll) -> None:
        """Take back the streams that are to be read; they are lent again when that is done."""
        for fd, _ in poller.poll(0):
            worker = self._lent.get(fd)
            if worker is not None:
                self.take_back(worker)

    def _resume(self, worker: WorkerProcess) -> None:
        """Read what the host has handed over, which may be done twice."""
        with self._dispatcher.lock:
            fd = worker.stream.fileno()
            if self._lent.get(fd) is worker:
                self._withdraw(fd)
            if worker.state is not WorkerState.DEAD:
                self._watch(worker)
                self._dispatcher.flush(worker)  # which was in vain meanwhile

    def _watch(self, worker: WorkerProcess) -> None:
        self._loop.unwatch(worker.stream)
        self._loop.watch(worker.stream, lambda: self._on_readable(worker))

    # -- both, with the lock held --------------------------------------------------------------

    def _hand_over(self, fd: int, worker: WorkerProcess) -> None:
        """Leave it to the supervisor to read something. In the host's thread."""
        self._loop.call_soon(lambda: self._resume(worker))  # first: then nothing can be lost
        self._withdraw(fd)

    def _withdraw(self, fd: int) -> None:
        try:
            if self._poller is not None:
                self._poller.unregister(fd)
        except OSError:
            pass  # a signal handler had interrupted this
        self._lent.pop(fd, None)


def _is_busy(stream: Stream) -> bool:
    """True when the supervisor has something to do with a stream still."""
    return stream.unfinished or stream.broken or stream.is_amid
