"""Where the kernel has put a core dump.

Whether one was written is in the exit status. Where is said by ``kernel.core_pattern``: a file, by
a pattern, relative to the working directory of the process; or a program to which it was piped.
"""

from __future__ import annotations

import glob
import os
import socket
from pathlib import Path

_PATTERN = Path("/proc/sys/kernel/core_pattern")
_USES_PID = Path("/proc/sys/kernel/core_uses_pid")


def locate(pid: int, signum: int, pattern: str | None = None, cwd: str | None = None) -> str:
    """Return where the core dump of a process is, in words: a path where it can be known.

    Args:
        pid: its process id.
        signum: the signal it died of.
        pattern: by default the kernel's.
        cwd: its working directory; by default the present one, which it has been forked in.

    Raises:
        OSError: the present directory is gone, or a file vanishes meanwhile.
    """
    if pattern is None:
        pattern = _read(_PATTERN)
    if pattern.startswith("|"):
        program = pattern[1:].split(maxsplit=1)[0] if pattern[1:].strip() else "nobody"
        if "systemd-coredump" in program:
            return f"kept by systemd-coredump: coredumpctl info {pid}"
        return f"given to {program}"
    path = _expand(pattern or "core", pid, signum)
    if "%p" not in pattern and _read(_USES_PID) == "1":
        path += f".{pid}"
    if not os.path.isabs(path):
        path = os.path.join(glob.escape(os.getcwd() if cwd is None else cwd), path)
    found = glob.glob(path)
    return max(found, key=os.path.getmtime) if found else f"written as {pattern}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _expand(pattern: str, pid: int, signum: int) -> str:
    """Fill in what is known of a pattern; the rest becomes a wildcard."""
    known = {"p": str(pid), "P": str(pid), "s": str(signum), "u": str(os.getuid()), "%": "%"}
    known |= {"g": str(os.getgid()), "h": glob.escape(socket.gethostname())}
    text, rest = "", pattern
    while rest:
        before, percent, rest = rest.partition("%")
        text += glob.escape(before)
        if percent and rest:
            text += known.get(rest[0], "*")
            rest = rest[1:]
    return text
