"""What this worker tells of its memory, and to whom the kernel should turn when there is none."""

from __future__ import annotations

import os

_KIB_PER_PAGE = os.sysconf("SC_PAGE_SIZE") // 1024


_OOM_SCORE_ADJ = "/proc/self/oom_score_adj"
_MORE_LIKELY = 100  # of the 1000 that all memory counts
_LARGEST_GROUPS = 16 * 1024  # bytes


def be_first_to_go() -> None:
    """When memory runs out, rather this worker than its zygote or the parent.

    A worker's death costs one job, theirs all. What the job itself starts inherits it.
    """
    try:
        with open(_OOM_SCORE_ADJ, "r+") as file:
            score = int(file.read())
            file.seek(0)
            file.write(str(min(1000, score + _MORE_LIKELY)))
    except (OSError, ValueError):
        pass  # no such file here, or it is not ours to write


def control_groups() -> bytes:
    """Return what the kernel says about the control groups of this process; empty without."""
    try:
        with open("/proc/self/cgroup", "rb") as file:
            return file.read(_LARGEST_GROUPS)
    except OSError:
        return b""


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
