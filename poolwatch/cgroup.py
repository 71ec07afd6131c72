"""How much processor time the control groups of this process grant it.

A process is in one group, which may be inside of others, and each of them may have a quota: the
least of them counts. Which group it is in stands in ``/proc/self/cgroup``; how much that one may
use, in a tree below ``/sys/fs/cgroup``. Within a container that tree often begins at the group of
the container, while the path is the one outside of it (version 1), or goes up from there (a process
that was moved). Then only the groups that can be seen are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNIFIED = ("sys/fs/cgroup", "sys/fs/cgroup/unified")  # the second where both versions are in use
_SEPARATE = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/cpuacct,cpu")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the number of processors that the control groups grant, or None without a bound.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    unified, separate = _groups(root)
    quotas = [_unified_quota(folder) for folder in _folders(root, _UNIFIED, unified)]
    quotas += [_separate_quota(folder) for folder in _folders(root, _SEPARATE, separate)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(root: Path) -> tuple[str, str]:
    """Return the paths of this process's group, of version 2 and of version 1's ``cpu``."""
    unified = separate = "/"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []  # no control groups, or a /proc that is not ours to see: the tops are left
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            unified = path
        elif "cpu" in controllers.split(","):
            separate = path
    return unified, separate


def _folders(root: Path, mounts: tuple[str, ...], path: str) -> Iterator[Path]:
    """Yield the folders of a group and of those around it, in every place where they may be."""
    group = PurePosixPath(path.lstrip("/"))
    if ".." in group.parts:
        group = PurePosixPath()
    for mount in mounts:
        for part in (group, *group.parents):
            yield root / mount / part


def _unified_quota(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else _quota(int(limit), int(period))
    except (OSError, ValueError):
        return None  # no such group here, or no bound


def _separate_quota(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return _quota(limit, int((folder / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return None  # likewise


def _quota(limit: int, period: int) -> float | None:
    return limit / period if limit > 0 and period > 0 else None
