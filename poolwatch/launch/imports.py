"""Imports that other threads have under way when this process is forked.

Python has a lock for each module that is being imported, held by the thread that does so. In the
forked process that thread does not exist, so whoever needs the module there would wait for ever, if
only to unpickle something of it. CPython renews no more than its one lock for all imports.

So before the fork such imports are given a moment to end. Not more: the thread may be waiting for
this very pool, which is made while a module is imported, and used there. In the forked process the
locks are dropped: a module that was not finished is seen there as far as it had come.
"""

from __future__ import annotations

import importlib._bootstrap as bootstrap
import time
import weakref
from _thread import get_ident
from typing import Any

PATIENCE = 0.2  # seconds

_LOOK_EVERY = 0.001
_locks: dict[str, Any] = getattr(bootstrap, "_module_locks", {})  # by name of the module, weakly
_in_vain: weakref.WeakSet[Any] = weakref.WeakSet()  # those that have been waited for already


def let_others_finish() -> None:
    """Wait until no other thread imports anything, but only for a moment. Before a fork."""
    deadline = time.monotonic() + PATIENCE
    while held := _held_by_others():
        if time.monotonic() > deadline:
            _in_vain.update(held)
            return
        time.sleep(_LOOK_EVERY)


def _held_by_others() -> list[Any]:
    own = get_ident()
    locks = [reference() for reference in list(_locks.values())]
    return [
        lock
        for lock in locks
        if getattr(lock, "owner", None) not in (None, own) and lock not in _in_vain
    ]


def forget_others() -> None:
    """Drop the locks that only threads of the parent would let go. In the forked process."""
    own = get_ident()
    for name, reference in list(_locks.items()):
        if getattr(reference(), "owner", None) != own:
            _locks.pop(name, None)
