"""The parent's record of each worker, and what a user sees of it."""

from __future__ import annotations

import enum
import os
import select
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from poolwatch.launch.launcher import Launcher, WorkerHands
from poolwatch.transport import ledger
from poolwatch.transport.rings import RingReader
from poolwatch.transport.streams import Stream

if TYPE_CHECKING:
    from poolwatch.evidence.captured_stderr import CapturedStderr
    from poolwatch.job import Job
    from poolwatch.timers import Timer


_FLAGS = 6  # of what is behind the name in /proc/<pid>/stat
_EXITING = 4  # PF_EXITING


class WorkerState(enum.Enum):
    """Where a worker is in its life."""

    BOOTING = 1
    UP = 2
    LEAVING = 3  # recycled or told to leave; takes no more jobs
    DEAD = 4


class Order(NamedTuple):
    """A signal that was sent because somebody wanted a job's end.

    Attributes:
        serial: of the job.
        signum: the signal; SIGKILL may have followed.
    """

    serial: int
    signum: int


class Strike(NamedTuple):
    """A deliberate kill.

    Attributes:
        position: where the dump of stacks begins in the worker's file.
        item: of a chunk, the one that is to blame.
    """

    position: int
    item: int


class WorkerProcess:
    """The parent's record of one worker.

    The dispatcher's lock guards ``state``, ``jobs`` and the serials.

    Attributes:
        token: number of the worker in its pool.
        name: name of the worker.
        state: see :class:`WorkerState`.
        hands: the parent's ends: stream, row, files.
        fields: the row's fields.
        ring: small results come in here.
        pid: process id, once it exists.
        pidfd: stands for the process; signals go through it.
        jobs: what it holds, serial to job, in the order of sending.
        sent: serial of the last job sent.
        sent_at: when it was last sent something while it held nothing, monotonic nanoseconds.
        exitcode: its exit code, once it has ended.
        peak_rss: its greatest resident set in bytes, likewise.
        sending: serial of the job whose limit passed while it was writing its result.
        done: how many results it has delivered.
        asked: how often it was asked whether it is there.
        unresponsive: it did not touch what it was sent, and has not answered since.
        blameless: its zygote died, and it with it.
        initializing: it has begun with its initializer, and has not come up since.
        departing: it has said that it leaves.
        boot_failure: what its initializer raised, pickled.
        overdue: it was killed because it did not come up in time.
        reason: what else explains its death.
        launcher: makes it, and hears of its end.
        generation: how many restarts there were before it was made.
        place: number of its place in the pool; its replacement gets the same.
        processor: the one that it is pinned to, -1 for none.
        membership: what is in its ``/proc/self/cgroup``, once it has booted.
        stderr: its standard error, where that is captured.
        rss: bytes that it and its children had when they were looked at last, or None.
        core_dumped: the kernel has written a core dump of it.
        ordered: the last order to end a job of its, or None.
        struck: it is being killed for what its job does, see ``strikes``.
    """

    __slots__ = (
        "asked",
        "blameless",
        "boot_failure",
        "boot_timer",
        "born",
        "core_dumped",
        "departing",
        "done",
        "exitcode",
        "fields",
        "generation",
        "hands",
        "initializing",
        "jobs",
        "launcher",
        "leave_timer",
        "membership",
        "name",
        "not_reaped_since",
        "ordered",
        "overdue",
        "peak_rss",
        "pid",
        "pidfd",
        "place",
        "processor",
        "reason",
        "report_timer",
        "ring",
        "rss",
        "sending",
        "sent",
        "sent_at",
        "state",
        "stderr",
        "stream",
        "struck",
        "token",
        "unresponsive",
    )

    def __init__(
        self,
        token: int,
        name: str,
        hands: WorkerHands,
        born: float,
        launcher: Launcher,
        generation: int,
    ) -> None:
        self.token = token
        self.launcher = launcher
        self.generation = generation
        self.place = -1
        self.processor = -1
        self.name = name
        self.state = WorkerState.BOOTING
        self.hands = hands
        self.stream: Stream = hands.stream
        self.fields = hands.row.fields
        self.ring = RingReader(hands.row)
        self.pid: int | None = None
        self.pidfd: int | None = None
        self.jobs: dict[int, Job] = {}
        self.sent = 0
        self.sent_at = 0
        self.sending = 0
        self.exitcode: int | None = None
        self.peak_rss: int | None = None
        self.done = 0
        self.born = born
        self.unresponsive = False
        self.asked = 0
        self.blameless = False
        self.initializing = False
        self.departing = False
        self.boot_failure: bytes | None = None
        self.overdue = False
        self.boot_timer: Timer | None = None
        self.leave_timer: Timer | None = None
        self.report_timer: Timer | None = None
        self.reason: str | None = None
        self.membership = ""
        self.stderr: CapturedStderr | None = None
        self.rss: int | None = None
        self.core_dumped = False
        self.ordered: Order | None = None
        self.not_reaped_since: float | None = None  # it has ended, and nobody has reported that
        self.struck: Strike | None = None

    def running(self) -> Job | None:
        """Return the job that the worker has begun and not delivered, or None."""
        if self.state is WorkerState.DEAD:
            return None
        return self.jobs.get(self.fields[ledger.STARTED])

    def who(self) -> str:
        """Return what to call the worker in a message."""
        return f"worker {self.name} (pid {self.pid})"

    def phase(self) -> str:
        """Return what the worker is doing, in words."""
        if self.state is WorkerState.BOOTING:
            return "booting"
        number = self.fields[ledger.PHASE]
        # A job may write over memory that is not its own.
        phase = ledger.PHASES[number] if number < len(ledger.PHASES) else "unknown"
        receiving = self.fields[ledger.RECEIVING]
        if phase == "idle" and receiving > self.fields[ledger.STARTED] and receiving in self.jobs:
            return "receiving"
        return phase

    def note_order(self) -> None:
        """Once it has ended: see whether an order of the pool's is what has ended it.

        Such a signal may have come when the job had just ended by itself, but not after another
        one has begun.
        """
        order = self.ordered
        if self.reason is not None or order is None or self.exitcode is None:
            return
        signals = (order.signum, signal.SIGKILL)
        if -self.exitcode in signals and order.serial == self.fields[ledger.STARTED]:
            self.reason = "killed by this pool: its job was terminated or cancelled"

    def is_ending(self) -> bool:
        """Return True when the process has ended, or is about to: it runs no code any more."""
        if self.has_ended() or not self.pid:
            return True
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read(1024).rpartition(b") ")[2].split()
        except OSError:
            return True
        return bool(int(fields[_FLAGS]) & _EXITING)

    def has_ended(self) -> bool:
        """Return True when the process has ended, reported or not."""
        if self.pidfd is None:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def send_signal(self, signum: int) -> bool:
        """Send a signal to this very process; False when it has no pidfd or has ended."""
        if self.pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the parent's descriptors."""
        self.hands.close()
        self.close_pidfd()

    def close_pidfd(self) -> None:
        """Close the pidfd; may be called more than once."""
        pidfd, self.pidfd = self.pidfd, None
        if pidfd is not None:
            os.close(pidfd)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.name} pid={self.pid} {self.state.name}>"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a user sees of a worker.

    Attributes:
        name: name of the worker.
        pid: process id.
        phase: booting, idle, receiving, running, sending or leaving.
        job: qualified name of the function that it runs, or None.
        job_id: number of that job, or None.
        job_seconds: how long that job has run, in seconds, or None.
        jobs_done: results it has delivered.
        age: seconds since it was asked for.
    """

    name: str
    pid: int
    phase: str
    job: str | None
    job_id: int | None
    job_seconds: float | None
    jobs_done: int
    age: float
