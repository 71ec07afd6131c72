"""The command ``poolwatch``: its parser, and the list of its subcommands.

A subcommand is a module with ``register(commands)``: it adds its own parser and sets ``run`` on it,
a function from the parsed arguments to an exit status. What it needs beyond its options it imports
in ``run``, so that no subcommand pays for the imports of another.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from poolwatch._version import __version__
from poolwatch.cli import demo

COMMANDS = (demo,)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line, with every subcommand registered."""
    parser = argparse.ArgumentParser(
        prog="poolwatch", description="A process pool that never goes quiet."
    )
    parser.add_argument("--version", action="version", version=f"poolwatch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments without the program's name; None takes those of the process.

    Returns:
        The subcommand's exit status.

    Raises:
        SystemExit: With status 2 for wrong arguments, 0 after ``--help`` and ``--version``.
    """
    args = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except BrokenPipeError:
        # Whoever read our output has had enough (``| head``). Python would complain once more when
        # it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
