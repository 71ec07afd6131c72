"""A parent to be killed: its two workers are busy, each with two children.

Arguments: name of the face through which the jobs come, bell.
"""

import sys

import faults
from faces import FACES

if __name__ == "__main__":
    name, bell = sys.argv[1:]
    face = FACES[name]
    calls = [(faults.hang_with_two_children, bell)] * (2 * face.chunksize)
    face.outcomes(face.make(2, "zygote"), calls)
