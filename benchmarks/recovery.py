"""How fast a killed worker is noticed, and how fast the next result comes from its replacement.

Run with ``python -m benchmarks.recovery``. One worker, a parent that is otherwise idle. In each
round the worker is killed from outside while it runs a job; two times are taken from the kill on:
until the job's loss is known, and until the result of a job submitted then, which only the
replacement can run.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import time

from poolwatch import Pool, WorkerLostError


def hang() -> None:
    """Run until killed."""
    while True:
        signal.pause()


def measure(pool: Pool) -> tuple[float, float]:
    """Kill the worker once; return the milliseconds until the loss and until the next result."""
    victim = pool.apply_async(hang)
    while not victim.accepted():
        pass
    pid = victim.worker_pids()[0]
    begun = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    after = pool.apply_async(os.getpid)
    try:
        victim.get(10)
    except WorkerLostError:
        lost = time.perf_counter() - begun
    if after.get(10) == pid:
        raise RuntimeError("the dead worker answered")
    return lost * 1000, (time.perf_counter() - begun) * 1000


def main() -> None:
    """Print the medians."""
    logging.disable(logging.CRITICAL)  # a line for every loss would drown the figures
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    with Pool(1) as pool:
        pool.apply(os.getpid)
        samples = [measure(pool) for _ in range(rounds)]
    for name, values in zip(("loss known", "next result"), zip(*samples, strict=True), strict=True):
        low, high = min(values), max(values)
        print(f"{name:12} median {statistics.median(values):6.2f} ms  ({low:.2f} to {high:.2f})")
    with Pool(4) as pool:
        jobs = [pool.apply_async(hang) for _ in range(4)]
        while not all(job.accepted() for job in jobs):
            pass
        begun = time.perf_counter()
        pool.terminate()
        print(f"terminate() with four busy workers {(time.perf_counter() - begun) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
