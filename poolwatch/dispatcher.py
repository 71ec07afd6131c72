"""Which job goes to which worker, and back again.

A submission finds an idle worker and an empty backlog: the caller's own thread writes the frame.
Otherwise the job waits in the backlog, and the supervisor refills workers as results come in, many
frames in one write. Short jobs, by a moving average of run times, are sent ahead, up to a budget of
about a millisecond of work per worker; long ones go one at a time.

The guarantee: no job waits behind a long one for more than about 10 ms while a worker is idle. When
a worker is idle and another holds jobs that it has not begun, a timer looks at the ledger and
*recalls* them. The timer exists only then: an idle pool sleeps.

One lock guards the backlog, the workers' jobs and the jobs' states. It is held for bookkeeping and
for writes that do not block, never while the user's code runs. A submission takes it only when a
worker is idle: otherwise the job is put among the *arrivals*, which needs none, and whoever holds
the lock next puts it in line. So threads that submit at the same time do not queue up for the lock.
"""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from poolwatch.bus import Bus
from poolwatch.events import (
    HookFailed,
    JobDone,
    JobMoved,
    JobSent,
    JobStarted,
    JobTerminated,
)
from poolwatch.exceptions import PoisonJobError
from poolwatch.job import NO_OPTIONS, Job, JobOptions
from poolwatch.job_state import JobState
from poolwatch.loop import EventLoop
from poolwatch.ranks import insert_before, insert_behind, is_mixed
from poolwatch.recalls import Recalls
from poolwatch.transport import frames, kernel, ledger
from poolwatch.workers import WorkerProcess, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from poolwatch.policies import LostWorkerPolicy

pack = frames.HEADER.pack

_BUDGET = 1_000_000  # ns of work that a worker may hold beyond the job it runs
_MOST_AHEAD = 128  # frames of jobs that a worker may hold
TINY_NS = 50_000
"""Average run time in ns below which waking a worker costs more than a job."""

OVERHEAD_NS = 8_000
"""What a job costs in a worker beyond its run time, in ns."""

_EVENTS: dict[JobState, type[JobMoved]] = {
    JobState.SENT: JobSent,
    JobState.RUNNING: JobStarted,
    JobState.SUCCEEDED: JobDone,
    JobState.FAILED: JobDone,
    JobState.TERMINATED: JobTerminated,
    JobState.CANCELLED: JobTerminated,
}

_MOST_TOPPED_UP = 32  # workers
_SAMPLED = 7  # of tiny jobs, those with none of these bits in their number are timed
_HELP_EVERY = 32  # submissions between two looks at what has come in


class Dispatcher:
    """The backlog, the idle workers, and what each worker holds."""

    def __init__(
        self, loop: EventLoop, bus: Bus, maxtasksperchild: int | None, processors: int
    ) -> None:
        # Reentrant: a signal handler in the caller's thread may use the pool too.
        self.lock = threading.RLock()
        self.arrivals: deque[Job] = deque()  # not yet in line; may be added to without the lock
        self.backlog: deque[Job] = deque()
        self.ranked = False  # some job had a priority: the backlog is kept sorted
        # Jobs will still be run. Once False, no worker is sent anything, and whoever has put a job
        # in line nevertheless takes it back, see ``Core``.
        self.accepting = True
        self.unfinished = 0
        self.arm_deadlines: Callable[[Job], None]  # set by the supervisor
        self.end_with_error: Callable[[Job, JobState, BaseException], None]  # likewise
        self.policy_of: Callable[[Job], LostWorkerPolicy | None]  # those that may refuse jobs
        self.may_refuse = True  # the pool's own policy is one of those
        self._loop = loop
        self._bus = bus
        self._bound = maxtasksperchild
        self._processors = processors
        self.can_recall = kernel.membarrier()
        self.idle: dict[WorkerProcess, None] = {}
        self._up = 0
        self.entered = False  # a caller's thread is in the middle of its bookkeeping
        self.tended = False  # a caller comes by so often that no result needs to wake anybody
        # Workers of whom nobody knows what they have been sent: a signal handler raised meanwhile.
        # They are sent nothing more before ``repair`` has taken back what they have not begun; a
        # later job would make it look begun.
        self.in_doubt: dict[WorkerProcess, None] = {}
        self.repair: Callable[[Job | None], None]  # set by the supervisor
        self.on_demand: Callable[[], None]  # set by ``Elastic``, as are the next three
        self.on_idle: Callable[[], None]
        self.demanded = True  # nobody need be told that jobs wait
        self.watching_idle = True  # nobody need be told that a worker is idle
        self.on_busy: Callable[[], None]  # set by the supervisor
        self.watched = True  # nobody need be told that a worker has something to do
        self.attended = True  # nobody need see to it that somebody reads what a worker writes
        self.on_unattended: Callable[[], None]  # set by ``Hosting``
        self.on_emptied: Callable[[WorkerProcess], None]  # set by the supervisor: a leaver is done
        self.average = float(_BUDGET)  # ns of run time; at first, one job at a time
        self.help_along: Callable[[], None]  # set by the supervisor
        self.on_added: Callable[[], None] = lambda: None  # a worker has come up
        self._submitted = 0
        self.recalls = Recalls(self, loop, bus)

    def is_held_here(self) -> bool:
        """Return True when this thread holds the lock, or what a signal handler has interrupted."""
        lock: Any = self.lock
        return bool(lock._is_owned())

    # -- jobs come in ----------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Send a new job to an idle worker, or put it in line. Any thread; needs no lock.

        Whoever calls a worker idle looks at the arrivals afterwards, and the other way round here,
        so that one of the two sees the other.
        """
        if self.average > TINY_NS or not job.id & _SAMPLED:
            job.submitted = monotonic_ns()
        if self.idle and not self.backlog and not self.entered and self.is_worth_waking():
            with self.lock:
                if self._send_at_once(job):
                    return
        self.arrivals.append(job)
        if self.idle and self.is_worth_waking():
            self._call_for(self.refill_idle)
        else:
            if not self.demanded and not self.idle:
                self._demand()
            if self.idle and not self.recalls.looking:
                self.recalls.look_soon()
            self._submitted += 1  # a rhythm, which need not be exact
            if not self._submitted % _HELP_EVERY and not self.entered:
                self._call_for(self.help_along)

    def _demand(self) -> None:
        self.demanded = True
        self._loop.call_soon(self.on_demand)

    def is_worth_waking(self) -> bool:
        """Return False when jobs are tiny and the processors are busy with some workers already.

        Then these will have done the new job sooner than another worker could be woken for it.
        Should one of them turn out to be at a long job, see ``_look_for_waiting_jobs``.
        """
        at_work = self._up - len(self.idle) - len(self.recalls.held_up)
        return self.average > TINY_NS or at_work < self._processors

    def _send_at_once(self, job: Job) -> bool:
        if self.entered or self.backlog or self.arrivals or not self.idle or not self.accepting:
            return False
        self.entered = True
        try:
            self.unfinished += 1
            self._send_first(job)
        finally:
            self.entered = False
        return True

    def _call_for(self, help_out: Callable[[], None]) -> None:
        """Call something with the lock held, unless that interrupts what is under way."""
        with self.lock:
            if self.entered:  # by this very thread: a signal handler has interrupted it
                self._loop.call_soon(self._refill_idle_soon)
                return
            self.entered = True
            try:
                help_out()
            except BaseException:
                self._repair_soon()
                raise
            finally:
                self.entered = False

    def _repair_soon(self) -> None:
        self._loop.call_soon(lambda: self.repair(None))

    def take_arrivals(self) -> None:
        """Put new jobs in line. The lock is held."""
        arrivals, backlog = self.arrivals, self.backlog
        if self.ranked:
            self._take_ranked_arrivals()
            return
        for _ in range(len(arrivals)):
            backlog.append(arrivals[0])
            self.unfinished += 1
            arrivals.popleft()

    def _take_ranked_arrivals(self) -> None:
        for _ in range(len(self.arrivals)):
            job = self.arrivals[0]
            insert_behind(self.backlog, job)
            self.unfinished += 1
            self.arrivals.popleft()

    def line_up(self, job: Job) -> None:
        """Put a job behind all others of its priority. The lock is held."""
        if self.ranked:
            insert_behind(self.backlog, job)
        else:
            self.backlog.append(job)

    def top_up(self) -> None:
        """Send ahead what workers may hold beyond what they run; after many submissions."""
        self._call_for(self._top_up)

    def _top_up(self) -> None:
        for worker in self.holding()[:_MOST_TOPPED_UP]:
            self.refill(worker)

    def _refill_idle_soon(self) -> None:
        with self.lock:
            self.refill_idle()

    def _send_first(self, job: Job) -> None:
        if self._refused(job):
            return
        worker, _ = self.idle.popitem()
        self._send(worker, (job,))
        if self.idle and not self.recalls.looking:
            self.recalls.look_soon()

    def put_back(self, jobs: list[Job]) -> None:
        """Put jobs at the front of the line, in order. The lock is held."""
        jobs = [job for job in jobs if not job.state.final]  # the pool may have ended them
        for job in jobs:
            self.move(job, JobState.PENDING)
            job.worker = None
            job.serial = 0
        self.to_the_front(jobs)

    def to_the_front(self, jobs: list[Job]) -> None:
        """Put pending jobs before all others of their priority, in order. The lock is held."""
        if not self.ranked:
            self.backlog.extendleft(reversed(jobs))
            return
        for job in reversed(jobs):
            insert_before(self.backlog, job)

    # -- jobs go out -----------------------------------------------------------------------------

    def refill(self, worker: WorkerProcess) -> None:
        """Send a worker what it may hold, or note that it is idle. The lock is held."""
        if worker.state is not WorkerState.UP or worker.unresponsive or worker.struck is not None:
            if worker.state is WorkerState.LEAVING and not worker.jobs:
                self.on_emptied(worker)
            return
        if not self.accepting:
            return  # it has been told to leave, and would not come to what it is sent now
        if worker in self.in_doubt:
            self._repair_soon()
            return
        while True:
            if self.arrivals:
                self.take_arrivals()
            held = len(worker.jobs)
            if self.backlog:
                depth = self._depth()
                if held == 0 or held <= depth // 2:
                    self._send_share(worker, depth - held)
                    held = len(worker.jobs)
            if held or self._quota_used_up(worker):
                return
            self.idle[worker] = None
            if not self.arrivals:
                if not self.watching_idle:
                    self.on_idle()
                break
            del self.idle[worker]  # somebody may have come by who did not see it idle
        if self.unfinished and not self.recalls.looking:
            self.recalls.look_soon()

    def has_idle(self) -> bool:
        """Return True when a worker has nothing to do. The lock is held."""
        return bool(self.idle)

    def idle_workers(self) -> list[WorkerProcess]:
        """Return the workers that have nothing to do. The lock is held."""
        return list(self.idle)

    def _quota_used_up(self, worker: WorkerProcess) -> bool:
        return self._bound is not None and worker.done + len(worker.jobs) >= self._bound

    def refill_idle(self) -> None:
        """Give waiting jobs to idle workers. The lock is held."""
        has_sent = False
        while self.accepting and self.idle and (self.backlog or self.arrivals):
            worker, _ = self.idle.popitem()
            self.refill(worker)
            has_sent = True
        if has_sent and self.idle and not self.recalls.looking:
            self.recalls.look_soon()  # what was sent first may be long, and more was sent behind it
        if not self.demanded and self.backlog and not self.idle:
            self._demand()

    def _depth(self) -> int:
        """How many jobs a worker may hold, by their average run time."""
        if not self.can_recall or (self.ranked and is_mixed(self.backlog)):
            return 1  # what is sent ahead of an urgent job would have to be taken back
        chunk = self.backlog[0].chunk
        least = 1 if chunk is None else chunk.ahead
        return max(least, min(_MOST_AHEAD, int(_BUDGET / (self.average + OVERHEAD_NS))))

    def _send_share(self, worker: WorkerProcess, room: int) -> None:
        """Send from the backlog, but no more than the worker's share of a short one."""
        lanes = self._up if self.average > TINY_NS else min(self._up, self._processors)
        share = -(-len(self.backlog) // max(1, lanes))
        count = max(1, min(room, share))
        if self._bound is not None:
            count = min(count, self._bound - worker.done - len(worker.jobs))
        if self.ranked and not self.recalls.urging:
            self.recalls.urge()
        self._send(worker, self._from_the_front(count))
        if self.idle and not self.recalls.looking and len(worker.jobs) > 1:
            self.recalls.look_soon()  # should the first of these turn out to be long

    def _from_the_front(self, count: int) -> Iterator[Job]:
        """Take jobs out of the backlog, each once the caller has taken it over."""
        backlog = self.backlog
        while backlog and count:
            job = backlog[0]
            # Jobs that ended while they waited (cancelled, terminated) are left in the backlog.
            if job.state is JobState.PENDING and not self._refused(job):
                count -= 1
                yield job
            if backlog and backlog[0] is job:
                backlog.popleft()
            elif job in backlog:  # a signal handler has put others in front of it
                backlog.remove(job)

    def _refused(self, job: Job) -> bool:
        if job.options is NO_OPTIONS and not self.may_refuse:
            return False
        policy = self.policy_of(job)
        if policy is None:
            return False
        try:
            reason = policy.refuses(job)
        except Exception as error:  # noqa: BLE001  (the user's code; reported)
            who = type(policy).__qualname__
            self._bus.emit(
                HookFailed(self._bus.pool, "lost_worker_policy", error, who, job.id, job.name)
            )
            return False
        if reason is None:
            return False
        self.end_with_error(job, JobState.LOST, PoisonJobError(reason))
        return True

    def _send(self, worker: WorkerProcess, jobs: Iterable[Job]) -> None:
        try:
            self._send_frames(worker, jobs)
        except BaseException:
            self.in_doubt[worker] = None
            raise

    def _send_frames(self, worker: WorkerProcess, jobs: Iterable[Job]) -> None:
        held = worker.jobs
        if not held:
            self._expect_work(worker)
        parts: list[bytes] = []
        complete = True
        is_quiet = not self._bus.follows_jobs
        wanted = frames.WANT_ACCEPT if self._bus.wants_starts else 0
        for job in jobs:
            worker.sent = serial = worker.sent + 1
            job.worker = worker
            if is_quiet and job.state is JobState.PENDING:
                job.state = JobState.SENT
            else:
                self.move(job, JobState.SENT)
            job.serial = serial
            held[serial] = job
            flags = wanted | frames.BY_VALUE if job.by_value else wanted
            if job.chunk is not None:
                flags |= job.chunk.flags
            head, payload, label = job.head, job.payload, job.id
            if job.options is not NO_OPTIONS:
                label |= job.attempts << frames.LABEL_BITS
                flags |= _flags_of(job.options)
                head = job.options.settings + head
                self.arm_deadlines(job)
            if isinstance(payload, bytes):
                size, split = len(head) + len(payload), len(head)
                parts += (
                    pack(size, frames.JOB, flags, 0, 0, serial, split, label),
                    head,
                    payload,
                )
            elif payload is not None:
                worker.stream.send(b"".join(parts))
                parts.clear()
                table = head + payload.table
                flags |= frames.BULK
                frame = frames.pack(
                    frames.JOB, table, serial, flags=flags, fds=1, first=len(head), second=label
                )
                complete = worker.stream.send(frame, payload)
        if parts:
            complete = worker.stream.send(b"".join(parts))
        worker.fields[ledger.SENT] = worker.sent
        if not complete:
            self._loop.call_soon(lambda: self.flush(worker))
        elif worker.stream.broken:
            self._loop.call_soon(lambda: self.on_broken(worker))

    def _expect_work(self, worker: WorkerProcess) -> None:
        """A worker that held nothing is about to be sent something."""
        worker.sent_at = int(self._loop.time() * 1e9)
        worker.fields[ledger.BELL] = not self.tended
        if not self.watched:
            self.on_busy()
        if not self.attended:
            self.on_unattended()
        if not self.recalls.expecting:
            self.recalls.expect()

    def flush(self, worker: WorkerProcess) -> None:
        """See to it that what waits in a worker's stream goes out. In the supervisor's thread."""
        if worker.state is not WorkerState.DEAD and worker.stream.unfinished:
            self.take_back(worker)
            self._loop.watch_writable(worker.stream, worker.stream.flush)

    on_broken: Callable[[WorkerProcess], None]  # set by the supervisor
    take_back: Callable[[WorkerProcess], None]  # likewise: read what is lent

    # -- results come in -------------------------------------------------------------------------

    def took(self, worker: WorkerProcess, wall: int, count: int) -> None:
        """Learn from a worker's ``count`` jobs that ran ``wall`` ns together. The lock is held."""
        if self.recalls.held_up:
            self.recalls.held_up.pop(worker, None)
        weight = min(0.5, 0.1 * count)
        self.average += (wall / count - self.average) * weight

    def finished(self) -> None:
        """One job has ended. The lock is held."""
        self.unfinished -= 1

    # -- workers come and go ---------------------------------------------------------------------

    def add(self, worker: WorkerProcess) -> None:
        """A worker is up. The lock is held."""
        worker.state = WorkerState.UP
        self._up += 1
        self.on_added()
        self.refill(worker)

    def remove(self, worker: WorkerProcess, state: WorkerState) -> None:
        """A worker takes no more jobs: it leaves, or it is dead. The lock is held."""
        if worker.state is WorkerState.UP:
            self._up -= 1
        worker.state = state
        self.idle.pop(worker, None)
        self.recalls.held_up.pop(worker, None)
        self.in_doubt.pop(worker, None)

    # -- and back again --------------------------------------------------------------------------

    def recall(self, worker: WorkerProcess) -> list[Job]:
        """Take back what a worker has not begun, see ``Recalls``. The lock is held. Any thread."""
        return self.recalls.recall(worker)

    def waiting(self) -> int:
        """Return how many jobs are in line, or sent ahead and not begun. The lock is held."""
        ahead = 0
        for worker in self.holding():
            started = worker.fields[ledger.STARTED]
            ahead += sum(serial > started for serial in worker.jobs)
        return min(self.unfinished, len(self.backlog) + ahead)

    def moves(self) -> int:
        """Return a number that changes whenever a job is sent or ends. The lock is held."""
        return self.unfinished + sum(worker.sent + worker.done for worker in self.everybody())

    def is_standing(self) -> bool:
        """Return True when jobs are in line and workers are idle. The lock is held."""
        return bool(self.idle and (self.backlog or self.arrivals))

    everybody: Callable[[], list[WorkerProcess]]  # set by the supervisor: all workers
    holding: Callable[[], list[WorkerProcess]]  # likewise: those that hold jobs

    def move(self, job: Job, state: JobState) -> None:
        """Change a job's state, and tell listeners. The lock is held."""
        old = job.state
        job.move(state)
        if self._bus.follows_jobs:
            pid = job.worker.pid if job.worker is not None else None
            run_time = None if job.wall is None else job.wall / 1e9
            kind = _EVENTS.get(state, JobMoved)
            self._bus.emit(
                kind(self._bus.pool, job.id, job.name, old.name, state.name, pid, run_time)
            )


def _flags_of(options: JobOptions) -> int:
    flags = 0 if options.accept_callback is None else frames.WANT_ACCEPT
    return flags | frames.SETTINGS if options.settings else flags
