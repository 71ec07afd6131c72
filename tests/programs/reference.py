"""The program beside the reference of Pool. Argument: where Pool comes from."""

import os
import sys
import time

if sys.argv[1] == "poolwatch":
    from poolwatch import Pool, TimeoutError
else:
    from multiprocessing import Pool, TimeoutError


def f(x):
    return x * x


if __name__ == "__main__":
    with Pool(processes=4) as pool:
        print(pool.map(f, range(10)))
        for i in pool.imap_unordered(f, range(10)):
            print("unordered", i)
        res = pool.apply_async(f, (20,))
        print(res.get(timeout=10))
        res = pool.apply_async(os.getpid, ())
        print("own process", res.get(timeout=10) != os.getpid())
        multiple_results = [pool.apply_async(os.getpid, ()) for i in range(4)]
        pids = [res.get(timeout=10) for res in multiple_results]
        print("so many answers", len(pids), "from at most", max(4, len(set(pids))))
        res = pool.apply_async(time.sleep, (10,))
        try:
            print(res.get(timeout=0.2))
        except TimeoutError:
            print("We lacked patience and got a multiprocessing.TimeoutError")
        print("For the moment, the pool remains available for more work")
    print("Now the pool is closed and no longer available")
    try:
        pool.apply_async(f, (1,))
    except ValueError as error:
        print(error)
