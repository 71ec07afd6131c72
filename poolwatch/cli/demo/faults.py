"""Which pages' handlers go wrong, and how.

The choice is made by a hash of seed and page, never by order or chance: workers finish in
another order in every run, and the same seed must still pick the same pages, or no run could be
repeated. A hash alone would leave out some kind in about every fifth crawl of 300 pages, so one
page for each kind is picked, by the same hash, among the built-in modules: the index names those
first, so that every crawl of more than a few dozen pages meets each kind.
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

_PICKED_AMONG = 40  # built-in modules; the index has them directly behind its own three links


class Fault(enum.Enum):
    """What a page's handler does instead of parsing."""

    ABORT = "abort"
    SEGFAULT = "segfault"
    KILL = "kill"
    HANG = "hang"
    RAISE = "raise"
    UNPICKLABLE = "unpicklable"


class PlannedError(Exception):
    """Raised by a handler that was chosen to raise."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Says for each page which fault its handler commits, if any.

    Attributes:
        seed: Any integer; another seed picks other pages.
        share: Share of the pages that are picked, from 0 (none at all) to 1.
    """

    seed: int
    share: float
    _picked: Mapping[str, Fault] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_picked", self._pick_one_of_each() if self.share else {})

    def fault_of(self, path: str) -> Fault | None:
        """Return the fault planned for the page at ``path``, None for a page that is left alone."""
        if path in self._picked:
            return self._picked[path]
        if self._hash("share", path) >= self.share * 2**64:
            return None
        kinds = tuple(Fault)
        return kinds[self._hash("kind", path) % len(kinds)]

    def _pick_one_of_each(self) -> dict[str, Fault]:
        pages = [f"{name}.html" for name in sys.builtin_module_names[:_PICKED_AMONG]]
        pages.sort(key=lambda path: self._hash("picked", path))
        return dict(zip(pages, Fault, strict=False))

    def _hash(self, purpose: str, path: str) -> int:
        digest = blake2b(f"{self.seed}/{purpose}/{path}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")


def commit(fault: Fault) -> object:
    """Go wrong as ``fault`` says.

    Returns:
        For ``UNPICKLABLE`` an object that no pickle can hold. The other kinds do not return.

    Raises:
        PlannedError: For ``RAISE``.
    """
    return _DEEDS[fault]()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()  # a deadlock, as real handlers hang: no CPU, and nobody to wake it


def _raise() -> None:
    raise PlannedError("this page's handler was chosen to raise")


_DEEDS: dict[Fault, Callable[[], object]] = {
    Fault.ABORT: os.abort,
    Fault.SEGFAULT: lambda: ctypes.string_at(0),
    Fault.KILL: _kill,
    Fault.HANG: _hang,
    Fault.RAISE: _raise,
    Fault.UNPICKLABLE: threading.Lock,  # a lambda would not do: it can travel by value
}
