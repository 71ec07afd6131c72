"""What a job has used, measured so that short jobs do not pay for it.

The processor time of the whole process is read after each job; that costs as much as that of one
thread. Its division into user and system time costs another system call, and the kernel itself
divides by samples, so it is looked at once a millisecond at most: a shorter job's time is all user
time. What the short jobs before a longer one have left undivided is below a millisecond too.

The peak of memory needs the kernel's mark reset before the job, which is a system call of its own,
and reading it takes longer than a short job. So it is measured of long jobs only, whose function
was long the last time too or is new to the worker; of all where the pool was asked to.
"""

from __future__ import annotations

import os
from resource import RUSAGE_SELF, getrusage

SPLIT_NS = 1_000_000
"""How long after the last division of processor time the next one is due."""

_MARK = b"VmHWM:"
_SHARE_BITS = 23
_MICROSECONDS_BITS = 40
_WHOLE = (1 << _SHARE_BITS) - 1
_MOST_MICROSECONDS = (1 << _MICROSECONDS_BITS) - 1
_DIVIDED = 1 << 63


def system_ns() -> int:
    """Return the system time that this process has used."""
    return int(getrusage(RUSAGE_SELF).ru_stime * 1e9)


def divided(cpu: int, system: int) -> int:
    """Pack processor and system time, both in ns, into one 64-bit number.

    Processor time beyond twelve days is cut off.
    """
    share = min(_WHOLE, max(0, system) * _WHOLE // cpu) if cpu > 0 else 0
    microseconds = min(cpu // 1000, _MOST_MICROSECONDS)
    return _DIVIDED | share << _MICROSECONDS_BITS | microseconds


def user_and_system(number: int) -> tuple[float, float]:
    """Return user and system time in seconds from what a result's frame holds."""
    if not number & _DIVIDED:
        return number / 1e9, 0.0
    cpu = (number & _MOST_MICROSECONDS) / 1e6
    system = cpu * (number >> _MICROSECONDS_BITS & _WHOLE) / _WHOLE
    return cpu - system, system


class PeakMemory:
    """The kernel's high-water mark of this process's memory.

    Raises:
        OSError: there is none to be had here.
    """

    def __init__(self) -> None:
        # Kept open: a job may change the user, and then they could not be opened any more.
        self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._reset)
            raise

    @classmethod
    def open(cls) -> PeakMemory | None:
        """Return one, or None where it is not to be had."""
        try:
            return cls()
        except OSError:
            return None

    def reset(self) -> bool:
        """Set the mark to what is in use now; False when the kernel does not."""
        try:
            os.pwrite(self._reset, b"5", 0)
        except OSError:
            return False
        return True

    def read(self) -> int:
        """Return the mark in bytes; 0 when it cannot be had."""
        try:
            status = os.pread(self._status, 8192, 0)
        except OSError:
            return 0
        _, found, rest = status.partition(_MARK)
        return int(rest.split(maxsplit=1)[0]) * 1024 if found else 0
