"""Jobs make shared memory and go, in all ways. Arguments: start method, how, name of the segment.

Prints whether the segment is gone once the pool has ended.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from multiprocessing import shared_memory
from pathlib import Path

from poolwatch import Pool, PoolwatchError
from poolwatch.exceptions import TimeLimitExceeded

made = []  # a segment that is collected is closed, and does not matter to this


def make(name: str) -> int:
    made.append(shared_memory.SharedMemory(create=True, size=100_000, name=name))
    return os.getpid()


def make_and_wait(name: str, path: str) -> None:
    make(name)
    Path(path).touch()
    time.sleep(60)


def wait_for(condition, seconds: float = 10.0) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    method, how, name, flag = sys.argv[1:]
    with Pool(1, context=method) as pool:
        if how in ("close", "with", "next"):
            pid = pool.apply(make, (name,))
            if how == "close":
                pool.close()
                pool.join()
            elif how == "next":  # a later job dies
                pool.apply_async(os._exit, (1,)).wait(10)
        else:
            job = pool.apply_async(
                make_and_wait, (name, flag), timeout=3 if how == "limit" else None
            )
            assert wait_for(Path(flag).exists)
            if how == "kill":
                os.kill(job.pid, 9)
            elif how == "cancel":
                job.cancel()
            elif how == "terminate":
                pool.terminate()
            job.wait(10)
            assert job.ready()
            try:
                job.get()
            except (PoolwatchError, TimeLimitExceeded) as error:
                print(type(error).__name__, file=sys.stderr)
    pool.join()
    path = Path("/dev/shm", name)
    print(wait_for(lambda: not path.exists(), 0 if method == "spawn" else 10))
