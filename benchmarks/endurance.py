"""What ten thousand replacements leave behind in the parent: descriptors, threads, memory.

Run with ``python -m benchmarks.endurance``. Two workers; each runs one job and is replaced, first
some hundred times to warm up, then the measured number of times. With ``--kill`` the worker is
killed by its job each time instead of being recycled.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import threading
import time

import psutil

from poolwatch import Pool, WorkerLostError


def kill_self() -> None:
    """Die of SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def replace(pool: Pool, times: int, kill: bool) -> None:
    """Have so many workers replaced, in small batches."""
    for start in range(0, times, 50):
        count = min(50, times - start)
        jobs = [pool.apply_async(kill_self if kill else os.getpid) for _ in range(count)]
        for job in jobs:
            try:
                job.get(60)
            except WorkerLostError:
                pass


def snapshot() -> tuple[int, int, int]:
    """Return descriptors, threads and unique memory (KiB) of this process."""
    gc.collect()
    me = psutil.Process()
    return me.num_fds(), threading.active_count(), me.memory_full_info().uss // 1024


def main() -> None:
    """Print the state before and after."""
    logging.disable(logging.CRITICAL)  # a line for every loss would drown the figures
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replacements", type=int, default=10_000)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    bound = None if options.kill else 1
    with Pool(2, maxtasksperchild=bound) as pool:
        replace(pool, 500, options.kill)
        before = snapshot()
        begun = time.monotonic()
        replace(pool, options.replacements, options.kill)
        seconds = time.monotonic() - begun
        after = snapshot()
    print(f"{options.replacements} replacements in {seconds:.1f} s")
    for name, old, new in zip(("descriptors", "threads", "unique KiB"), before, after, strict=True):
        print(f"{name:12} {old:8} -> {new:8}")


if __name__ == "__main__":
    main()
