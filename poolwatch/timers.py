"""A heap of deadlines that can be called off without searching for them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Timer:
    """One deadline.

    Attributes:
        when: monotonic seconds.
        callback: what to call; None once it has fired or was called off.
    """

    __slots__ = ("_heap", "callback", "when")

    def __init__(self, heap: TimerHeap, when: float, callback: Callable[[], object]) -> None:
        self._heap = heap
        self.when = when
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Call it off; may be called more than once, and after it has fired."""
        if self.callback is not None:
            self.callback = None
            self._heap.note_cancelled()


class TimerHeap:
    """Deadlines in order of time, and of their making where times are equal."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0

    def add(self, when: float, callback: Callable[[], object]) -> Timer:
        """Have something called at a time (monotonic seconds)."""
        timer = Timer(self, when, callback)
        heapq.heappush(self._heap, (when, next(self._numbers), timer))
        return timer

    def note_cancelled(self) -> None:
        """Rebuild once more than half is dead: jobs with an hour's limit end within seconds."""
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_deadline(self) -> float | None:
        """Return the time of the first deadline, or None when there is none."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
            self._cancelled = max(0, self._cancelled - 1)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> list[Callable[[], object]]:
        """Remove and return what is due."""
        due = []
        while (when := self.next_deadline()) is not None and when <= now:
            timer = heapq.heappop(self._heap)[2]
            if timer.callback is not None:
                due.append(timer.callback)
                timer.callback = None
        return due

    def __len__(self) -> int:
        return len(self._heap)
