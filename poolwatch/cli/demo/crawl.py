"""The crawl: one thread that submits what is found, books what ends, and keeps the view fresh.

The pool's callbacks, its news of workers and the signal handlers only put events into one queue;
the loop sleeps on that queue until the next event, the view's next refresh or the deadline.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Iterable

from poolwatch.cli.demo.account import Account
from poolwatch.cli.demo.faults import FaultPlan
from poolwatch.cli.demo.options import DemoOptions
from poolwatch.cli.demo.pages import Page, PageOrder
from poolwatch.cli.demo.pools import CrawlPool
from poolwatch.cli.demo.records import Ended, Event, Events, Interrupted
from poolwatch.cli.demo.view import Snapshot, View

START = "index.html"
_WORKERS_SECONDS = 15.0
_DRAIN_SECONDS = 10.0


class Crawl:
    """Crawls one site in one pool.

    Attributes:
        account: The books; they are complete after ``drain``.
        interrupted: The signal that stopped the crawl, or None.
        late: Whether the deadline has cut the crawl short.
    """

    def __init__(
        self, options: DemoOptions, site: str, pool: CrawlPool, view: View, events: Events
    ) -> None:
        self.account = Account(pool.processes)
        self.interrupted: int | None = None
        self.late = False
        self._options = options
        self._plan = FaultPlan(options.seed, options.share)
        self._site = site
        self._pool = pool
        self._view = view
        self._events = events
        self._seen: set[str] = set()
        self._began = time.monotonic()
        self._next_show = self._began

    def run(self) -> None:
        """Crawl until every page has ended, the deadline has passed, or somebody interrupts."""
        deadline = self._began + self._options.deadline
        self._submit(START)
        while self.account.unended and self.interrupted is None:
            if time.monotonic() >= deadline:
                self.late = True
                return
            self._next_event(deadline)

    def await_workers(self) -> None:
        """Book the workers alive, as soon as there are as many as asked for or after 15 seconds.

        The last loss may have come a moment ago, and its replacement is then still on its way.
        """
        deadline = time.monotonic() + _WORKERS_SECONDS
        while True:
            self.account.workers_alive = len(self._pool.workers())
            whole = self.account.workers_alive == self.account.workers_asked
            if whole or self.interrupted is not None or time.monotonic() >= deadline:
                break
            self._next_event(deadline)
        if self._view.in_place:
            self._show(time.monotonic())

    def drain(self) -> None:
        """After the pool was stopped, book the ends that are still in the queue or on their way."""
        deadline = time.monotonic() + (_DRAIN_SECONDS if self._pool.ends_every_job else 0.0)
        while self.account.unended and self._next_event(deadline) is not None:
            pass

    def _next_event(self, deadline: float) -> Event | None:
        """Deal with the next event and return it; None if none came before the refresh."""
        now = time.monotonic()
        if now >= self._next_show:
            self._show(now)
        wait = max(0.0, min(deadline, self._next_show) - time.monotonic())
        try:
            event = self._take(wait)
        except queue.Empty:
            return None
        if isinstance(event, Ended):
            self._end(event)
        elif isinstance(event, Interrupted) and self.interrupted is None:
            self.interrupted = event.signum
        return event

    def _take(self, wait: float) -> Event:
        """Take the next event; it is asked without a time-out first.

        Where the time-out passes while Python 3.10's ``get`` looks for the first time, as a
        time-out of 0 may, that waits for ever.
        """
        try:
            return self._events.get_nowait()
        except queue.Empty:
            if wait <= 0:
                raise
        return self._events.get(timeout=wait)

    def _end(self, event: Ended) -> None:
        self.account.end(event)
        if isinstance(event.result, Page):
            self._follow(event.result.links)

    def _follow(self, links: Iterable[str]) -> None:
        if self.interrupted is not None or self.late:
            return
        for path in links:
            if path in self._seen:
                continue
            if self.account.found < self._options.pages:
                self._submit(path)
            else:
                self._seen.add(path)
                self.account.beyond += 1

    def _submit(self, path: str) -> None:
        self._seen.add(path)
        # Without its first page there would be no crawl, so that one is left alone.
        fault = None if path == START else self._plan.fault_of(path)
        self.account.find(path, fault)
        self._pool.submit(PageOrder(self._site, path, self._options.fetch_seconds, fault))

    def _show(self, now: float) -> None:
        self._view.show(
            Snapshot(
                elapsed=now - self._began,
                found=self.account.found,
                ended=self.account.ended,
                workers=self._pool.workers(),
                failed=Counter(self.account.failed),
            )
        )
        self._next_show = now + self._view.period
