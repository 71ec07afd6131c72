"""The account as text."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from poolwatch.cli.demo.account import Account, FaultLine, by_cause
from poolwatch.exceptions import WorkerLostError

_MOST_PROBLEMS = 20
_SHOWN_NAMES = 5


def account_lines(account: Account) -> Iterator[str]:
    """Yield the account, one postmortem and the verdict, line by line."""
    yield "The account"
    yield from _page_lines(account)
    yield from _fault_lines(account)
    yield f"  workers asked for {account.workers_asked}, alive {account.workers_alive}"
    yield from _postmortem_lines(account.losses)
    yield from _verdict_lines(account)


def interrupted_lines(account: Account, signum: int) -> Iterator[str]:
    """Yield what is to be said about a crawl that a signal has stopped."""
    yield (
        f"stopped by {signal.Signals(signum).name}: {account.found} pages found, "
        f"{account.parsed} parsed, {account.failed.total()} failed or stopped"
    )
    if account.left_behind:
        yield f"processes left behind: {', '.join(map(str, account.left_behind))}"
    else:
        yield "no process left behind"


def _page_lines(account: Account) -> Iterator[str]:
    yield f"  {'pages found':<28}{account.found:>6}"
    yield f"  {'parsed':<28}{account.parsed:>6}   ({account.characters:,} characters)"
    yield f"  {'failed':<28}{account.failed.total():>6}"
    for cause, number in by_cause(account.failed):
        yield f"    {cause.value:<26}{number:>6}"
    if account.unended:
        yield f"  {'never ended':<28}{account.unended:>6}"
        yield from _unended_lines(account)
    else:
        parts = f"{account.parsed} parsed + {account.failed.total()} failed"
        yield f"  {account.found} found = {parts}"
    if account.beyond:
        yield f"  ({account.beyond} more pages were seen beyond the bound)"


def _unended_lines(account: Account) -> Iterator[str]:
    faulty = [f"{path} ({fault.value})" for path, fault in account.unended_pages() if fault]
    innocent = [path for path, fault in account.unended_pages() if not fault]
    if faulty:
        yield f"    {len(faulty)} whose handler was to go wrong: {_some(faulty)}"
    if innocent:
        yield f"    {len(innocent)} that did nothing wrong: {_some(innocent)}"


def _some(names: list[str]) -> str:
    return ", ".join([*names[:_SHOWN_NAMES], *(["..."] if len(names) > _SHOWN_NAMES else [])])


def _fault_lines(account: Account) -> Iterator[str]:
    lines = [line for line in account.lines.values() if line.planned]
    if not lines:
        yield "  no fault was planned"
        return
    yield "  planned faults"
    for line in lines:
        yield f"    {line.fault.value:<13}{_fault_text(line)}"


def _fault_text(line: FaultLine) -> str:
    text = f"{line.planned} planned, {line.observed} observed as {line.cause.value}"
    return f"{text}, {line.forestalled} had no page to fail on" if line.forestalled else text


def _postmortem_lines(losses: list[WorkerLostError]) -> Iterator[str]:
    if not losses:
        return
    # A crash with a traceback shows most; a kill from outside leaves none.
    shown = max(losses, key=lambda error: bool(error.postmortem and error.postmortem.traceback))
    yield f"One postmortem of {len(losses)}"
    for line in str(shown.postmortem or shown).splitlines():
        yield f"  {line}"


def _verdict_lines(account: Account) -> Iterator[str]:
    problems = list(account.problems())
    if not problems:
        yield "It adds up."
        return
    yield "It does not add up:"
    yield from (f"  - {problem}" for problem in problems[:_MOST_PROBLEMS])
    if len(problems) > _MOST_PROBLEMS:
        yield f"  - and {len(problems) - _MOST_PROBLEMS} more"
