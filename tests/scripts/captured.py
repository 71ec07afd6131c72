"""Workers that write to standard error, in a parent that may have none."""

from __future__ import annotations

import logging
import os

from poolwatch import Pool, events


def complain() -> None:
    os.write(2, b"something is wrong\n")


if __name__ == "__main__":
    logging.disable()
    troubles: list[object] = []
    with Pool(2, capture_stderr=True) as pool:
        pool.listen(troubles.append, events.Trouble)
        done = [job.get(20) for job in [pool.apply_async(complain) for _ in range(20)]]
    print(len(done), "jobs,", len(troubles), "troubles")
