"""The demo's options: their parser, and one record of them."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TypeVar

N = TypeVar("N", int, float)

DEFAULT_SHARE = 0.06
DEFAULT_SEED = 6  # mixes the kinds well on the modules that every installation has
# The standard pool never notices a lost job: without a bound, its crawl would not end at all.
DEFAULT_DEADLINES = {"poolwatch": 300.0, "multiprocessing": 20.0}
# The fetch gives up well before the job's hard limit, so that a slow server (it is one thread: each
# fetch waits for those before it) shows as a fetch that timed out and never as a handler that hung.
FETCH_PART = 0.8


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo was asked to do.

    Attributes:
        pool: ``"poolwatch"`` or ``"multiprocessing"``.
        pages: Bound on the pages that are crawled.
        workers: Worker processes asked for.
        seed: Chooses, with ``share``, the pages whose handlers go wrong.
        share: Share of the pages whose handlers go wrong, 0 for none.
        timeout: Hard limit of one page's job, in seconds.
        deadline: Bound on the whole crawl, in seconds.
        plain: Plain lines, even on a terminal.
        verbose: Log every loss on standard error as it happens.
    """

    pool: str = "poolwatch"
    pages: int = 300
    workers: int = 4
    seed: int = DEFAULT_SEED
    share: float = DEFAULT_SHARE
    timeout: float = 10.0
    deadline: float = DEFAULT_DEADLINES["poolwatch"]
    plain: bool = False
    verbose: bool = False

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> DemoOptions:
        """Return the record of what ``add_arguments`` has parsed."""
        deadline = args.deadline
        return cls(
            pool=args.pool,
            pages=args.pages,
            workers=args.workers,
            seed=args.seed,
            share=args.faults,
            timeout=args.timeout,
            deadline=DEFAULT_DEADLINES[args.pool] if deadline is None else deadline,
            plain=args.plain,
            verbose=args.verbose,
        )

    @property
    def fetch_seconds(self) -> float:
        """Seconds that one page's fetch may take."""
        return self.timeout * FETCH_PART


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to its parser."""
    add = parser.add_argument
    add(
        "--pool",
        choices=sorted(DEFAULT_DEADLINES, reverse=True),
        default="poolwatch",
        help="which pool crawls: this one, or the standard library's (default: %(default)s)",
    )
    add("--pages", type=_count, default=300, help="crawl so many pages (default: %(default)s)")
    add("--workers", type=_count, default=4, help="worker processes (default: %(default)s)")
    _add_limits(parser)
    _add_faults(parser)
    add("--plain", action="store_true", help="plain lines instead of the live view")
    add("--verbose", action="store_true", help="log every loss on standard error as it happens")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="hard limit of one page's job; fetching may take most of it (default: %(default)s)",
    )
    parser.add_argument(
        "--deadline",
        type=_seconds,
        metavar="SECONDS",
        help="bound on the whole crawl (default: 300, with the standard pool 20)",
    )


def _add_faults(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--faults",
        type=_share,
        nargs="?",
        const=DEFAULT_SHARE,
        default=DEFAULT_SHARE,
        metavar="SHARE",
        help="share of pages whose handler aborts, segfaults, is killed, hangs, raises, or returns "
        "what cannot be pickled; on by default (%(default)s)",
    )
    parser.add_argument(
        "--no-faults",
        dest="faults",
        action="store_const",
        const=0.0,
        help="a plain crawl: no handler goes wrong on purpose",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=DEFAULT_SEED,
        help="which pages those are (default: %(default)s)",
    )


def _number(kind: type[N], text: str, wanted: str) -> N:
    # argparse's own words would have the name of a private function.
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}") from None


def _seed(text: str) -> int:
    return _number(int, text, "a whole number")


def _count(text: str) -> int:
    number = _number(int, text, "a whole number")
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def _seconds(text: str) -> float:
    number = _number(float, text, "a positive number of seconds")
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text}")
    return number


def _share(text: str) -> float:
    number = _number(float, text, "a number between 0 and 1")
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return number
