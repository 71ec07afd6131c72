"""What the samples say: medians, spreads, ratios within rounds, and whether targets are reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.peers import OWN
from benchmarks.runner import Sample
from benchmarks.targets import BEST, LIMIT, Target
from benchmarks.workloads import Row, Workload, workload_of

_QUARTILES_FROM = 4  # values; of fewer, the spread is from the least to the greatest

Series = dict[int, float]  # from the number of a round to a figure


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and between what the middle half of the values lies (of few values, all)."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What has become of a target.

    Attributes:
        target: the target.
        against: whose figure was divided by, or empty.
        spread: of the ratios, or of the figure itself; None when there is none.
    """

    target: Target
    against: str
    spread: Spread | None

    @property
    def is_reached(self) -> bool | None:
        """Whether the median is within the bound; None when nothing is known."""
        return None if self.spread is None else self.target.is_reached(self.spread.median)


def spread_of(values: Iterable[float]) -> Spread | None:
    """Return median and spread, or None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= _QUARTILES_FROM:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Spread(statistics.median(ordered), low, high, len(ordered))


class Results:
    """The samples of a run, by workload and peer."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._cells: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            self._cells.setdefault((sample.workload, sample.peer), []).append(sample)

    @property
    def peers(self) -> list[str]:
        """The peers that have been run, without the bare limit, in the order of the first round."""
        return [peer for peer in dict.fromkeys(s.peer for s in self.samples) if peer != LIMIT]

    def cell(self, workload: Workload, peer: str) -> list[Sample]:
        """Return the runs of a workload with a peer."""
        return self._cells.get((workload.name, peer), [])

    def series(self, workload: Workload, row: Row, peer: str) -> Series:
        """Return a figure by round."""
        return {
            sample.round: sample.figures[row.figure]
            for sample in self.cell(workload, peer)
            if row.figure in sample.figures
        }

    def spread(self, workload: Workload, row: Row, peer: str) -> Spread | None:
        """Return median and spread of a figure."""
        return spread_of(self.series(workload, row, peer).values())

    def breaks(self, workload: Workload, peer: str) -> bool:
        """Return whether the pool was broken after a run."""
        return any(sample.figures.get("breaks") for sample in self.cell(workload, peer))

    def best_peer(self, workload: Workload, row: Row) -> str | None:
        """Return the other pool with the best median, of those that are still good afterwards."""
        medians = {
            peer: spread.median
            for peer in self.peers
            if peer != OWN
            and not self.breaks(workload, peer)
            and (spread := self.spread(workload, row, peer)) is not None
        }
        if not medians:
            return None
        return (max if row.rate else min)(medians, key=lambda peer: medians[peer])

    def ratios(self, workload: Workload, row: Row, peer: str) -> Series:
        """Return poolwatch's figure over a peer's, by round."""
        return _quotients(self.series(workload, row, OWN), self.series(workload, row, peer))

    def verdict(self, workload: Workload, row: Row, target: Target) -> Verdict:
        """Return what has become of a target."""
        own = self.series(workload, row, OWN)
        if target.is_absolute:
            return Verdict(target, "", spread_of(own.values()))
        if target.row is not None:
            other, other_row = find_row(target.row)
            quotients = _quotients(own, self.series(other, other_row, OWN))
            return Verdict(target, target.row, spread_of(quotients.values()))
        peer = self.best_peer(workload, row) if target.peer == BEST else target.peer
        if peer is None:
            return Verdict(target, "", None)
        return Verdict(target, peer, spread_of(self.ratios(workload, row, peer).values()))


def find_row(name: str) -> tuple[Workload, Row]:
    """Return a row and its workload.

    Raises:
        KeyError: there is none of that name.
    """
    workload = workload_of(name)
    return workload, {row.name: row for row in workload.rows}[name]


def _quotients(above: Series, below: Series) -> Series:
    return {
        number: above[number] / below[number]
        for number in above.keys() & below.keys()
        if below[number]
    }
