"""Ends with an open pool. Arguments: how, what the pool does, where, start method, bell, gate.

Rings the bell with the pids of all the processes that there are because of the pool, waits at the
gate, and ends.
"""

import os
import sys
import threading

import faults
import psutil
import work
from helpers import eventually

from poolwatch import Pool

how, state, where, start_method, bell, gate = sys.argv[1:]
kept = []


def use():  # type: ignore[no-untyped-def]
    pool = Pool(2, context=start_method)
    assert pool.apply(work.square, (3,)) == 9
    kept.append(pool)
    if state == "running":
        kept.append([pool.apply_async(faults.hang_deaf, (bell,)) for _ in range(2)])
        eventually(lambda: all(job.accepted() for job in kept[-1]))
    elif state == "waiting":
        kept.append([pool.apply_async(faults.hang_deaf, (bell,)) for _ in range(20)])
        eventually(lambda: kept[-1][0].accepted() and kept[-1][1].accepted())
    elif state == "imap":
        results = pool.imap(work.square, iter(int, 1))
        kept.append(results)
        assert next(results) == 0
    if where == "function":
        kept.clear()
        local = (pool, state)  # noqa: F841
        leave()
    elif where == "module":
        leave()


def leave():  # type: ignore[no-untyped-def]
    pids = [process.pid for process in psutil.Process().children(recursive=True)]
    work.ring(bell, "pids " + " ".join(map(str, pids)))
    work.wait_at(gate)
    if how == "sys.exit":
        sys.exit(7)
    if how == "os._exit":
        os._exit(7)
    if how == "error":
        raise LookupError("the program's own")


if __name__ == "__main__":
    if where == "thread":
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        eventually(lambda: len(kept) > (state != "idle") or not thread.is_alive())
        leave()
    else:
        use()
