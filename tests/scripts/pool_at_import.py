"""A module that makes a pool, and uses it, while it is imported.

Argument: start method. Prints the results.
"""

import sys

from poolwatch import Pool


def square(number: int) -> int:
    return number * number


if __name__ == "__main__":
    import pool_at_import  # noqa: F401
else:
    with Pool(2, context=sys.argv[1]) as pool:
        print(pool.map(square, range(3)))
