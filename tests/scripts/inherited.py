"""A pool that is used, ended and collected in a forked child of the process that has made it."""

import gc
import os
import sys

import work
from helpers import DEADLINE, assert_full_strength, bounded

from poolwatch import Pool


def in_child(pool: Pool) -> None:
    try:
        pool.apply_async(work.square, (3,)).get(5)
        print("child: no error", flush=True)
    except Exception as error:  # noqa: BLE001
        print(f"child: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
    for end in (pool.terminate, pool.close, pool.join, pool.terminate):
        try:
            bounded(end, 3)
        except AssertionError:
            print(f"child: {end.__name__} hangs", flush=True)
            os._exit(1)
        except Exception:  # noqa: BLE001  (whether it is refused or ignored is all the same)
            pass


if __name__ == "__main__":
    pool = Pool(2)
    assert pool.apply_async(work.square, (3,)).get(DEADLINE) == 9
    child = os.fork()
    if not child:
        in_child(pool)
        del pool
        gc.collect()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    print("child left" if status == 0 else f"child: status {status}", flush=True)
    print("parent:", pool.apply_async(work.square, (4,)).get(DEADLINE), flush=True)
    assert_full_strength(pool)
    print("full strength", flush=True)
    pool.terminate()
    pool.join()
