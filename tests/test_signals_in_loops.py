"""No lock stays taken when a signal handler raises at the end of a loop's round.

From Python 3.12 on, the compiler leaves some jumps back to a loop's beginning out of the ``with``
or ``try`` around the loop. Signal handlers run at such jumps, so an exception of theirs (Ctrl-C)
would leave the ``with`` without letting go of its lock. What the main thread runs under a lock has
its loops in functions of their own.
"""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import poolwatch

PACKAGE = Path(poolwatch.__file__).parent

# With a lock, but in the supervisor's thread or in the child, where no signal handler raises.
OTHER_THREADS = {
    "MemoryWatch._judge",
    "Watchdog._look",
    "Intake.take_rings",
    "Recalls._look_for_the_urgent",
    "Core._end_all",
    "Sizing.went_on",
    "Repairs.repair",
}


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def holds_a_lock(code: CodeType) -> bool:
    return any(
        each.opname in ("BEFORE_WITH", "LOAD_SPECIAL") for each in dis.get_instructions(code)
    )


def jumps_out(code: CodeType) -> list[int | None]:
    """Lines of the jumps that are outside of the ``with`` that their loop is in."""
    entries = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]
    instructions = list(dis.get_instructions(code))
    leaving = {
        before.offset
        for before, each in itertools.pairwise(instructions)
        if each.opname == "WITH_EXCEPT_START"
    }

    def is_inside(offset: int) -> bool:
        handlers = [entry.target for entry in entries if entry.start <= offset < entry.end]
        return any(handler in leaving or is_inside(handler) for handler in handlers)

    return [
        each.positions.lineno if each.positions else None
        for each in instructions
        if each.opname.startswith("JUMP_BACKWARD")
        and is_inside(each.argval)
        and not is_inside(each.offset)
    ]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="earlier compilers leave no jump out")
@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_no_loop_ends_outside_of_its_lock(path: Path) -> None:
    """Of all functions with a ``with`` that a caller's thread may run."""
    found = {
        code.co_qualname: lines  # type: ignore[attr-defined]
        for code in codes(compile(path.read_text(), str(path), "exec"))
        if holds_a_lock(code) and (lines := jumps_out(code))
    }
    assert {name for name in found if name not in OTHER_THREADS} == set(), found
