"""Exceptions that hit the caller's thread at any point of the pool's own code, one by one.

A signal handler may raise (Ctrl-C), or use the pool, wherever the interpreter looks for signals:
when a function begins, after a call of one that is not written in Python (before 3.11, of any), at
the end of a loop's body. A trace function sees all of these points. An *interruption* is done at
the n-th time that one of them is passed.
"""

from __future__ import annotations

import dis
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import work
from helpers import DEADLINE, eventually, lines
from work import note

import poolwatch

_MODULES = (
    "assist",
    "chunks",
    "core",
    "dispatcher",
    "endings",
    "intake",
    "job",
    "map_results",
    "results",
)
_FILES = {str(Path(poolwatch.__file__).parent / f"{name}.py") for name in _MODULES}
_CALLS_ARE_INLINE = sys.version_info >= (3, 11)
_PYTHON_CALL = -1  # in place of an offset

BATCH = 70  # jobs; more than twice as many as are submitted between two looks at what came in
SEED = 7

Place = tuple[str, str, int, int]
"""File, function, line and offset of an instruction."""


class Interrupter:
    """Passes through the pool's code in this thread, and does something at one point of it.

    Args:
        action: what to do there; None to count only.
        place: where.
        turn: at which passing of that place.

    Attributes:
        passed: how often each place was passed.
        done: the point was reached.
    """

    def __init__(
        self,
        action: Callable[[], object] | None = None,
        place: Place | None = None,
        turn: int = 1,
    ) -> None:
        self.passed: Counter[Place] = Counter()
        self.done = False
        self._action = action
        self._place = place
        self._turn = turn
        self._before: dict[FrameType, int] = {}  # offset of the instruction that was run last
        self._names: dict[CodeType, dict[int, str]] = {}

    def __enter__(self) -> Interrupter:
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(None)
        self._before.clear()

    def _on_call(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_back is not None and _CALLS_ARE_INLINE:
            self._before[frame.f_back] = _PYTHON_CALL
        if frame.f_code.co_filename not in _FILES:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._on_event

    def _on_event(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "return":
            self._before.pop(frame, None)
        elif event == "opcode":
            if self._is_point(frame):
                self._pass(frame)
            self._before[frame] = frame.f_lasti
        return self._on_event

    def _is_point(self, frame: FrameType) -> bool:
        """True where the interpreter looks for signals: behind calls and ends of loops."""
        before = self._before.get(frame)
        if before is None or before == _PYTHON_CALL:
            return before is None
        names = self._names.get(frame.f_code)
        if names is None:
            names = {each.offset: each.opname for each in dis.get_instructions(frame.f_code)}
            self._names[frame.f_code] = names
        name = names[before]
        return ("CALL" in name and name != "PRECALL") or "BACKWARD" in name or "ABSOLUTE" in name

    def _pass(self, frame: FrameType) -> None:
        code = frame.f_code
        place = (Path(code.co_filename).name, code.co_name, frame.f_lineno or 0, frame.f_lasti)
        self.passed[place] += 1
        if place == self._place and self.passed[place] == self._turn and not self.done:
            self.done = True
            if self._action is not None:
                self._action()


def points(use: Callable[[], object], seed: int) -> list[tuple[Place, int]]:
    """Return the places that a use of the pool passes, each with one of its turns, shuffled."""
    with Interrupter() as interrupter:
        use()
    chance = random.Random(seed)
    found = [(place, chance.randint(1, n)) for place, n in sorted(interrupter.passed.items())]
    chance.shuffle(found)
    return found


def noted_item(item: tuple[str, int]) -> int:
    """An item of a map that leaves a line in a file."""
    path, number = item
    note(path, number)
    return number


class Bench:
    """One pool, what was submitted to it, and what must hold afterwards."""

    def __init__(self, make_pool: Callable[..., Any], path: Path) -> None:
        self.path = str(path)
        self.make_pool = make_pool
        self.pool: Any = None
        self.numbers = 0
        self.jobs: dict[int, Any] = {}  # number -> handle
        self.maps: list[tuple[list[int], Any]] = []
        self.renew()

    def renew(self) -> None:
        """Begin with a pool of two that has run short jobs, so that callers help it."""
        self.pool = self.make_pool(2)
        for number in range(50):
            self.pool.apply_async(work.square, (number,)).get(DEADLINE)

    def begin(self) -> None:
        """Forget what has been before."""
        self.jobs.clear()
        self.maps.clear()
        Path(self.path).write_text("")
        self.pool._core.supervisor.assist._patience = 64
        self.pool._core.dispatcher.average = 10_000.0

    def submit(self, count: int = BATCH) -> None:
        """Submit short jobs, each with a number of its own."""
        for _ in range(count):
            self.numbers += 1
            number = self.numbers
            self.jobs[number] = self.pool.apply_async(work.noted, (self.path, number))

    def fetch(self) -> None:
        """Wait for what was submitted, helping."""
        for job in list(self.jobs.values()):
            job.get(DEADLINE)
        for _, result in self.maps:
            result.get(DEADLINE)

    def submit_map(self, chunksize: int) -> None:
        """Submit a map of items with numbers of their own."""
        numbers = [self.numbers + place for place in range(1, BATCH + 1)]
        self.numbers += BATCH
        items = [(self.path, number) for number in numbers]
        self.maps.append((numbers, self.pool.map_async(noted_item, items, chunksize)))

    def check(self) -> None:
        """All that was submitted ends by itself, with its value, and ran once."""
        core = self.pool._core
        assert not core.dispatcher.lock._is_owned()
        for job in self.jobs.values():
            eventually(job.ready, 6.0)
        for _, result in self.maps:
            eventually(result.ready, 6.0)
        eventually(lambda: core.dispatcher.unfinished == 0, 6.0)
        assert {job.get(0) for job in self.jobs.values()} == set(self.jobs)
        for numbers, result in self.maps:
            assert result.get(0) == numbers
        runs = Counter(map(int, lines(self.path)))
        assert set(runs.values()) <= {1}
        expected = {*self.jobs, *(number for numbers, _ in self.maps for number in numbers)}
        assert expected <= set(runs)
        assert not core.dispatcher.entered
        assert not core.dispatcher.backlog
        fresh = self.pool.apply_async(os.getpid)
        eventually(fresh.ready, 6.0)
        assert fresh.get(0) in {worker.pid for worker in self.pool.workers}


def prepared(bench: Bench, use: str) -> Callable[[], None]:
    """Return what is to be interrupted; what comes before it has been done."""
    bench.begin()
    if use == "submit":
        return bench.submit
    if use == "get":
        bench.submit()
        return bench.fetch
    if use == "one by one":
        return lambda: [(bench.submit(1), bench.fetch()) for _ in range(5)] and None
    chunksize = int(use.split()[-1])
    if use.startswith("submit map"):
        return lambda: bench.submit_map(chunksize)
    bench.submit_map(chunksize)
    return bench.fetch


USES = [
    "submit",
    "get",
    "one by one",
    "submit map in chunks of 1",
    "get map in chunks of 1",
    "get map in chunks of 3",
]


def sample(thorough: bool) -> int:
    """Return how many points one test interrupts, of about 120."""
    return 60 if thorough else 30


def points_of(bench: Bench, use: str) -> list[tuple[Place, int]]:
    """Return the points that a use passes, in an order that depends on nothing."""
    found = points(prepared(bench, use), SEED)
    for _ in range(3):  # no two runs pass the same points
        bench.check()
        known = {place for place, _ in found}
        more = points(prepared(bench, use), SEED)
        found += [point for point in more if point[0] not in known]
    bench.check()
    return found
