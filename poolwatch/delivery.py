"""The delivery thread: the only one of the pool's own threads that runs the user's callbacks.

Callbacks, hooks, listeners and log handlers run here, in order. One that blocks delays the ones
behind it, and the readiness of jobs that have callbacks; never deaths, limits or dispatch. Pickling
that has to be done anew, and the settling of futures without callbacks, have threads of their own,
for the same reason. (A policy is asked in the supervisor's thread, guarded; it must not block.)
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("poolwatch")


class Delivery:
    """A queue of things to call, and the thread that calls them.

    Args:
        name: of the thread.
        substitute: takes over when the thread, which starts when it is needed, cannot be started.
    """

    def __init__(self, name: str, substitute: Delivery | None = None) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._substitute = substitute
        self._calls: deque[None] = deque()  # one for each call that is not over
        self._busy_since: float | None = None
        self._started = False
        self._stopped = False
        self._then: Callable[[], object]

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no more threads to be had.
        """
        self._thread.start()
        self._started = True

    def put(self, call: Callable[[], object]) -> None:
        """Have something called, after everything that was put before. Any thread.

        Once stopped, it is called at once: there is nobody else left to do it.
        """
        if self._stopped:
            _guarded(call)
            return
        if not self._started and self._substitute is not None:
            try:
                self.start()
            except RuntimeError:
                self._substitute.put(call)
                return
        self._calls.append(None)
        self._queue.put(call)

    @property
    def pending(self) -> int:
        """How many calls are not over."""
        return len(self._calls)

    def busy_seconds(self) -> float:
        """Return for how long the call has been running that runs now; 0 when none does."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def stop(self, then: Callable[[], object] = lambda: None) -> None:
        """End the thread once it has called everything that was put before.

        Args:
            then: called last, in the thread; at once where none was started.
        """
        self._then = then
        self._queue.put(None)
        if not self._started:
            self._stopped = True
            then()

    def is_alive(self) -> bool:
        """Return True when the thread runs, or has not been needed yet."""
        return not self._started or self._thread.is_alive()

    def is_current(self) -> bool:
        """Return True when called from inside the thread."""
        return self._thread is threading.current_thread()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread's end; at once when called from inside it."""
        if not self._started or self.is_current():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            self._busy_since = time.monotonic()
            _guarded(call)
            self._busy_since = None
            del call
            self._calls.popleft()
        self._stopped = True
        while not self._queue.empty():
            late = self._queue.get()
            if late is not None:
                _guarded(late)
                self._calls.popleft()
        self._then()


def _guarded(call: Callable[[], object]) -> None:
    try:
        call()
    except BaseException:  # noqa: BLE001
        # What the user's own code raises is caught where it is called, by name. This is for a bug
        # of ours: it must not take the deliveries behind it along.
        try:
            logger.exception("a delivery failed")
        except BaseException:  # noqa: BLE001
            pass  # the user's log handler; there is nobody left to tell
