"""How much memory this worker has now."""

from __future__ import annotations

import os

_KIB_PER_PAGE = os.sysconf("SC_PAGE_SIZE") // 1024


class Resident:
    """The resident set of this process, against a bound.

    It is the *current* one, not the peak that ``getrusage`` tells: a worker that has given memory
    back is not replaced. What is shared with the parent since the fork counts, as for the kernel.

    Args:
        bound: KiB; None for no bound.
    """

    def __init__(self, bound: int | None) -> None:
        self.bound = bound or 0

    def is_above(self) -> bool:
        """Return True when the worker has more than that; costs some microseconds."""
        # Opened anew each time: a job may close descriptors that are not its own.
        try:
            statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False  # no descriptor to be had now: the next job will tell
        try:
            pages = os.read(statm, 128).split()[1]
        finally:
            os.close(statm)
        return int(pages) * _KIB_PER_PAGE > self.bound
