"""The core of a pool with ``max_pending``: submissions wait for their turn, or are refused."""

from __future__ import annotations

import threading
from typing import cast

from poolwatch.chunks import Part
from poolwatch.core import Core
from poolwatch.exceptions import PoolFull
from poolwatch.job import Job, JobOptions
from poolwatch.job_state import JobState
from poolwatch.slots import Slots, Ticket
from poolwatch.snapshot import Call


class BoundedCore(Core):
    """A core that bounds the jobs of ``apply_async``; a pool without bound does not pay for it.

    The jobs of maps have no slots: a map's items are in memory already, and an ``imap`` has its
    window. Counted, an endless ``imap`` would leave no slot to anybody else.
    """

    @property
    def slots(self) -> Slots:
        """Who has a slot, and who waits."""
        return cast(Slots, self._slots)

    def submit(
        self,
        name: str,
        call: Call,
        options: JobOptions,
        keepalive: object,
        wait: bool | None = None,
        part: Part | None = None,
    ) -> Job:
        """See :meth:`Core.submit`.

        Raises:
            PoolFull: there is no slot, and the submission may not wait.
        """
        head, payload, by_value = call
        job = Job(next(self._job_numbers), name, head, payload, options, keepalive)
        job.by_value = by_value
        job.chunk = part
        interrupted = self.is_interrupted
        with self.dispatcher.lock:
            if self.slots.is_free(None):
                return self._enter(job)
            self.check_open()
            may_wait = self.options.block if wait is None else wait
            if not may_wait or interrupted or self._must_not_wait():
                raise PoolFull(f"{self.slots.bound} jobs of {self.options.name} are unfinished")
        return self._wait(job)

    def _wait(self, job: Job) -> Job:
        """Submit a job when it is its turn; it has not been submitted when this is interrupted."""
        ticket = Ticket()
        try:
            with self.dispatcher.lock:
                self.slots.stand_in_line(ticket)
            while True:
                with self.dispatcher.lock:
                    self.check_open()
                    if self.slots.is_free(ticket):
                        return self._enter(job)
                self.access.assist.until(self._may_look, None)
                ticket.wait()  # not in vain: whoever makes room calls the first in line
        finally:
            with self.dispatcher.lock:
                self.slots.leave_line(ticket)

    def _may_look(self) -> bool:
        return self.is_closed or self.slots.has_room()

    def _enter(self, job: Job) -> Job:
        """Submit a job that has a slot. The lock is held."""
        self.slots.take(job)
        try:
            self.submit_job(job)
        except BaseException:
            if self.is_closed:
                self.slots.give_back(job)
            # Else a signal handler raised. The job is put in line by repair(), and will end.
            raise
        return job

    def _must_not_wait(self) -> bool:
        """True where waiting would stop what the wait is for."""
        return (
            self._delivery.is_current()
            or self._encoder.is_current()
            or self._settling.is_current()
            or threading.current_thread() is self._thread
            or self.slots.waits_here()
        )

    # -- the end: whoever waits is told --------------------------------------------------------

    def _leave_if_drained(self) -> None:
        super()._leave_if_drained()
        with self.dispatcher.lock:
            if self.is_closed:
                self.slots.call_all()

    def _end_all(self, error: BaseException, state: JobState = JobState.LOST) -> None:
        super()._end_all(error, state)
        with self.dispatcher.lock:
            self.slots.call_all()

    def _finish(self) -> None:
        try:
            super()._finish()
        finally:
            with self.dispatcher.lock:
                self.slots.call_all()
