"""Rounds of runs: each in a fresh process, peers in turn."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks import children
from benchmarks.measures.common import Figures
from benchmarks.targets import LIMIT
from benchmarks.workloads import Workload

_PROBLEMS_ENOUGH = 2  # runs without figures, after which a peer's later rounds are left out
_NOISE = 0.1  # of all processors, used by others, which makes a run worth another try
_TRIES = 3
NOT_OFFERED = "not offered"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    Attributes:
        round: number of its round, from 1.
        workload: name of the workload.
        peer: name of the peer.
        figures: what it gave; empty when there was a problem.
        problem: why there are no figures, or empty.
        detail: more about that.
        others: what part of all processors was used by others meanwhile.
    """

    round: int
    workload: str
    peer: str
    figures: Figures = field(default_factory=dict)
    problem: str = ""
    detail: str = ""
    others: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        workloads: in this order within a round.
        peers: names, in this order within a workload, another one first in each round.
        rounds: how many.
        quick: with smaller sizes.
        named: the peers were asked for by name, so none is left out to save time.
    """

    workloads: Sequence[Workload]
    peers: Sequence[str]
    rounds: int
    quick: bool
    named: bool = False

    def peers_of(self, workload: Workload, number: int) -> list[str]:
        """Return whom a workload is run with in a round."""
        allowed = workload.quick_peers if self.quick and not self.named else workload.peers
        peers = [peer for peer in self.peers if peer in allowed]
        if workload.limit is not None:
            peers.append(LIMIT)
        first = number % max(1, len(peers))
        return peers[first:] + peers[:first]


def run_once(workload: Workload, peer: str, quick: bool, number: int) -> Sample:
    """Run a workload with a peer in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.one", "--peer", peer, "--workload", workload.name]
    ended = children.run([*command, "--quick"] if quick else command, workload.deadline)
    sample = functools.partial(Sample, number, workload.name, peer, others=ended.others)
    if ended.code is None:
        problem = f"hangs ({workload.deadline:g} s)"
        return sample(problem=problem, detail=ended.errors)
    try:
        said = json.loads(ended.output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        problem = f"the caller dies (exit code {ended.code})"
        return sample(problem=problem, detail=ended.errors)
    return sample(**said)


def run_in_peace(workload: Workload, peer: str, quick: bool, number: int) -> Sample:
    """Run again when others have used the processors meanwhile; return the quietest run."""
    samples: list[Sample] = []
    for _ in range(1 if quick else _TRIES):
        samples.append(run_once(workload, peer, quick, number))
        if samples[-1].problem or samples[-1].others <= _NOISE:
            break
    return min(samples, key=lambda sample: sample.others)


def run_rounds(plan: Plan, on_sample: Callable[[Sample], object]) -> list[Sample]:
    """Run all that is planned; tell of each run when it has ended."""
    samples: list[Sample] = []
    for number in range(1, plan.rounds + 1):
        for workload in plan.workloads:
            for peer in plan.peers_of(workload, number):
                if not _is_hopeless(samples, workload, peer):
                    samples.append(run_in_peace(workload, peer, plan.quick, number))
                    on_sample(samples[-1])
    return samples


def _is_hopeless(samples: Sequence[Sample], workload: Workload, peer: str) -> bool:
    """Whether enough runs have shown that this peer has no figures to give."""
    seen = [s for s in samples if s.workload == workload.name and s.peer == peer]
    if any(sample.figures for sample in seen):
        return False
    offered = [sample for sample in seen if not sample.problem.startswith(NOT_OFFERED)]
    return len(seen) > len(offered) or len(offered) >= _PROBLEMS_ENOUGH
