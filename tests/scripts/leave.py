"""Ends without ending its pool. Arguments: start method, idle / busy / closed, bell.

Prints the pids of all the processes that there are because of the pool.
"""

import sys

import faults
import psutil
import work
from helpers import eventually

from poolwatch import Pool

if __name__ == "__main__":
    start_method, state, bell = sys.argv[1:]
    pool = Pool(2, context=start_method)
    assert pool.apply(work.square, (3,)) == 9
    if state == "busy":
        jobs = [pool.apply_async(faults.hang_deaf, (bell,)) for _ in range(5)]
        eventually(lambda: jobs[0].accepted() and jobs[1].accepted())
    print(*[process.pid for process in psutil.Process().children(recursive=True)])
    if state == "closed":
        pool.close()
