"""A program that ignores SIGHUP, as under nohup, and a program that its job starts."""

from __future__ import annotations

import signal

from test_signals_of_programs import end_of_program, ignored_by_programs

from poolwatch import Pool

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Pool(1) as pool:
        print(pool.apply(end_of_program, (signal.SIGHUP,)))
        print(pool.apply(ignored_by_programs) == ignored_by_programs())
