"""The methods of ``TaskPool`` that say how many processes there are, and renew them."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger

from poolwatch import checks
from poolwatch.exceptions import PoolBroken
from poolwatch.integrations.celery.child import before_fork
from poolwatch.integrations.celery.slots import Slots
from poolwatch.pool import Pool

logger = get_logger("celery.pool")


class Sizing:
    """Part of ``TaskPool``."""

    _pool: Pool | None
    _target: int  # how many processes there are to be
    _slots: Slots

    @property
    def num_processes(self) -> int:
        """How many processes there are to be; autoscale and the prefetch count go by it."""
        return self._target

    def grow(self, n: int = 1) -> None:
        """Have ``n`` processes more.

        Nothing happens once the pool is closed or broken. (Where Celery's autoscaler is a thread,
        an error would end the whole worker at once, in the middle of its last tasks.)

        Raises:
            TypeError: not a whole number.
            ValueError: less than 1.
        """
        count = checks.whole("n", n)
        if self._resize(self._target + count):
            self._slots.grow(count)

    def shrink(self, n: int = 1) -> None:
        """Have ``n`` processes fewer; those that run a task end it first.

        At 0 one process is kept, but no task is handed over before the pool grows. Nothing happens
        once the pool is closed or broken.

        Raises:
            TypeError: not a whole number.
            ValueError: less than 1, or more than there are.
        """
        count = checks.whole("n", n)
        if count > self._target:
            raise ValueError(f"n must not be more than the number of processes ({self._target})")
        if not self._resize(self._target - count):
            return
        self._slots.shrink(count)
        if not self._target and self._slots.bounded:
            logger.warning("The pool has been shrunk to nothing: no task runs before it grows.")

    def _resize(self, target: int) -> bool:
        """Have another number of processes; return False when the pool has ended, or will."""
        more = max(1, target) - max(1, self._target)
        pool = self._pool
        if pool is not None:
            try:
                pool._core.check_open()
                if more > 0:
                    pool.grow(more)
                elif more < 0:
                    pool.shrink(-more)
            except (PoolBroken, ValueError):
                if pool._core.is_closed:
                    return False
                raise
        self._target = target
        return True

    def maintain_pool(self, *args: Any, **kwargs: Any) -> None:
        """Have the pool look whether processes are missing; it does so by itself."""
        if self._pool is not None:
            self._pool.maintain_pool()

    def restart(self) -> None:
        """Replace all processes, the idle ones too, by ones made from the program as it is now.

        Returns at once; running tasks end in the old processes.

        Raises:
            PoolBroken, OSError: as ``Pool.restart``.
        """
        if self._pool is not None:
            before_fork(type(self))
            self._pool.restart()
