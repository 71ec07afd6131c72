"""poolwatch and its peers, side by side: ``python -m benchmarks``.

Every figure comes from a process of its own, peers in turn within a round. The full run takes about
an hour, ``--quick`` about a minute. Tables, pictures and raw data go into ``benchmarks/results``;
``benchmarks/README.md`` says what the workloads are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine, plots, report
from benchmarks.children import ROOT, end_on_sigterm
from benchmarks.peers import PEERS
from benchmarks.report import Run
from benchmarks.runner import Plan, Sample, run_rounds
from benchmarks.workloads import WORKLOADS, Workload, workload_of

_ROUNDS = 7
_QUICK_ROUNDS = 1


def main() -> int:
    """Measure and write."""
    options = _options()
    end_on_sigterm()
    run = report.load(options.again) if options.again else _measure(options)
    stem = options.again.stem if options.again else _stem(options)
    options.output.mkdir(parents=True, exist_ok=True)
    report.save(run, options.output / f"{stem}.json")
    pictures = plots.draw(run, options.output, stem)
    page = report.markdown(run, pictures)
    (options.output / f"{stem}.md").write_text(page)
    if options.readme:
        report.update_readme(ROOT / "README.md", run)
    print(page)
    return 0


def _measure(options: argparse.Namespace) -> Run:
    names = [peer.name for peer in PEERS if peer.is_quick or not options.quick]
    plan = Plan(
        workloads=options.only or WORKLOADS,
        peers=options.peers or names,
        rounds=options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS),
        quick=options.quick,
        named=options.peers is not None,
    )
    surroundings = machine.describe()
    samples = run_rounds(plan, _tell)
    return Run(surroundings, machine.versions(plan.peers), plan.quick, plan.rounds, samples)


def _tell(sample: Sample) -> None:
    """Show each run on the terminal, with the part of the processors that others have used."""
    figures = ", ".join(f"{name} {report.number(f)}" for name, f in sample.figures.items())
    words = figures or f"{sample.problem} {sample.detail.splitlines()[-1:]}"
    print(
        f"{sample.round} {sample.workload:11} {sample.peer:39} {words} ({sample.others:.0%})",
        file=sys.stderr,
    )


def _stem(options: argparse.Namespace) -> str:
    """Return the name of the files, so that a part does not overwrite the whole."""
    if options.only or options.peers:
        return "partial"
    return "quick" if options.quick else "full"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--quick", action="store_true", help="smaller sizes, fewer peers, one round")
    add("--only", type=_workloads, help="workloads, separated by commas")
    add("--peers", type=_peers, help="peers, separated by commas; the start of a name will do")
    add("--rounds", type=int, help=f"default {_ROUNDS}, with --quick {_QUICK_ROUNDS}")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder")
    add("--readme", action="store_true", help="put the table into README.md")
    add("--again", type=Path, metavar="JSON", help="measure nothing; report an earlier run again")
    return parser.parse_args()


def _workloads(text: str) -> list[Workload]:
    try:
        chosen = {workload_of(name).name for name in text.split(",")}
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"no workload {error}") from error
    return [workload for workload in WORKLOADS if workload.name in chosen]


def _peers(text: str) -> list[str]:
    starts = tuple(text.split(","))
    unknown = [s for s in starts if not any(peer.name.startswith(s) for peer in PEERS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"no peer {', '.join(unknown)}")
    return [peer.name for peer in PEERS if peer.name.startswith(starts)]


if __name__ == "__main__":
    sys.exit(main())
