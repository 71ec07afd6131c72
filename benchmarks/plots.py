"""The results as pictures: throughput, latency, payloads; one small chart for each workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import MULTIPROCESSING, OWN, PEERS
from benchmarks.report import Run, number
from benchmarks.results import Results, find_row, spread_of
from benchmarks.targets import LIMIT

_OWN_COLOUR = "#0b6e8f"
_OTHER_COLOUR = "#b9c0c5"
_LIMIT_COLOUR = "#c8641e"
_SHORT = {"concurrent.futures.ProcessPoolExecutor": "futures.ProcessPoolExecutor"}
_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "poolwatch",  # the same data give the same file
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        peer: whose.
        length: how long.
        label: what is written at its end.
    """

    peer: str
    length: float
    label: str


Bars = Callable[[Results, str], list[Bar]]


def ratio_bars(results: Results, name: str) -> list[Bar]:
    """Return rates as multiples of the older standard pool's in the same round."""
    workload, row = find_row(name)
    base = results.series(workload, row, MULTIPROCESSING)
    bars = []
    for peer in _known(results):
        series = results.series(workload, row, peer)
        ratios = spread_of(series[n] / base[n] for n in series.keys() & base.keys())
        rate = spread_of(series.values())
        if ratios is not None and rate is not None:
            bars.append(Bar(peer, ratios.median, f"{number(rate.median)}/s"))
    return bars


def figure_bars(results: Results, name: str) -> list[Bar]:
    """Return the medians of a figure."""
    workload, row = find_row(name)
    bars = []
    for peer in [*_known(results), LIMIT]:
        spread = results.spread(workload, row, peer)
        if spread is not None:
            bars.append(Bar(peer, spread.median, f"{number(spread.median)} {row.unit}"))
    return bars


def _known(results: Results) -> list[str]:
    return [peer.name for peer in PEERS if peer.name in results.peers]


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture.

    Attributes:
        name: of the file.
        title: above it.
        rows: of the table, a chart each.
        bars: what is drawn of them.
    """

    name: str
    title: str
    rows: tuple[str, ...]
    bars: Bars


PLOTS = (
    Plot(
        "throughput",
        "Jobs a second, as multiples of multiprocessing.Pool (longer is better)",
        ("noop", "noop8", "map1", "imap1"),
        ratio_bars,
    ),
    Plot(
        "latency",
        "One job there and back (shorter is better)",
        ("roundtrip", "roundtrip99"),
        figure_bars,
    ),
    Plot(
        "payloads",
        "Payloads there and back (shorter is better)",
        ("bytes100k", "numpy8", "numpy64"),
        figure_bars,
    ),
)


def draw(run: Run, folder: Path, stem: str) -> list[str]:
    """Draw what there is to draw; return the names of the files."""
    import matplotlib as mpl

    mpl.use("svg")
    results = Results(run.samples)
    names = []
    with mpl.rc_context(_STYLE):
        for plot in PLOTS:
            charts = [(row, bars) for row in plot.rows if (bars := plot.bars(results, row))]
            if charts:
                names.append(f"{stem}-{plot.name}.svg")
                _draw(plot, charts, folder / names[-1])
    return names


def _draw(plot: Plot, charts: Sequence[tuple[str, list[Bar]]], file: Path) -> None:
    from matplotlib import pyplot

    most = max(len(bars) for _, bars in charts)
    size = (2.2 + 2.4 * len(charts), 1.0 + 0.27 * most)
    figure, axes = pyplot.subplots(1, len(charts), figsize=size, sharey=True, squeeze=False)
    places = _places(charts)
    for axis, (name, bars) in zip(axes[0], charts, strict=True):
        _chart(axis, name, bars, places)
    figure.suptitle(plot.title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _places(charts: Sequence[tuple[str, list[Bar]]]) -> list[str]:
    """Return the peers from top to bottom: as in the table, those that appear at all."""
    shown = {bar.peer for _, bars in charts for bar in bars}
    return [peer for peer in [*(peer.name for peer in PEERS), LIMIT] if peer in shown]


def _chart(axis: Any, name: str, bars: list[Bar], places: list[str]) -> None:
    heights = [places.index(bar.peer) for bar in bars]
    colours = [_colour(bar.peer) for bar in bars]
    drawn = axis.barh(heights, [bar.length for bar in bars], color=colours, height=0.7)
    axis.bar_label(drawn, [bar.label for bar in bars], padding=3, fontsize=8)
    axis.set_yticks(range(len(places)), [_SHORT.get(peer, peer) for peer in places])
    axis.set_ylim(len(places) - 0.5, -0.5)
    axis.margins(x=0.45)  # room for the labels
    axis.set_title(name, fontsize=9)
    axis.tick_params(left=False)


def _colour(peer: str) -> str:
    return {OWN: _OWN_COLOUR, LIMIT: _LIMIT_COLOUR}.get(peer, _OTHER_COLOUR)
