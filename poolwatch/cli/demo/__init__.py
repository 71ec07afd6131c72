"""``poolwatch demo``: crawls the standard library's documentation server while workers die.

The parts::

    site.py      the server (``python -m pydoc``), started and stopped
    faults.py    which pages' handlers go wrong, and how
    pages.py     what runs in the worker: fetch a page, go wrong if planned, parse
    pools.py     poolwatch's pool and the standard one behind one small face
    crawl.py     the loop in the parent: submits what is found, books what ends
    account.py   the books: pages found = parsed + failed, per cause, and what does not add up
    view.py      the live view, or plain lines where there is no terminal
    report.py    the account as text
    runner.py    all of it together, and its cleaning up on every way out

Only ``options`` is imported at once; the rest comes with ``run``.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from poolwatch.cli.demo.options import DemoOptions, add_arguments

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_SUMMARY = "crawl the standard library's documentation server while workers die"
_EXIT_STATUSES = """\
exit status: 0 if the account adds up, 1 if it does not, 128 + signal (130 on Ctrl-C) if stopped"""


def register(commands: Commands) -> None:
    """Add the subcommand ``demo`` to the command line's parser."""
    parser = commands.add_parser(
        "demo",
        help=_SUMMARY,
        description=_SUMMARY[0].upper() + _SUMMARY[1:] + ".",
        epilog=_EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo with the parsed arguments and return its exit status."""
    from poolwatch.cli.demo.runner import run_demo

    return run_demo(DemoOptions.from_args(args))
