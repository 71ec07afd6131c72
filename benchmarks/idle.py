"""How often an idle pool wakes up: context switches of all its threads and processes.

Run with ``python -m benchmarks.idle``. Four workers that have done a job each, then some seconds in
which nothing happens.
"""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

import psutil

from poolwatch import Pool


def switches(pid: int) -> int:
    """Return the voluntary and involuntary context switches of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if pid == os.getpid() and int(task.name) == threading.get_native_id():
            continue  # this thread sleeps and wakes for the measurement itself
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def main() -> None:
    """Print the wake-ups of each process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    pause = threading.Event()
    with Pool(4) as pool:
        pool.map(abs, range(1000))
        pause.wait(1.0)
        pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
        before = {pid: switches(pid) for pid in pids}
        pause.wait(seconds)
        woken = {pid: switches(pid) - before[pid] for pid in pids}
    print(f"{sum(woken.values())} wake-ups of {len(pids)} processes in {seconds:g} s: {woken}")


if __name__ == "__main__":
    main()
