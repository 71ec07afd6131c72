"""What happens in a pool, as frozen records, for listeners and for the log (see ``bus``).

::

    Event
      JobMoved                a job went from one state to another
        JobSent               ... to a worker
        JobStarted            ... it has begun there
        JobDone               ... it has ended in its worker: with a value, or its own exception
        JobTerminated         ... on purpose: terminated, cancelled, or flushed
      JobProcessDown          the process that held a job has ended
      JobLost                 a worker died, and the job has ended for it
      JobRetried              a worker died, and the job is run again
      JobTimedOut             a time limit was hit
      JobOutgrew              the memory limit was hit
      JobsRecalled            jobs went from one worker back in line
      Stalled                 something does not move on
        JobStalled            ... a job runs longer than ``stall_after``
        WorkerStalled         ... a worker is stopped, or does not boot
        PoolStalled           ... jobs wait although workers are idle
      WorkerUp, WorkerDown, WorkerRecycled, BootFailed
      Trouble                 something is wrong that the pool deals with by itself
      HookFailed              the user's own code raised
      PoolBroke               the pool cannot go on
"""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.loss import Postmortem


@dataclass(frozen=True, slots=True)
class Event:
    """The root of all events.

    Attributes:
        pool: name of the pool.
    """

    pool: str


@dataclass(frozen=True, slots=True)
class JobMoved(Event):
    """A job went from one state to another (see ``JobState``).

    Attributes:
        job_id: number of the job in its pool.
        job: qualified name of the function.
        old: name of the state before.
        new: name of the state now.
        pid: process id of the worker that has the job, or had it last; None before.
        run_time: seconds that the job ran, once it has ended in its worker.
    """

    job_id: int
    job: str
    old: str
    new: str
    pid: int | None = None
    run_time: float | None = None


@dataclass(frozen=True, slots=True)
class JobSent(JobMoved):
    """A job was sent to a worker; it may be recalled from there before it begins."""


@dataclass(frozen=True, slots=True)
class JobStarted(JobMoved):
    """A job has begun. Workers say so only where somebody listens, or asked for it."""


@dataclass(frozen=True, slots=True)
class JobDone(JobMoved):
    """A job has ended in its worker, with a value or with its own exception (see ``new``)."""


@dataclass(frozen=True, slots=True)
class JobTerminated(JobMoved):
    """A job was ended on purpose: terminated, cancelled, flushed, or with its pool."""


@dataclass(frozen=True, slots=True)
class JobProcessDown(Event):
    """The process that held a job has ended; what that means for the job comes next."""

    job_id: int
    job: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class JobLost(Event):
    """A worker died while it ran a job, and the job has ended for it."""

    job_id: int
    job: str
    postmortem: Postmortem


@dataclass(frozen=True, slots=True)
class JobRetried(Event):
    """A worker died while it ran a job, and the policy has the job started again."""

    job_id: int
    job: str
    after: float
    postmortem: Postmortem


@dataclass(frozen=True, slots=True)
class JobTimedOut(Event):
    """A limit was hit: the hard one (the worker was killed) or the soft one."""

    job_id: int
    job: str
    soft: bool
    timeout: float
    stack: str | None = None


@dataclass(frozen=True, slots=True)
class JobOutgrew(Event):
    """A job's worker and its children grew beyond the memory limit, and were killed.

    Attributes:
        job_id: number of the job.
        job: qualified name of the function.
        limit: in bytes.
        rss: resident sets together when that was seen, in bytes.
    """

    job_id: int
    job: str
    limit: int
    rss: int


@dataclass(frozen=True, slots=True)
class Stalled(Event):
    """Something does not move on; see the classes derived from this one.

    Attributes:
        text: what, in a sentence.
        seconds: for how long, as far as it has been seen.
    """

    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class JobStalled(Stalled):
    """A job runs longer than ``stall_after``; it goes on.

    Attributes:
        job_id: number of the job.
        job: qualified name of the function.
        worker: name of the worker.
        pid: its process id.
        stack: where the job is, all Python threads; None where the worker does not answer.
    """

    job_id: int
    job: str
    worker: str
    pid: int | None
    stack: str | None


@dataclass(frozen=True, slots=True)
class WorkerStalled(Stalled):
    """A worker is stopped (SIGSTOP, a debugger), or has been booting for long.

    Attributes:
        worker: name of the worker.
        pid: its process id.
    """

    worker: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class PoolStalled(Stalled):
    """Jobs wait although workers are idle: a bug of poolwatch."""


@dataclass(frozen=True, slots=True)
class JobsRecalled(Event):
    """Jobs that a worker held and had not begun were given to others."""

    worker: str
    count: int


@dataclass(frozen=True, slots=True)
class WorkerUp(Event):
    """A worker has booted and takes jobs."""

    worker: str
    pid: int | None


@dataclass(frozen=True, slots=True)
class WorkerDown(Event):
    """A worker process has ended.

    Attributes:
        expected: it was recycled, told to leave, or killed at the end of its pool.
        verdict: why, in one sentence, see ``Postmortem``.
    """

    worker: str
    pid: int | None
    exitcode: int | None
    expected: bool
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class WorkerRecycled(WorkerDown):
    """A worker has left in peace: it has done its share, or was told to leave."""


@dataclass(frozen=True, slots=True)
class BootFailed(Event):
    """A worker died, or its initializer raised, before it could take a job."""

    worker: str
    pid: int | None
    failures: int
    reason: str


@dataclass(frozen=True, slots=True)
class Trouble(Event):
    """Something is wrong that the pool deals with by itself: fork fails, replacements are paced."""

    text: str


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """A callback, hook or policy of the user's raised.

    Attributes:
        hook: its role: the name of the argument by which it was given.
        error: what it raised, with its traceback.
        callback: its qualified name, or that of its class.
        job_id: number of the job for which it was called; None where there is none, or several.
        job: qualified name of that job's function, or None.
    """

    hook: str
    error: BaseException
    callback: str | None = None
    job_id: int | None = None
    job: str | None = None


@dataclass(frozen=True, slots=True)
class PoolBroke(Event):
    """The pool cannot go on."""

    error: BaseException
