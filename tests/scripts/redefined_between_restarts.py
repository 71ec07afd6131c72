"""A program that defines functions anew around restarts: no worker may run an outdated one."""

from __future__ import annotations

import time

from poolwatch import Pool


def answer() -> str:
    return "first"


def calls_answer() -> str:
    return answer()


first = answer


def wait_until_restarted(pool: Pool, old: set[int]) -> None:
    deadline = time.monotonic() + 10
    while {worker.pid for worker in pool.workers} & old or len(pool.workers) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pids(pool: Pool) -> set[int]:
    return {worker.pid for worker in pool.workers}


if __name__ == "__main__":
    with Pool(2) as pool:
        assert pool.apply(calls_answer) == "first"

        # Defined after the fork and before the new workers are up.
        old = pids(pool)
        pool.restart()

        def answer() -> str:
            return "second"

        for _ in range(200):
            assert pool.apply(answer) == "second"
            assert pool.apply(calls_answer) == "second"
        wait_until_restarted(pool, old)
        for _ in range(50):
            assert pool.apply(answer) == "second"
            assert pool.apply(calls_answer) == "second"

        # What the new workers have been made with is taken back at once.
        old = pids(pool)
        second = answer

        def answer() -> str:
            return "third"

        pool.restart()
        answer = second
        for _ in range(300):
            assert pool.apply(answer) == "second"
            assert pool.apply(calls_answer) == "second"
        wait_until_restarted(pool, old)
        for _ in range(50):
            assert pool.apply(answer) == "second"

        # As it was in the beginning: the present workers know another.
        answer = first
        assert pool.apply(answer) == "first"
        assert pool.apply(calls_answer) == "first"

        # And by name again, once workers have been made with it.
        old = pids(pool)
        pool.restart()
        wait_until_restarted(pool, old)
        deadline = time.monotonic() + 10
        while pool._core.snapshot.encode(answer, (), {}).by_value:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert pool.apply(answer) == "first"
    print("done")
