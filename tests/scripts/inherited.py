"""A pool that is used, ended and collected in a forked child of the process that has made it."""

import gc
import os

import work
from helpers import assert_full_strength

from poolwatch import Pool

if __name__ == "__main__":
    pool = Pool(2)
    assert pool.apply(work.square, (3,)) == 9
    child = os.fork()
    if not child:
        try:
            pool.apply_async(work.square, (3,)).get(5)
            print("child: no error", flush=True)
        except Exception as error:  # noqa: BLE001
            print(f"child: {type(error).__name__}: {error}".replace("\n", " "), flush=True)
        for end in (pool.terminate, pool.close):
            try:
                end()
            except Exception:  # noqa: BLE001
                pass
        del pool, end
        gc.collect()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("child left" if status == 0 else f"child: status {status}", flush=True)
    print("parent:", pool.apply_async(work.square, (4,)).get(10), flush=True)
    assert_full_strength(pool)
    print("full strength", flush=True)
    pool.terminate()
    pool.join()
