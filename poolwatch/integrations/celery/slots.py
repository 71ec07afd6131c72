"""The account of Celery's semaphore: how many tasks the consumer may have handed to the pool.

In the event loop Celery takes one unit of the semaphore for each task that it hands over, and what
finds none waits in the consumer. There a revoked task is found in time, and nothing is reserved in
the pool behind a long task. The pool gives the unit back when the task has ended, however it ended.

All of it happens in the hub's thread. Kombu's own ``grow`` and ``shrink`` lose count while tasks
wait: it would let in ``n`` too many for good, or none fewer.
"""

from __future__ import annotations

from typing import Any


class Slots:
    """Gives units back, and follows the size of the pool.

    Args:
        semaphore: kombu's; None where the worker has none (without the event loop).
    """

    def __init__(self, semaphore: Any) -> None:
        self._semaphore = semaphore
        self._surplus = 0  # units that are out although the pool has shrunk

    @property
    def bounded(self) -> bool:
        """True where tasks are handed over only while a unit is free."""
        return self._semaphore is not None

    def release(self) -> None:
        """A task has ended. If another waits, it is handed over at once."""
        if self._semaphore is None:
            return
        if self._surplus:
            self._surplus -= 1
        else:
            self._semaphore.release()

    def grow(self, count: int) -> None:
        """There are so many workers more."""
        if self._semaphore is None:
            return
        self._semaphore.initial_value += count
        for _ in range(count):
            self.release()

    def shrink(self, count: int) -> None:
        """There are so many workers fewer; what they run now goes on."""
        semaphore = self._semaphore
        if semaphore is None:
            return
        semaphore.initial_value = max(0, semaphore.initial_value - count)
        free = min(count, semaphore.value)
        semaphore.value -= free
        self._surplus += count - free

    def recount(self, running: int) -> None:
        """The connection was lost: Celery has given back all units, also of what still runs.

        Args:
            running: how many tasks are still in the pool. Each will be released once.
        """
        semaphore = self._semaphore
        if semaphore is None:
            return
        size = semaphore.initial_value
        semaphore.value = max(0, size - running)
        self._surplus = max(0, running - size)
