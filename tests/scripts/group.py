"""A parent with two busy workers whose whole process group is signalled.

Arguments: start method, bell, gate. Rings "parent saw N" at each signal.
"""

import signal
import sys
import threading

import work
from helpers import DEADLINE, worker_pids

from poolwatch import Pool

if __name__ == "__main__":
    start_method, bell, gate = sys.argv[1:]
    with Pool(2, context=start_method) as pool:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda seen, _: work.ring(bell, f"parent saw {seen:d}"))
        jobs = [pool.apply_async(work.ring_and_wait, (bell, gate)) for _ in range(2)]
        pids = {job.get(DEADLINE) for job in jobs}
        if pids == set(worker_pids(pool)):
            print("same workers")
        if len(pids) == 2:
            print("two results")
    assert threading.active_count() == 1
