"""A program that goes on changing after its pool was made."""

from __future__ import annotations

import sys
import time

from poolwatch import Pool

SETTING = "old"


def setting() -> str:
    return SETTING


if __name__ == "__main__":
    with Pool(2) as pool:
        assert pool.apply(setting) == "old"
        SETTING = "new"
        pool.restart()
        deadline = time.monotonic() + 10
        while pool.apply(setting) != "new":
            assert time.monotonic() < deadline
        before = pool._core.snapshot
        while {pool.apply(setting) for _ in range(50)} != {"new"}:
            assert time.monotonic() < deadline
    sys.exit(0)
