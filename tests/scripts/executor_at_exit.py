"""Leaves executors with unfinished jobs behind, in the way and by the start method named."""

from __future__ import annotations

import atexit
import sys

import work

import poolwatch

if __name__ == "__main__":
    way, method, path = sys.argv[1:]
    executor = poolwatch.ProcessPoolExecutor(2, mp_context=method)
    futures = [executor.submit(work.noted_slowly, path, number, 0.05) for number in range(6)]
    futures[-1].add_done_callback(lambda future: work.note(path, "callback"))
    if way == "dropped":
        del executor, futures
    elif way == "dropped map":
        executor.map(work.noted, [path] * 4, range(6, 10))
        del executor, futures
    elif way == "shut down":
        executor.shutdown(wait=False)
    elif way == "shared":
        pool = poolwatch.Pool(1, context=method)
        shared = poolwatch.ProcessPoolExecutor.from_pool(pool)
        shared.submit(work.noted_slowly, path, 6, 0.05)
    elif way == "submitting":

        def submit() -> None:
            try:
                executor.submit(work.noted, path, 7)
            except RuntimeError as error:
                print(error)

        atexit.register(submit)
