"""Taking back what workers have not begun, so that no job waits in vain.

Three timers, each of which exists only while there is something to look for:

* a worker is idle while another holds jobs that it has not begun: are they behind a long one?
* a worker that held nothing was sent a job: has it begun that?
* a job with a priority is in line: is anything that was sent ahead outranked by it?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.bus import Bus
from poolwatch.events import JobsRecalled, Trouble
from poolwatch.job import Job
from poolwatch.loop import EventLoop
from poolwatch.ranks import outranks_any
from poolwatch.transport import frames, kernel, ledger
from poolwatch.workers import WorkerProcess, WorkerState

if TYPE_CHECKING:
    from poolwatch.dispatcher import Dispatcher

LONG_NS = 3_000_000
"""Run time in ns after which the job in front counts as long."""

_RECALL_AFTER = 0.004  # s between a worker falling idle and a look at what the others hold
_UNRESPONSIVE = 100_000_000  # ns after which a worker that touches nothing is passed over
_RESPONSE_AFTER = 0.15  # s between a sending to an idle worker and a look whether it has begun
_ANSWER_SECONDS = 1.0  # s that such a worker gets to answer


class Recalls:
    """Takes jobs back for the dispatcher, whose lock guards everything here.

    Attributes:
        held_up: workers at a long job, or that do not answer.
        looking: the timer of waiting jobs is armed.
        expecting: that of first jobs is.
        urging: that of urgent jobs is.
    """

    def __init__(self, dispatcher: Dispatcher, loop: EventLoop, bus: Bus) -> None:
        self._dispatcher = dispatcher
        self._loop = loop
        self._bus = bus
        self.held_up: dict[WorkerProcess, None] = {}
        self.looking = False
        self.expecting = False
        self.urging = False

    def recall(self, worker: WorkerProcess) -> list[Job]:
        """Take back what a worker has not begun, in order. The lock is held. Any thread.

        The caller puts the jobs back in line, or ends them.
        """
        if worker.state is WorkerState.DEAD or not worker.jobs or not self._dispatcher.can_recall:
            return []
        fields = worker.fields
        fields[ledger.VOID] = worker.sent
        if not kernel.membarrier():
            return []  # it may begin any of them at this moment: then they stay
        started = fields[ledger.STARTED]
        taken = [serial for serial in worker.jobs if serial > started]
        jobs = [worker.jobs.pop(serial) for serial in taken]
        if jobs:
            if self._bus.is_heard(JobsRecalled):
                self._bus.emit(JobsRecalled(self._bus.pool, worker.name, len(jobs)))
            if not worker.jobs and worker.state is WorkerState.UP:
                # It was sent something and has not touched it. No more until it answers.
                worker.unresponsive = True
                self.held_up[worker] = None
                self._dispatcher.idle.pop(worker, None)
                worker.stream.send(frames.pack(frames.PING, b"", worker.sent))
                worker.asked += 1
                question = worker.asked
                self._loop.call_later(_ANSWER_SECONDS, lambda: self._no_answer(worker, question))
        return jobs

    def _no_answer(self, worker: WorkerProcess, question: int) -> None:
        """It holds nothing and does not answer (it is stopped, say): another takes its place."""
        with self._dispatcher.lock:
            if question != worker.asked:
                return  # it has answered this one, and has been asked again since
            if worker.state is WorkerState.UP and worker.unresponsive and not worker.jobs:
                text = f"worker {worker.name} (pid {worker.pid}) does not answer and is replaced"
                self._bus.emit(Trouble(self._bus.pool, text))
                self._dispatcher.on_broken(worker)

    def answered(self, worker: WorkerProcess) -> None:
        """A worker that had not touched its jobs is there again. The lock is held."""
        worker.unresponsive = False
        self.held_up.pop(worker, None)
        self._dispatcher.refill(worker)

    def is_held_up(self, worker: WorkerProcess) -> bool:
        """Return True when a worker is at a long job, or does not answer. The lock is held."""
        return worker in self.held_up

    def look_soon(self) -> None:
        """A worker is idle, and others may hold jobs that it could do."""
        self.looking = True
        self._loop.call_later(_RECALL_AFTER, self._look_for_waiting_jobs)

    def _look_for_waiting_jobs(self) -> None:
        """Recall jobs that wait behind a long one while a worker is idle."""
        with self._dispatcher.lock:
            self.looking = False
            if not self._dispatcher.idle:
                return
            now = int(self._loop.time() * 1e9)
            waiting = False
            worth_waking = self._dispatcher.is_worth_waking()
            for worker in list(self._dispatcher.holding()):
                is_stuck = self._is_stuck(worker, now)
                if is_stuck:
                    worth_waking = True
                    if worker.state is WorkerState.UP:
                        self.held_up[worker] = None
                if worker.sent <= worker.fields[ledger.STARTED]:
                    continue  # it has begun all it was sent
                if is_stuck:
                    self._dispatcher.put_back(self.recall(worker))
                else:
                    waiting = True
            if worth_waking:
                self._dispatcher.refill_idle()
            else:
                waiting |= bool(self._dispatcher.backlog or self._dispatcher.arrivals)
            if waiting and self._dispatcher.idle and not self.looking:
                self.look_soon()

    def recall_stuck(self) -> int:
        """Put back in line what waits behind long jobs; return how many workers are held up.

        What a worker has not even looked at is left to ``_look_for_the_unresponsive``. The lock is
        held.
        """
        now = int(self._loop.time() * 1e9)
        stuck = 0
        for worker in list(self._dispatcher.holding()):
            if worker.state is WorkerState.UP and self._is_stuck(worker, now):
                stuck += 1
                self.held_up[worker] = None
                started = worker.fields[ledger.STARTED]
                if started in worker.jobs and worker.sent > started:
                    self._dispatcher.put_back(self.recall(worker))
        return stuck

    def urge(self) -> None:
        """A job with a priority has come in: see that it need not wait too long. Any thread."""
        if not self.urging:
            self._urge_soon()

    def _urge_soon(self) -> None:
        self.urging = True
        self._loop.call_later(_RECALL_AFTER, self._look_for_the_urgent)

    def _look_for_the_urgent(self) -> None:
        """Let no urgent job wait behind what was sent ahead, also when no worker is idle.

        What is taken back goes to whoever comes free first, in the order of priorities.
        """
        with self._dispatcher.lock:
            self.urging = False
            if self._dispatcher.arrivals:
                self._dispatcher.take_arrivals()
            now = int(self._loop.time() * 1e9)
            again = False
            for worker in list(self._dispatcher.holding()):
                started = worker.fields[ledger.STARTED]
                unbegun = [job for serial, job in worker.jobs.items() if serial > started]
                if not unbegun:
                    continue
                again = True
                if started not in worker.jobs:
                    continue  # it will begin the next at once, or is found to be unresponsive
                if self._overtakes(unbegun, self._is_stuck(worker, now)):
                    self._dispatcher.put_back(self.recall(worker))
            self._dispatcher.refill_idle()
            if again and not self.urging:
                self._urge_soon()

    def _overtakes(self, unbegun: list[Job], is_stuck: bool) -> bool:
        """True when what waits outranks what a worker has not begun, or is outranked by it there.

        The second matters behind a long job only: whoever comes free first should have them.
        """
        backlog = self._dispatcher.backlog
        if not backlog:
            return False
        if outranks_any(backlog[0], unbegun):
            return True
        return is_stuck and any(outranks_any(job, [backlog[-1]]) for job in unbegun)

    def expect(self) -> None:
        """A worker that held nothing has been sent a job."""
        if not self.expecting:
            self.expecting = True
            self._loop.call_later(_RESPONSE_AFTER, self._look_for_the_unresponsive)

    def _look_for_the_unresponsive(self) -> None:
        """Take back what a worker has not even looked at, also when no other is idle."""
        with self._dispatcher.lock:
            self.expecting = False
            now = int(self._loop.time() * 1e9)
            again = False
            for worker in list(self._dispatcher.holding()):
                started = worker.fields[ledger.STARTED]
                if worker.sent <= started or started in worker.jobs:
                    continue
                silent = now - worker.sent_at
                if not self._dispatcher.can_recall and silent >= _ANSWER_SECONDS * 1e9:
                    self._dispatcher.on_broken(worker)  # another way to get at its jobs
                elif self._dispatcher.can_recall and silent >= _UNRESPONSIVE:
                    self._dispatcher.put_back(self.recall(worker))
                else:
                    again = True
            self._dispatcher.refill_idle()
            if again:
                self.expect()

    def _is_stuck(self, worker: WorkerProcess, now: int) -> bool:
        """True when the jobs behind should wait no longer: the one in front is a long one.

        Where there is none in front, the worker has not even looked at its stream. That takes a
        while on a busy machine, so it gets more time than a job in front does.
        """
        job = worker.jobs.get(worker.fields[ledger.STARTED])
        if job is not None:
            clock = ledger.CHUNK_AT if job.is_chunk else ledger.STARTED_AT
            return bool(now - worker.fields[clock] >= LONG_NS)
        return now - worker.sent_at >= _UNRESPONSIVE
