"""A pool whose workers die while no process (or no file) can be made, until the limit is lifted.

Arguments: start method, NPROC or NOFILE. Prints "recovered" at the end.
"""

import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator

import psutil
import work
from helpers import DEADLINE, assert_full_strength, eventually, worker_pids

from poolwatch import Pool

REFUSALS = ("Resource temporarily unavailable", "Too many open files", "EAGAIN", "EMFILE")


class Told(logging.Handler):
    """Collects what the pool says, as log records and as events."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def event(self, event: object) -> None:
        self.texts.append(f"{event!r} {event}")

    def of_refusal(self) -> bool:
        return any(refusal in text for refusal in REFUSALS for text in list(self.texts))


@contextlib.contextmanager
def limited(pids: set[int], limit: int) -> Iterator[None]:
    """None of the processes can get one more of what is limited."""
    before = {pid: resource.prlimit(pid, limit) for pid in pids}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, limit, (1, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, limit, limits)


def main(start_method: str, limit_name: str) -> None:
    told = Told()
    logging.getLogger("poolwatch").addHandler(told)
    with Pool(2, context=start_method) as pool:
        pool.listen(told.event)
        assert_full_strength(pool)
        first, second = worker_pids(pool)
        family = {process.pid for process in psutil.Process().children(recursive=True)}
        makers = (family | {os.getpid()}) - {first, second}
        with limited(makers, getattr(resource, f"RLIMIT_{limit_name}")):
            os.kill(first, signal.SIGKILL)
            eventually(told.of_refusal)
            jobs = [pool.apply_async(work.square, (n,)) for n in range(10)]
            assert [job.get(DEADLINE) for job in jobs] == [n * n for n in range(10)]
            assert worker_pids(pool) == [second]

            os.kill(second, signal.SIGKILL)
            eventually(lambda: worker_pids(pool) == [])
            waiting = pool.apply_async(work.square, (9,))
            waiting.wait(0.5)
            assert not waiting.ready()
        assert waiting.get(DEADLINE) == 81
        assert waiting.attempts == 1
        assert_full_strength(pool)
    print("recovered")


if __name__ == "__main__":
    main(*sys.argv[1:])
