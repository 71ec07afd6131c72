"""A parent to be killed: one worker busy with two children, one worker idle.

Arguments: start method, bell, gate.
"""

import signal
import sys

import faults
import work

from poolwatch import Pool

if __name__ == "__main__":
    start_method, bell, gate = sys.argv[1:]
    pool = Pool(2, context=start_method)
    busy = pool.apply_async(faults.hang_with_two_children, (bell,))
    idle = pool.apply_async(work.square, (3,))
    assert idle.get(30) == 9
    work.ring(bell, "idle")
    while True:
        signal.pause()
