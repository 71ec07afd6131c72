"""What can be seen while the crawl runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from poolwatch.cli.demo.account import Cause, by_cause
from poolwatch.cli.demo.records import WorkerRow

_RATE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The crawl at one moment.

    Attributes:
        elapsed: Seconds since it began.
        found: Pages found.
        ended: Pages whose job has ended.
        workers: The workers alive.
        failed: Failed pages by cause.
    """

    elapsed: float
    found: int
    ended: int
    workers: list[WorkerRow]
    failed: Counter[Cause]


class View(Protocol):
    """Shows snapshots; a context manager for as long as it has the screen."""

    @property
    def period(self) -> float:
        """Seconds between two snapshots."""

    @property
    def in_place(self) -> bool:
        """Whether a snapshot replaces the one before, so that the last must show the end."""

    def show(self, snapshot: Snapshot) -> None:
        """Show one snapshot."""

    def __enter__(self) -> View:
        """Take the screen."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give it back."""


def make_view(plain: bool) -> View:
    """Return plain lines, or the live view."""
    return PlainView() if plain else LiveView(Console())


class _Rate:
    """Pages per second over the last few seconds."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int]] = deque([(0.0, 0)])

    def update(self, elapsed: float, ended: int) -> float:
        self._past.append((elapsed, ended))
        while len(self._past) > 2 and elapsed - self._past[0][0] > _RATE_SECONDS:
            self._past.popleft()
        seconds = elapsed - self._past[0][0]
        return (ended - self._past[0][1]) / seconds if seconds > 0 else 0.0


class PlainView:
    """One line a second."""

    period = 1.0
    in_place = False

    def __init__(self) -> None:
        self._rate = _Rate()

    def show(self, snapshot: Snapshot) -> None:
        rate = self._rate.update(snapshot.elapsed, snapshot.ended)
        failed = ", ".join(f"{cause.value} {n}" for cause, n in by_cause(snapshot.failed))
        print(
            f"{snapshot.elapsed:5.1f} s  {snapshot.ended}/{snapshot.found} pages  "
            f"{rate:.1f} pages/s  {len(snapshot.workers)} workers  failed: {failed or 'none'}",
            flush=True,
        )

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


class LiveView:
    """Rate, workers and losses, drawn in place four times a second."""

    period = 0.25
    in_place = True

    def __init__(self, console: Console) -> None:
        self._rate = _Rate()
        # No refresh thread: the crawl's loop draws, and only when it has something new to show.
        self._live = Live(console=console, auto_refresh=False)

    def show(self, snapshot: Snapshot) -> None:
        rate = self._rate.update(snapshot.elapsed, snapshot.ended)
        self._live.update(render(snapshot, rate), refresh=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()


def render(snapshot: Snapshot, rate: float) -> Group:
    """Return the live view of a snapshot."""
    head = Text(
        f"{snapshot.elapsed:6.1f} s   {snapshot.ended}/{snapshot.found} pages   {rate:.1f} pages/s",
        style="bold",
    )
    tables = Table.grid(padding=(0, 4))
    tables.add_row(_workers_table(snapshot.workers), _failed_table(snapshot.failed))
    return Group(head, tables)


def _workers_table(workers: list[WorkerRow]) -> Table:
    table = Table(title="workers", title_justify="left", box=None)
    for name in ("pid", "phase", "job", "for", "age"):
        table.add_column(name, justify="left" if name in ("phase", "job") else "right")
    for row in workers:
        table.add_row(
            str(row.pid),
            row.phase or "?",
            Text(row.page or "", overflow="ellipsis", no_wrap=True),
            _seconds(row.job_seconds),
            _seconds(row.age),
        )
    return table


def _failed_table(failed: Counter[Cause]) -> Table:
    table = Table("cause", title="failed pages", title_justify="left", box=None)
    table.add_column("pages", justify="right")
    for cause, number in by_cause(failed):
        table.add_row(cause.value, str(number))
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
