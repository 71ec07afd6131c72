"""An iterator of imap that is inherited by a forked child, used and collected there."""

import gc
import os
import sys

import work
from helpers import DEADLINE, bounded

from poolwatch import Pool

if __name__ == "__main__":
    pool = Pool(1)
    results = pool.imap(work.square, range(1000), buffersize=5)
    first = [results.next(DEADLINE) for _ in range(2)]
    child = os.fork()
    if not child:
        try:
            bounded(lambda: list(results))
        except RuntimeError as error:
            print("child:", error, flush=True)
        del results
        gc.collect()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    print("child left" if status == 0 else f"child: status {status}", flush=True)
    print("parent:", first + list(results) == [n * n for n in range(1000)], flush=True)
    pool.terminate()
