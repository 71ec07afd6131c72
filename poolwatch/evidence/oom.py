"""Whether the kernel's out-of-memory killer took a worker: by its own counter, not by guessing.

A SIGKILL says nothing of where it came from. The kernel counts its out-of-memory kills in the
control group of the victim (``oom_kill`` in ``memory.events``, or in version 1's
``memory.oom_control``). A worker tells in which group it is when it has booted; the counter is
looked at then, once a second while there is work, and after each death by SIGKILL. What it has gone
up by within the last seconds is evidence for as many deaths, and is used up by them.

The counter also goes up for processes that are not workers, a job's own children for one. So what
it says counts only at that moment, and only for a worker that had a good part of the memory that
the group may use.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from poolwatch.loss import OomEvidence

_UNIFIED = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_SEPARATE = ("sys/fs/cgroup/memory",)
_GOOD_PART = 10  # a tenth of the limit
_TOGETHER = 2.0  # s within which deaths belong to one look at the counter
_NO_LIMIT = 2**60  # version 1 has a number of this size where there is no limit


@dataclass(slots=True)
class MemoryGroup:
    """One control group, as far as memory goes.

    Attributes:
        name: its path, as a process in it sees it.
        counter: the file with the counter.
        limits: files with the limits that hold in it, its own first.
    """

    name: str
    counter: Path
    limits: tuple[Path, ...]

    def kills(self) -> int | None:
        """Return how often the killer has struck here, or None where that is not to be had."""
        try:
            lines = self.counter.read_text().splitlines()
        except OSError:
            return None
        counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
        return int(counts[0]) if counts else None

    def limit(self) -> int | None:
        """Return the least of the limits in bytes, or None without one."""
        return min((value for path in self.limits if (value := _limit(path))), default=None)


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


def find_group(membership: str, root: Path = Path("/")) -> MemoryGroup | None:
    """Return the group that accounts for a process's memory, or None where there is none to see.

    Within a container the files are often those of the container's own group, while the path is
    the one outside of it; then the nearest group around it that can be seen is taken.

    Args:
        membership: what is in the process's ``/proc/self/cgroup``.
        root: where ``sys`` is.
    """
    unified = separate = None
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            unified = path
        elif "memory" in controllers.split(","):
            separate = path
    group = None
    if separate is not None:  # a controller is in one version only
        files = ("memory.oom_control", "memory.limit_in_bytes")
        group = _visible(root, _SEPARATE, separate, *files)
    if group is None and unified is not None:
        group = _visible(root, _UNIFIED, unified, "memory.events", "memory.max")
    return group


def _visible(
    root: Path, mounts: tuple[str, ...], path: str, counter: str, limit: str
) -> MemoryGroup | None:
    own = PurePosixPath(path.lstrip("/"))
    if ".." in own.parts:
        own = PurePosixPath()
    for mount in mounts:
        folders = [root / mount / part for part in (own, *own.parents)]
        for position, folder in enumerate(folders):
            if (folder / counter).is_file():
                limits = tuple(around / limit for around in folders[position:])
                return MemoryGroup(path, folder / counter, limits)
    return None


@dataclass(slots=True)
class _Watched:
    """A group, and what is known of its counter.

    Attributes:
        kills: its value at the last look.
        looked: when that was.
        unused: what the counter went up by, each with when that was noticed.
    """

    group: MemoryGroup
    kills: int
    looked: float
    unused: deque[tuple[float, OomEvidence]] = field(default_factory=deque)

    def look(self, now: float) -> None:
        """Read the counter."""
        kills = self.group.kills()
        if kills is None:
            return
        evidence = OomEvidence(
            self.group.name, self.kills, kills, now - self.looked, self.group.limit()
        )
        self.unused.extend([(now, evidence)] * max(0, kills - self.kills))
        self.kills, self.looked = kills, now
        while self.unused and now - self.unused[0][0] > _TOGETHER:
            self.unused.popleft()


class OomWatch:
    """The counters of the groups that a pool's workers are in.

    Args:
        time: returns monotonic seconds.
        root: where ``sys`` is.
    """

    def __init__(self, time: Callable[[], float], root: Path = Path("/")) -> None:
        self._lock = threading.RLock()
        self._time = time
        self._root = root
        self._watched: dict[str, _Watched | None] = {}  # by what is in the workers' files

    def enter(self, membership: str) -> None:
        """A worker is up, and in this group."""
        if membership not in self._watched:
            group = find_group(membership, self._root)
            kills = None if group is None else group.kills()
            self._watched[membership] = (
                None if group is None or kills is None else _Watched(group, kills, self._time())
            )

    def look(self) -> None:
        """Look at all the counters, so that what has happened by now is not taken for news."""
        now = self._time()
        with self._lock:
            for watched in self._groups():
                watched.look(now)

    def _groups(self) -> list[_Watched]:
        return [watched for watched in list(self._watched.values()) if watched is not None]

    def is_blind(self) -> bool:
        """Return True when there is nothing to look at."""
        return not self._groups()

    def can_tell(self, membership: str) -> bool:
        """Return True when there is a counter for workers of this group."""
        return self._watched.get(membership) is not None

    def limit(self, membership: str) -> int | None:
        """Return the memory that a group may use, in bytes; None without a limit, or unknown."""
        watched = self._watched.get(membership)
        return None if watched is None else watched.group.limit()

    def evidence(self, membership: str, rss: int) -> OomEvidence | None:
        """Return what says that a worker, dead by SIGKILL, fell to the killer; None without.

        Args:
            membership: what was in its ``/proc/self/cgroup``.
            rss: the most that it had, in bytes; 0 where that is not known.
        """
        watched = self._watched.get(membership)
        if watched is None:
            return None
        with self._lock:
            watched.look(self._time())
            if not watched.unused:
                return None
            evidence = watched.unused[0][1]
            if rss and evidence.limit and rss * _GOOD_PART < evidence.limit:
                return None
            watched.unused.popleft()
            return evidence
