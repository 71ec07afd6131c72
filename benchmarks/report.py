"""The results as text: a wide table of all peers, a narrow one for the README, and raw data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers import MULTIPROCESSING, OWN, PEERS
from benchmarks.results import Results, Spread, Verdict
from benchmarks.runner import Sample
from benchmarks.targets import LIMIT
from benchmarks.workloads import WORKLOADS, Row, Workload

BEGIN = "<!-- benchmarks:begin -->"
END = "<!-- benchmarks:end -->"
_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Run:
    """All that is kept of a run.

    Attributes:
        machine: where it was.
        versions: of whom.
        quick: with small sizes.
        rounds: how many.
        samples: the figures.
    """

    machine: dict[str, str]
    versions: dict[str, str]
    quick: bool
    rounds: int
    samples: list[Sample]


def save(run: Run, file: Path) -> None:
    """Write the raw data, with a line for each sample."""
    data = asdict(run)
    samples = ",\n".join(json.dumps(sample) for sample in data.pop("samples"))
    head = json.dumps(data, indent=1).removesuffix("\n}")
    file.write_text(f'{head},\n "samples": [\n{samples}\n]}}\n')


def load(file: Path) -> Run:
    """Read the raw data of an earlier run.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not such a file.
    """
    data = json.loads(file.read_text())
    data["samples"] = [Sample(**sample) for sample in data["samples"]]
    return Run(**data)


# -- numbers and cells -------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a figure with three digits that mean something."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}".replace(",", " ")


def spread_text(spread: Spread | None, gap: str = " ") -> str:
    """Return a median and, of more than one value, its spread in brackets."""
    if spread is None:
        return _NOTHING
    if spread.count == 1:
        return number(spread.median)
    return f"{number(spread.median)}{gap}({number(spread.low)} to {number(spread.high)})"


def cell_text(results: Results, workload: Workload, row: Row, peer: str, gap: str = " ") -> str:
    """Return what a peer has to show in a row."""
    samples = results.cell(workload, peer)
    problems = list(dict.fromkeys(sample.problem for sample in samples if sample.problem))
    spread = results.spread(workload, row, peer)
    if spread is None:
        return "; ".join(problems) or _NOTHING
    text = spread_text(spread, gap)
    if results.breaks(workload, peer):
        problems.append("the pool is broken then")
    return gap.join([text, *problems])


def verdicts(results: Results, workload: Workload, row: Row) -> list[Verdict]:
    """Return what has become of a row's targets."""
    return [results.verdict(workload, row, target) for target in row.targets]


def _ratio_text(verdict: Verdict) -> str:
    if verdict.target.is_absolute:
        return _NOTHING
    named = verdict.target.peer == verdict.against or verdict.target.row is not None
    whom = "" if named or verdict.spread is None else f" {verdict.against}"
    return spread_text(verdict.spread) + whom


def _reached_text(verdict: Verdict) -> str:
    return {True: "yes", False: "**no**", None: _NOTHING}[verdict.is_reached]


def _target_cells(results: Results, workload: Workload, row: Row) -> list[str]:
    found = verdicts(results, workload, row)
    return [
        "<br>".join(verdict.target.text for verdict in found),
        "<br>".join(_ratio_text(verdict) for verdict in found),
        "<br>".join(_reached_text(verdict) for verdict in found),
    ]


# -- tables ------------------------------------------------------------------------------------


def _measured(results: Results) -> list[tuple[Workload, Row]]:
    names = {sample.workload for sample in results.samples}
    return [(work, row) for work in WORKLOADS if work.name in names for row in work.rows]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, [" --- "] * len(head), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def wide_table(results: Results) -> str:
    """Return the table with a column for each peer."""
    known = [peer.name for peer in PEERS if peer.name in results.peers]
    columns = [*known, LIMIT]
    head = ["", *(f"`{peer}`" for peer in known), LIMIT, "target", "ratio", "reached"]
    lines = []
    for workload, row in _measured(results):
        cells = [cell_text(results, workload, row, peer, "<br>") for peer in columns]
        name = f"`{row.name}`: {row.title}, {row.unit}"
        lines.append([name, *cells, *_target_cells(results, workload, row)])
    return _table(head, lines)


def narrow_table(results: Results) -> str:
    """Return the table with poolwatch, the older standard pool, the best of all, and the limit."""
    head = ["", "unit", f"`{OWN}`", f"`{MULTIPROCESSING}`", "best other", LIMIT]
    lines = []
    for workload, row in _measured(results):
        cells = [cell_text(results, workload, row, peer) for peer in (OWN, MULTIPROCESSING)]
        cells.append(_best_text(results, workload, row))
        cells.append(cell_text(results, workload, row, LIMIT))
        name = f"`{row.name}`: {row.title}"
        lines.append([name, row.unit, *cells, *_target_cells(results, workload, row)])
    return _table([*head, "target", "ratio", "reached"], lines)


def _best_text(results: Results, workload: Workload, row: Row) -> str:
    best = results.best_peer(workload, row)
    if best is None:
        return _NOTHING
    return f"{spread_text(results.spread(workload, row, best))} `{best}`"


# -- texts around them -------------------------------------------------------------------------


def conditions(run: Run) -> str:
    """Return how and where it was measured, in a paragraph."""
    machine = "; ".join(f"{name}: {text}" for name, text in run.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    size = "small sizes" if run.quick else "full sizes"
    return (
        f"Medians of {run.rounds} round(s), {size}; in brackets the middle half of the values, of "
        "fewer than four all of them. Every figure comes from a process of its own, peers in turn. "
        "A ratio is poolwatch's figure over the other's in the same round, and the median of "
        f"these counts. {_noise_text(run)} {machine}. {versions}."
    )


def _noise_text(run: Run) -> str:
    shares = sorted(sample.others for sample in run.samples)
    if not shares:
        return ""
    middle, worst = shares[len(shares) // 2], shares[-1]
    return f"Meanwhile others used {middle:.0%} of the processors (median; at worst {worst:.0%})."


def markdown(run: Run, plots: Sequence[str]) -> str:
    """Return the page of a run."""
    results = Results(run.samples)
    pictures = "".join(f"![{Path(plot).stem}]({plot})\n\n" for plot in plots)
    return (
        f"# Measurements\n\n{conditions(run)}\n\n{pictures}{wide_table(results)}\n\n"
        f"How each is used, with n workers:\n\n{_settings(results)}\n"
    )


def _settings(results: Results) -> str:
    known = [peer for peer in PEERS if peer.name in results.peers]
    return "\n".join(f"* {peer.name}: {peer.settings}" for peer in known)


def update_readme(readme: Path, run: Run) -> None:
    """Put the newest table between the markers.

    Raises:
        ValueError: there are none.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} lacks {BEGIN} and {END}")
    block = f"{conditions(run)}\n\n{narrow_table(Results(run.samples))}"
    readme.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")
