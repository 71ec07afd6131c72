"""What the kernel offers beyond Python's own modules, each with what to do where it is missing.

Linux has all of it. Elsewhere the functions say so (None, False), and the callers do the next
best thing: see the docstring of each.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import sys
import tempfile
import threading
import weakref

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MEMBARRIER_GLOBAL_EXPEDITED = 1 << 1
_MEMBARRIER_REGISTER_GLOBAL_EXPEDITED = 1 << 2
_MEMBARRIER_NR = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}

LINUX = sys.platform.startswith("linux")

_libc = ctypes.CDLL(None, use_errno=True)
_quick_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock during the call
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
]
_CLOCK_MONOTONIC = 1
_SIGEV_THREAD_ID = 4
_MAP_FAILED = ctypes.c_void_p(-1).value
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_WRITABLE = 0x200  # PyBUF_WRITE
_view_of_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of_memory.restype = ctypes.py_object
_view_of_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_membarrier_nr = _MEMBARRIER_NR.get(platform.machine()) if LINUX else None

yield_processor = getattr(os, "sched_yield", lambda: None)
"""Let other processes run; for loops that look at memory for some microseconds."""

STACK_SIGNAL = signal.SIGRTMIN + 11 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
"""Asks a worker for a stack dump (handled by faulthandler, in C)."""

FATAL_STACK_SIGNAL = signal.SIGRTMIN + 13 if hasattr(signal, "SIGRTMIN") else signal.SIGXCPU
"""Likewise, and the worker dies of it before it runs anything else."""

ALARM_SIGNAL = signal.SIGRTMIN + 12 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
"""Tells a worker in a chunk that outcomes have waited long enough."""

SOFT_LIMIT_SIGNAL = signal.SIGUSR1
"""Tells a worker to look whether its job's soft limit has passed (as in billiard)."""


def set_death_signal(signum: int = signal.SIGKILL) -> bool:
    """Ask to be killed when the parent dies; False where the kernel cannot do that.

    The caller compares ``getppid()`` afterwards: the parent may have died before.
    """
    return LINUX and _libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) == 0


def become_subreaper() -> bool:
    """Inherit orphaned descendants, so that they can be found; False where not possible."""
    return LINUX and _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


class _Stack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def enlarge_signal_stack(size: int = 256 * 1024) -> bool:
    """Give this thread's signal handlers room for many signals at once; False where not possible.

    Python's handlers run on the stack that faulthandler has set up, to which the kernel also saves
    the registers of whatever each of them interrupts: above 3 KB with AVX-512, and more than 11
    with AMX. Seven signals that are pending together overflow it, and the process dies of SIGSEGV.

    Call it after faulthandler was first turned on, which would put its own stack in place again.

    Args:
        size: bytes; those that are never needed take no memory.
    """
    if not LINUX:
        return False
    start = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, _PRIVATE, -1, 0)
    if start == _MAP_FAILED:
        return False
    stack = _Stack(start, 0, size)
    replaced: bool = _libc.sigaltstack(ctypes.byref(stack), None) == 0
    return replaced


def register_membarrier() -> bool:
    """Let other processes order this process's memory accesses, see :func:`membarrier`."""
    return _membarrier(_MEMBARRIER_REGISTER_GLOBAL_EXPEDITED)


def membarrier() -> bool:
    """Run a full memory barrier on every processor that runs a registered process.

    With it the side that looks rarely (the supervisor) pays for the ordering between a store and
    a later load, and the side that stores for every job (the worker) pays nothing. About 1 us:
    less than it takes to let another thread have the interpreter's lock meanwhile, and to get it
    back.
    """
    return _membarrier(_MEMBARRIER_GLOBAL_EXPEDITED)


def _membarrier(command: int) -> bool:
    if _membarrier_nr is None:
        return False
    result: int = _quick_libc.syscall(_membarrier_nr, command, 0, 0)
    return result == 0


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that stands for the process, or None where there are none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("rest", ctypes.c_byte * 64),  # more than any kernel has
    )


class Alarm:
    """A timer of this thread's own, which leaves the ones that Python offers to others.

    Args:
        signum: the signal that it sends to the thread which made it.

    Raises:
        OSError: the kernel has no such timers.
    """

    def __init__(self, signum: int) -> None:
        event = _SigEvent(signo=signum, notify=_SIGEV_THREAD_ID, thread=threading.get_native_id())
        timer = ctypes.c_void_p()
        if not LINUX or _libc.timer_create(
            _CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)
        ):
            raise OSError("no timers")
        self._timer = timer
        self._when = (ctypes.c_long * 4)()  # seconds and nanoseconds: the period, then the time

    def set(self, nanoseconds: int) -> None:
        """Go off once, after so many nanoseconds (less than a second); 0 to call it off."""
        self._when[3] = nanoseconds
        _libc.timer_settime(self._timer, 0, self._when, None)


class Mapping:
    """A file's contents in memory, without a descriptor.

    Python's own ``mmap`` keeps a duplicate of the descriptor for as long as the mapping lives: a
    thousand results which nobody has fetched would use up a thousand descriptors, and a job that
    writes into descriptors which it does not know would find it.

    Attributes:
        view: the contents. The mapping must be kept alive as long as this, or what it was cut into.
    """

    __slots__ = ("_address", "_size", "view")

    def __init__(self, fd: int, size: int, flags: int) -> None:
        """Map a file.

        Args:
            fd: its descriptor, which may be closed then.
            size: bytes.
            flags: ``mmap.MAP_SHARED`` or ``mmap.MAP_PRIVATE``.

        Raises:
            OSError: it cannot be mapped.
        """
        address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
        if address in (None, _MAP_FAILED):
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno))
        self._address = address
        self._size = size
        self.view: memoryview = _view_of_memory(address, size, _WRITABLE)

    def close(self) -> None:
        """Unmap it. Nobody may hold a view any more."""
        self.view.release()
        _libc.munmap(self._address, self._size)


def map_privately(fd: int, size: int) -> memoryview:
    """Return the file's contents, copied on write; unmapped once nobody holds the view.

    Raises:
        OSError: it cannot be mapped.
    """
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, fd, 0)
    if address in (None, _MAP_FAILED):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    buffer = (ctypes.c_char * size).from_address(address)
    # Whatever was unpickled from the view keeps the buffer alive. Not at exit: it may live on.
    weakref.finalize(buffer, _libc.munmap, address, size).atexit = False
    return memoryview(buffer).cast("B")


def anonymous_journal(name: str) -> int:
    """Return a descriptor of a file in memory, where all that is written goes to its end.

    It may be emptied while another process writes: the kernel guards no offset of such a file, so
    setting that back could be undone by a write that is under way.
    """
    fd = anonymous_file(name)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd


def anonymous_file(name: str) -> int:
    """Return a descriptor of a file in memory that has no name in any directory.

    Where there is no memfd, an unlinked temporary file takes its place.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fd, path = tempfile.mkstemp(prefix=name)
    os.unlink(path)
    return fd
