"""The delivery thread: the only one of the pool's own threads that runs the user's code.

Callbacks, hooks and listeners run here, in order. One that blocks delays the ones behind it, and
the readiness of jobs that have callbacks; never deaths, limits or dispatch.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger("poolwatch")


class Delivery:
    """A queue of things to call, and the thread that calls them; the thread starts when needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, call: Callable[[], object]) -> None:
        """Have something called, after everything that was put before. Any thread."""
        self._queue.put(call)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name=f"{self._name}-delivery", daemon=True
                    )
                    self._thread.start()

    def stop(self) -> None:
        """End the thread once it has called everything that was put before."""
        if self._thread is not None:
            self._queue.put(None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; at once when called from inside it."""
        if self._thread is None or self._thread is threading.current_thread():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            try:
                call()
            except BaseException:
                # What the user's own code raises is caught where it is called, by name. This is
                # for a bug of ours: it must not take the deliveries behind it along.
                logger.exception("a delivery failed")
            del call
