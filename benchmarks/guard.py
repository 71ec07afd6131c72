"""A guard against regressions that survives a noisy machine: ``python -m benchmarks.guard``.

No-op jobs through poolwatch and multiprocessing.Pool, in turn, in fresh processes; some seconds in
all. It fails when poolwatch is not clearly faster by either of two measures: the median of the
ratios within rounds, and the ratio of the best rates. The bound is far below what is usual, and
there is a second try: what fails here is a real change.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, replace

from benchmarks.children import end_on_sigterm
from benchmarks.peers import MULTIPROCESSING, OWN
from benchmarks.runner import run_once
from benchmarks.workloads import Workload, workload_of

_BOUND = 1.3
_ROUNDS = 5
_TRIES = 2
_SECONDS = 10.0  # for one run, which usually takes half a second


class NoFigures(Exception):
    """A run has hung or failed, which no noise explains."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How much faster poolwatch is.

    Attributes:
        median: of the ratios within rounds.
        best: the ratio of the best rates.
    """

    median: float
    best: float

    @property
    def is_good(self) -> bool:
        """Whether either of them is as it should be."""
        return max(self.median, self.best) >= _BOUND

    def __str__(self) -> str:
        return (
            f"no-op jobs: {self.median:.2f} times as fast as {MULTIPROCESSING} (median of ratios), "
            f"{self.best:.2f} times (best rates); wanted: {_BOUND}"
        )


def attempt(rounds: int) -> Outcome:
    """Measure some rounds.

    Raises:
        NoFigures: a run has none.
    """
    workload = replace(workload_of("noop"), deadline=_SECONDS)
    own, other = [], []
    for number in range(1, rounds + 1):
        other.append(_rate(workload, MULTIPROCESSING, number))
        own.append(_rate(workload, OWN, number))
    ratios = [mine / theirs for mine, theirs in zip(own, other, strict=True)]
    return Outcome(statistics.median(ratios), max(own) / max(other))


def _rate(workload: Workload, peer: str, number: int) -> float:
    sample = run_once(workload, peer, True, number)
    if sample.problem:
        raise NoFigures(f"{peer}: {sample.problem} {sample.detail}")
    return sample.figures["rate"]


def main() -> int:
    """Measure, say what was found, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    rounds = parser.parse_args().rounds
    end_on_sigterm()
    for _ in range(_TRIES):
        try:
            outcome = attempt(rounds)
        except NoFigures as error:
            print(f"failed: {error}")
            return 1
        print(outcome)
        if outcome.is_good:
            return 0
    print("failed: poolwatch has become slower, or no longer runs jobs ahead")
    return 1


if __name__ == "__main__":
    sys.exit(main())
