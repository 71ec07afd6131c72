"""Jobs for the tests of what a user may ask of jobs."""

from __future__ import annotations

import os
import signal
from typing import Any

import work

_kept: list[Any] = []


def square_or_fail(number: int) -> int:
    if number % 5 == 3:
        raise ValueError(number)
    return number * number


def stop(number: int) -> int:
    """Raises what would end an iterator that took it for its own end."""
    if number == 1:
        raise StopIteration(number)
    return number


def square_or_die(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die_once(path: str, number: int) -> int:
    work.note(path, number)
    if number == 7 and work.count_lines(path) and work.count_lines(path + ".dead") == 0:
        work.note(path + ".dead", number)
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die_once_of(item: tuple[str, int]) -> int:
    return die_once(*item)


def allocate_and_keep(mebibytes: int) -> int:
    _kept.append(bytearray(os.urandom(1024)) * (mebibytes * 1024))
    return os.getpid()


def allocate_and_let_go(mebibytes: int) -> int:
    return len(bytearray(os.urandom(1024)) * (mebibytes * 1024)) and os.getpid()


def keep_some_of(number: int) -> int:
    """Every now and then more memory than the worker may have."""
    if number % 10 == 0:
        allocate_and_keep(64)
    return number


def resident_kib() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
