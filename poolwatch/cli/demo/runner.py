"""Runs the demo from beginning to end, and cleans up on every way out.

Signals (Ctrl-C, SIGTERM, a closed terminal) are only put into the crawl's queue, so they cannot
strike between the start of a process and the line that remembers it. Every step of the cleaning up
has a bound of its own.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType

import psutil

from poolwatch.cli.demo.account import Account
from poolwatch.cli.demo.crawl import Crawl
from poolwatch.cli.demo.options import DemoOptions
from poolwatch.cli.demo.pools import make_pool
from poolwatch.cli.demo.records import Events, Interrupted
from poolwatch.cli.demo.report import account_lines, interrupted_lines
from poolwatch.cli.demo.site import DocSite, SiteError
from poolwatch.cli.demo.view import make_view


def run_demo(options: DemoOptions) -> int:
    """Crawl, print the account, leave nothing behind.

    Returns:
        The exit status: 0 if the account adds up, 1 if it does not or if the server does not start,
        128 + the signal's number if a signal has stopped the crawl.
    """
    events: Events = queue.SimpleQueue()
    others = _children()
    level = logging.NOTSET if options.verbose else logging.CRITICAL
    with _signals_into(events), _log_threshold(level):
        try:
            crawl = _crawl(options, events)
        except SiteError as error:
            print(f"poolwatch demo: {error}", file=sys.stderr)
            return 1
        crawl.account.left_behind = sorted(_children() - others)
        return conclude(crawl.account, crawl.interrupted)


def _crawl(options: DemoOptions, events: Events) -> Crawl:
    # The pool comes before the site: what is forked earlier holds no end of the server's pipes.
    with make_pool(options, events) as pool, DocSite() as site:
        with make_view(options.plain or not sys.stdout.isatty()) as view:
            print(f"crawling {site.url} with {pool.processes} workers of {options.pool}")
            crawl = Crawl(options, site.url, pool, view, events)
            crawl.run()
            crawl.await_workers()
        crawl.account.site_exit = site.exit_status
        pool.stop()
        crawl.drain()
    if crawl.late:
        print(f"stopped after {options.deadline:g} s, as --deadline says")
    return crawl


def conclude(account: Account, signum: int | None) -> int:
    """Print the account, or what a signal has left of it, and return the exit status."""
    if signum is not None:
        _print_all(interrupted_lines(account, signum))
        return 128 + signum
    _print_all(account_lines(account))
    return 1 if any(account.problems()) else 0


def _print_all(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@contextlib.contextmanager
def _log_threshold(level: int) -> Iterator[None]:
    """Log from ``level`` upwards: the planned losses are in the account, with all that is known."""
    logger = logging.getLogger("poolwatch")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _signals_into(events: Events) -> Iterator[None]:
    """Put the signals that ask for an end into the queue, whose put() is reentrant."""

    def enqueue(signum: int, frame: FrameType | None) -> None:
        events.put(Interrupted(signum))

    asked = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else nohup wants us to go on
        asked.append(signal.SIGHUP)
    before = {signum: signal.signal(signum, enqueue) for signum in asked}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
