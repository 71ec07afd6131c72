"""What is measured, and what is aimed at.

A workload is one run of one peer in a process of its own; it gives one or more figures, and each of
them is a row of the table. To add one, write its measure and put it in ``WORKLOADS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measures import faults, footprint, latency, life, throughput
from benchmarks.measures.common import Figures
from benchmarks.peers import BILLIARD, MULTIPROCESSING, OWN, PEERS, Peer
from benchmarks.targets import BEST, LIMIT, Target, at_least, at_most, not_slower

_ALL = tuple(peer.name for peer in PEERS)
_COMMON = (OWN, MULTIPROCESSING)
_ALONE = (OWN,)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a workload.

    Attributes:
        name: for the table and the command line.
        figure: its key among the figures of a run.
        unit: of the figure.
        title: what it is, in a line.
        targets: what is aimed at.
        rate: whether more is better.
    """

    name: str
    figure: str
    unit: str
    title: str
    targets: tuple[Target, ...] = ()
    rate: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """One run of a peer.

    Attributes:
        name: for the command line of a run.
        measure: as ``measure(peer, quick)``, in a process of its own.
        rows: its figures.
        limit: the same for the bare limit, where there is one.
        peers: those that it is run with.
        quick_peers: those that it is run with when time is short.
        deadline: seconds that a run may take.
    """

    name: str
    measure: Callable[[Peer, bool], Figures]
    rows: tuple[Row, ...]
    limit: Callable[[bool], Figures] | None = None
    peers: tuple[str, ...] = _ALL
    quick_peers: tuple[str, ...] = _ALL
    deadline: float = 60.0


def _rate(name: str, title: str, *targets: Target) -> tuple[Row]:
    return (Row(name, "rate", "jobs/s", title, targets, rate=True),)


def _time(name: str, figure: str, unit: str, title: str, *targets: Target) -> Row:
    return Row(name, figure, unit, title, targets)


def _scale(peer: Peer, quick: bool) -> Figures:
    from benchmarks.measures.scale import scale  # poolwatch's inside, which no other run may load

    return scale(peer, quick)


WORKLOADS = (
    Workload(
        "noop",
        throughput.noop,
        _rate(
            "noop",
            "no-ops, all submitted, then all got",
            at_least(3, MULTIPROCESSING, note=" (goal 5)"),
            at_least(6, BILLIARD),
        ),
        limit=throughput.noop_limit,
    ),
    Workload(
        "noop8",
        throughput.noop_threads,
        _rate("noop8", "the same from 8 threads", not_slower(row="noop", rate=True)),
    ),
    Workload(
        "many",
        throughput.many_workers,
        _rate("many", "as `noop` with 64 workers", at_least(0.7, row="noop")),
        quick_peers=_COMMON,
    ),
    Workload(
        "roundtrip",
        latency.round_trip,
        (
            _time(
                "roundtrip",
                "p50",
                "µs",
                "one no-op there and back, p50",
                at_most(0.5, MULTIPROCESSING),
                at_most(2, LIMIT),
            ),
            _time("roundtrip99", "p99", "µs", "the same, p99"),
        ),
        limit=latency.round_trip_limit,
    ),
    Workload(
        "numpy8",
        latency.array_8,
        (_time("numpy8", "ms", "ms", "array of 8 MB there and back", at_most(0.333, BEST)),),
    ),
    Workload(
        "numpy64",
        latency.array_64,
        (_time("numpy64", "ms", "ms", "array of 64 MB there and back", at_most(0.333, BEST)),),
    ),
    Workload(
        "bytes100k",
        latency.bytes_100k,
        (_time("bytes100k", "us", "µs", "100 KB of bytes there and back", not_slower(BEST)),),
        limit=latency.bytes_100k_limit,
    ),
    Workload(
        "map",
        throughput.map_default,
        _rate("map", "map of no-ops, default chunks", at_least(0.8, MULTIPROCESSING)),
    ),
    Workload(
        "map50us",
        throughput.map_short,
        _rate("map50us", "map of 50 µs items, default chunks", at_least(0.95, BEST)),
    ),
    Workload(
        "map1",
        throughput.map_single,
        _rate("map1", "map of no-ops, chunksize=1", at_least(3, MULTIPROCESSING)),
        deadline=90.0,
    ),
    Workload(
        "imap1",
        throughput.imap_single,
        _rate("imap1", "imap_unordered of no-ops, chunksize=1", at_least(3, MULTIPROCESSING)),
    ),
    Workload(
        "headofline",
        throughput.head_of_line,
        (
            _time(
                "headofline",
                "ms",
                "ms",
                "400 no-ops done around a job of 1 s",
                at_most(1.3, MULTIPROCESSING),
            ),
        ),
    ),
    Workload(
        "loss",
        faults.loss,
        (_time("loss", "ms", "ms", "worker killed: loss known", at_most(10)),),
    ),
    Workload(
        "recover",
        faults.recovery,
        (_time("recover", "ms", "ms", "worker killed: next result", at_most(15)),),
    ),
    Workload(
        "recover1g",
        faults.recovery_large,
        (
            _time(
                "recover1g",
                "ms",
                "ms",
                "worker killed: next result, parent of 1 GB",
                at_most(1.5, row="recover"),
            ),
        ),
        peers=_ALONE,
        quick_peers=_ALONE,
    ),
    Workload(
        "start",
        life.start_and_close,
        (
            _time(
                "start",
                "start",
                "ms",
                "pool of 8 made and all at work",
                not_slower(MULTIPROCESSING),
            ),
            _time("close", "close", "ms", "idle pool of 8 closed", not_slower(MULTIPROCESSING)),
        ),
    ),
    Workload(
        "idle",
        footprint.wake_ups,
        (_time("idle", "wakeups", "/s", "wake-ups of an idle pool of 4", at_most(0)),),
        quick_peers=_COMMON,
    ),
    Workload(
        "backlog",
        footprint.backlog,
        (
            _time("backlog", "bytes", "B", "memory of a waiting job", at_most(1024)),
            _time("submit", "submit", "µs", "submission while the workers are busy"),
            _time(
                "submitcost",
                "bound",
                "x",
                "... over (2 x pickle.dumps of the call + 3 µs)",
                at_most(1),
            ),
            _time("submitlate", "late", "x", "... last tenth over first tenth", not_slower()),
        ),
    ),
    Workload(
        "memory",
        footprint.memory,
        (
            _time(
                "memory",
                "mb",
                "MB",
                "unique memory of 8 workers",
                at_most(1, MULTIPROCESSING),
            ),
            _time("memoryall", "all", "MB", "... and of all helper processes"),
        ),
    ),
    Workload(
        "scale",
        _scale,
        (
            _time(
                "scale",
                "growth",
                "x",
                "supervisor's time for a job, 1 to 256 workers: most over least",
                at_most(1.3),
            ),
            _time("scale1", "one", "µs", "... with 1 worker"),
            _time("scale256", "most", "µs", "... with 256 workers"),
        ),
        peers=_ALONE,
        quick_peers=_ALONE,
    ),
)


def workload_of(name: str) -> Workload:
    """Return the workload of that name, or the one with a row of that name.

    Raises:
        KeyError: there is none.
    """
    for workload in WORKLOADS:
        if name in (workload.name, *(row.name for row in workload.rows)):
            return workload
    raise KeyError(name)
