"""Ends in the middle of an imap. Arguments: what the input is (list, endless, waiting)."""

import itertools
import sys
import threading

import work

from poolwatch import Pool


def waiting():  # type: ignore[no-untyped-def]
    yield 1
    threading.Event().wait()


if __name__ == "__main__":
    kind = sys.argv[1]
    items = {"list": range(10**7), "endless": itertools.count(), "waiting": waiting()}[kind]
    pool = Pool(2)
    results = pool.imap(work.square, items)
    next(results)
    print("left", flush=True)
