"""A process pool that never goes quiet.

Every job ends, with its result, its own exception, or a loss that says why; only the guilty job
pays; the pool lives.
"""

from poolwatch import events
from poolwatch._version import __version__
from poolwatch.completion import as_completed, wait
from poolwatch.einfo import ExceptionInfo
from poolwatch.evidence.stacks import WorkerStack
from poolwatch.exceptions import (
    BootError,
    JobCancelled,
    JobDecodingError,
    MaybeEncodingError,
    MemoryLimitExceeded,
    OutOfMemory,
    PoisonJobError,
    PoolBroken,
    PoolFull,
    PoolwatchError,
    RemoteTraceback,
    RestartFreqExceeded,
    SoftTimeLimitExceeded,
    Terminated,
    TimeLimitExceeded,
    TimeoutError,
    WorkerLostError,
)
from poolwatch.executor import ProcessPoolExecutor
from poolwatch.futures import Future
from poolwatch.health import Health
from poolwatch.imap_results import IMapIterator, IMapUnorderedIterator
from poolwatch.job import Job
from poolwatch.job_state import JobState
from poolwatch.loss import OomEvidence, Postmortem, human_status
from poolwatch.map_results import MapResult
from poolwatch.outcome import Usage
from poolwatch.policies import (
    ByCause,
    Fail,
    FailFast,
    GracePeriod,
    LostWorkerPolicy,
    Quarantine,
    Retry,
    RetryLost,
)
from poolwatch.pool import Pool
from poolwatch.results import ApplyResult, AsyncResult
from poolwatch.tally import Histogram, PoolStats
from poolwatch.worker.current import CurrentJob, current_job, worker_id
from poolwatch.workers import WorkerInfo

__all__ = [
    "ApplyResult",
    "AsyncResult",
    "BootError",
    "ByCause",
    "CurrentJob",
    "ExceptionInfo",
    "Fail",
    "FailFast",
    "Future",
    "GracePeriod",
    "Health",
    "Histogram",
    "IMapIterator",
    "IMapUnorderedIterator",
    "Job",
    "JobCancelled",
    "JobDecodingError",
    "JobState",
    "LostWorkerPolicy",
    "MapResult",
    "MaybeEncodingError",
    "MemoryLimitExceeded",
    "OomEvidence",
    "OutOfMemory",
    "PoisonJobError",
    "Pool",
    "PoolBroken",
    "PoolFull",
    "PoolStats",
    "PoolwatchError",
    "Postmortem",
    "ProcessPoolExecutor",
    "Quarantine",
    "RemoteTraceback",
    "RestartFreqExceeded",
    "Retry",
    "RetryLost",
    "SoftTimeLimitExceeded",
    "Terminated",
    "TimeLimitExceeded",
    "TimeoutError",
    "Usage",
    "WorkerInfo",
    "WorkerLostError",
    "WorkerStack",
    "__version__",
    "as_completed",
    "current_job",
    "events",
    "human_status",
    "wait",
    "worker_id",
]
