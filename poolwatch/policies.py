"""What to do when a worker is lost: policies, called with the job and its postmortem.

A policy answers with :class:`Fail` or :class:`Retry`, each perhaps after some seconds. Policies
compose: those that handle some cases take ``otherwise=`` for the rest.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from poolwatch import checks
from poolwatch.exceptions import OutOfMemory
from poolwatch.job import Job
from poolwatch.loss import Postmortem
from poolwatch.transport.bulk import Bulk

_REMEMBERED = 100_000  # calls that Quarantine counts deaths for; the oldest are forgotten


@dataclass(frozen=True, slots=True)
class Fail:
    """The job ends with ``WorkerLostError``.

    Attributes:
        after: seconds from the death until then.
    """

    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The job is started again, on another worker.

    Attributes:
        after: seconds from the death until then.
    """

    after: float = 0.0


class LostWorkerPolicy(ABC):
    """Decides what becomes of a job whose worker has died. Subclass it for your own.

    It is called in the supervisor's thread and must not block. If it raises, ``FailFast`` applies
    and an event says so.
    """

    @abstractmethod
    def on_lost(self, job: Job, postmortem: Postmortem) -> Fail | Retry:
        """Decide.

        Args:
            job: the record of the lost job: ``name``, ``id``, ``attempts`` (starts so far, this
                one included), ``options.tag``.
            postmortem: how the worker died.
        """

    def refuses(self, job: Job) -> str | None:
        """Return why a job must not be started at all, or None; asked before every start.

        Asked in the thread that submits, or in the supervisor's; it must not block.
        """
        return None


class FailFast(LostWorkerPolicy):
    """End the job at once. The default: streams are private, so there is nothing to wait for."""

    def on_lost(self, job: Job, postmortem: Postmortem) -> Fail | Retry:
        """See :class:`LostWorkerPolicy`."""
        return Fail()


class GracePeriod(LostWorkerPolicy):
    """End the job some seconds after the death, as billiard does with ``lost_worker_timeout``.

    Args:
        seconds: how long to wait. Billiard waits because the dead worker's result may still be on
            its way; here nothing can be, and waiting only delays the verdict.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = checks.seconds("seconds", seconds, positive=False)

    def on_lost(self, job: Job, postmortem: Postmortem) -> Fail | Retry:
        """See :class:`LostWorkerPolicy`."""
        return Fail(after=self.seconds)


class RetryLost(LostWorkerPolicy):
    """Start the job again, so many times.

    Args:
        max_attempts: starts in all, the first included.
        backoff: seconds before the next start, or a function of the attempts so far.
        otherwise: decides when the attempts are used up.
    """

    def __init__(
        self,
        max_attempts: int = 3,
        backoff: float | Callable[[int], float] = 0.0,
        *,
        otherwise: LostWorkerPolicy | None = None,
    ) -> None:
        self.max_attempts = checks.whole("max_attempts", max_attempts)
        self.backoff = (
            backoff if callable(backoff) else checks.seconds("backoff", backoff, positive=False)
        )
        self.otherwise = _policy("otherwise", otherwise)

    def on_lost(self, job: Job, postmortem: Postmortem) -> Fail | Retry:
        """See :class:`LostWorkerPolicy`."""
        if job.attempts >= self.max_attempts:
            return self.otherwise.on_lost(job, postmortem)
        pause = self.backoff(job.attempts) if callable(self.backoff) else self.backoff
        return Retry(after=pause)

    def refuses(self, job: Job) -> str | None:
        """See :class:`LostWorkerPolicy`."""
        return self.otherwise.refuses(job)


class Quarantine(LostWorkerPolicy):
    """Refuse a call that has killed so many workers: it ends with ``PoisonJobError``.

    The same call is the same function with the same pickled arguments.

    Args:
        after: deaths until a call is refused.
        otherwise: decides about the deaths before that.
    """

    def __init__(self, after: int = 3, *, otherwise: LostWorkerPolicy | None = None) -> None:
        self.after = checks.whole("after", after)
        self.otherwise = _policy("otherwise", otherwise)
        self._deaths: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def on_lost(self, job: Job, postmortem: Postmortem) -> Fail | Retry:
        """See :class:`LostWorkerPolicy`."""
        key = _call_key(job)
        with self._lock:
            self._deaths[key] = self._deaths.pop(key, 0) + 1
            if len(self._deaths) > _REMEMBERED:
                del self._deaths[next(iter(self._deaths))]
        return self.otherwise.on_lost(job, postmortem)

    def refuses(self, job: Job) -> str | None:
        """See :class:`LostWorkerPolicy`."""
        deaths = self._deaths.get(_call_key(job), 0) if self._deaths else 0
        if deaths >= self.after:
            return f"{job.name} with these arguments has killed {deaths} workers"
        return self.otherwise.refuses(job)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class ByCause(LostWorkerPolicy):
    """Choose a policy by the cause of the death.

    Args:
        policies: cause to policy. A cause is a ``signal.Signals`` member, an exit code (negative
            for a signal), or the class ``OutOfMemory``.
        otherwise: decides about all other causes.
    """

    def __init__(
        self,
        policies: Mapping[Any, LostWorkerPolicy],
        otherwise: LostWorkerPolicy | None = None,
    ) -> None:
        if not isinstance(policies, Mapping):
            raise TypeError(f"policies must map causes to policies, not {policies!r}")
        self._policies: dict[int | str, LostWorkerPolicy] = {}
        for cause, policy in policies.items():
            self._policies[_cause(cause)] = _policy(f"the policy for {cause!r}", policy)
        self.otherwise = _policy("otherwise", otherwise)

    def on_lost(self, job: Job, postmortem: Postmortem) -> Fail | Retry:
        """See :class:`LostWorkerPolicy`."""
        cause: int | str | None = "oom" if postmortem.out_of_memory else postmortem.exitcode
        if cause not in self._policies:
            cause = postmortem.exitcode  # an out-of-memory kill is also a SIGKILL
        policy = self.otherwise if cause is None else self._policies.get(cause, self.otherwise)
        return policy.on_lost(job, postmortem)

    def refuses(self, job: Job) -> str | None:
        """See :class:`LostWorkerPolicy`."""
        for policy in (*self._policies.values(), self.otherwise):
            reason = policy.refuses(job)
            if reason is not None:
                return reason
        return None


def _cause(cause: object) -> int | str:
    if cause is OutOfMemory:
        return "oom"
    if isinstance(cause, signal.Signals):
        return -int(cause)
    if isinstance(cause, int) and not isinstance(cause, bool):
        return cause
    raise TypeError(f"a cause is a signal, an exit code or OutOfMemory, not {cause!r}")


def _policy(argument: str, policy: object) -> LostWorkerPolicy:
    if policy is None:
        return FailFast()
    if not isinstance(policy, LostWorkerPolicy):
        raise TypeError(f"{argument} must be a LostWorkerPolicy, not {policy!r}")
    return policy


def _call_key(job: Job) -> bytes:
    payload = job.payload
    if payload is None:
        return b""
    digest = hashlib.sha256(job.name.encode())
    digest.update(job.head)
    digest.update(payload.contents() if isinstance(payload, Bulk) else payload)
    return digest.digest()
