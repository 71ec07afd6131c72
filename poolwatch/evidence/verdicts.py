"""Why a worker died, in one sentence: what the evidence says, and no more.

Where several things are known the most telling comes first: what the pool itself did, then the
kernel's out-of-memory counter, then the crash's own traceback, then the bare exit status.
"""

from __future__ import annotations

import re
import signal
from pathlib import PurePath

from poolwatch.loss import PYTHON_CRASH_SIGNALS, Postmortem, mebibytes

_FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)')
_MOST = 0.8  # of the memory there is: what makes an out-of-memory kill possible

_CRASHES = {
    signal.SIGABRT: "aborted",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "arithmetic error",
    signal.SIGILL: "illegal instruction",
}
_LIMITS = {
    signal.SIGXCPU: "used up its processor time (RLIMIT_CPU)",
    signal.SIGXFSZ: "wrote a file beyond the allowed size (RLIMIT_FSIZE)",
    signal.SIGSYS: "made a system call that is forbidden (seccomp)",
    signal.SIGPIPE: "wrote into a pipe that nobody reads",
}
_TELLING = (  # what C libraries write before they abort
    "double free",
    "free():",
    "malloc",
    "realloc",
    "corrupt",
    "munmap_chunk",
    "smashing detected",
    "overflow detected",
    "terminate called",
    "what():",
    "Fatal Python error",
    "panicked at",
    "runtime error",
    "Sanitizer",
)
_FAILED_ASSERTION = re.compile(r"Assertion .* failed")


def verdict(
    record: Postmortem, could_tell_oom: bool, memory: int | None, hint: str | None = None
) -> str:
    """Return the sentence.

    Args:
        record: everything else that is known.
        could_tell_oom: there is a counter of out-of-memory kills for this worker.
        memory: bytes that the worker's control group, or else the machine, may use; None: unknown.
        hint: what a C library said before it aborted, or None.
    """
    if record.reason:
        return record.reason
    if record.oom is not None:
        return _out_of_memory(record)
    signum = record.signal
    if signum is None:
        return _exited(record)
    if signum == signal.SIGKILL:
        return _killed(record, could_tell_oom, memory)
    if signum in PYTHON_CRASH_SIGNALS:
        return _crashed(record, signal.Signals(signum), hint)
    if signum in _LIMITS:
        return f"{_LIMITS[signal.Signals(signum)]}, and was killed for it by {record.signal_name}"
    doing = " while it waited for a job" if record.phase == "idle" else ""
    return f"killed by {record.signal_name}{doing}, which is not of this pool's doing"


def _out_of_memory(record: Postmortem) -> str:
    limit = None if record.oom is None else record.oom.limit
    what = "" if limit is None else f"cgroup limit {mebibytes(limit)}, "
    most = greatest(record)
    worker = "worker's memory unknown" if not most else f"worker at {mebibytes(most)}"
    return f"killed by the kernel's out-of-memory killer: {what}{worker}"


def greatest(record: Postmortem) -> int:
    """Return the most memory that a worker is known to have had, in bytes; 0 when unknown."""
    return max(record.rss or 0, record.peak_rss or 0)


def _exited(record: Postmortem) -> str:
    code = record.exitcode
    if record.phase == "leaving":
        return "left" if code == 0 else f"exited with status {code} while it was leaving"
    return f"exited by itself with os._exit({code}), or exit({code}) in C code"


def _killed(record: Postmortem, could_tell_oom: bool, memory: int | None) -> str:
    text = "killed by SIGKILL from outside (not by this pool)"
    if could_tell_oom:
        return text
    most = greatest(record)
    if most and memory and most > _MOST * memory:
        return (
            f"{text}, possibly by the kernel's out-of-memory killer: "
            f"worker at {mebibytes(most)} of {mebibytes(memory)}"
        )
    return text


def _crashed(record: Postmortem, signum: signal.Signals, hint: str | None) -> str:
    text = _CRASHES[signum]
    if record.phase == "idle":
        return f"{text} while it waited for a job"
    place = innermost(record.traceback)
    if place is not None:
        text += f" in C code called from {place}"
    elif record.traceback:
        text += " in the job's function itself, which is not Python code"
    return text if hint is None else f"{text}: {hint}"


def innermost(traceback: str | None) -> str | None:
    """Return where a dump of stacks was in its first thread: ``crawler/parse.py:88 in parse``.

    The first is the current one where a process dumps itself upon a crash.
    """
    current = (traceback or "").find("Current thread")
    lines = (traceback or "")[max(0, current) :].splitlines()
    for line in lines[1:] if current >= 0 else lines:
        if not line.startswith("  "):
            return None
        found = _FRAME.search(line)
        if found is not None:
            file = "/".join(PurePath(found["file"]).parts[-2:]).replace("//", "/")
            return f"{file}:{found['line']} in {found['function']}"
    return None


def c_hint(stderr: str | None) -> str | None:
    """Return the last line on standard error that looks like a C library's reason to abort."""
    for line in reversed((stderr or "").splitlines()):
        if any(sign in line for sign in _TELLING) or _FAILED_ASSERTION.search(line):
            return line.strip()[:200]
    return None
