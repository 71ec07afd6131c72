"""The first program in the documentation of multiprocessing. Argument: where Pool comes from."""

import sys

if sys.argv[1] == "poolwatch":
    from poolwatch import Pool
else:
    from multiprocessing import Pool


def f(x):
    return x * x


if __name__ == "__main__":
    with Pool(5) as p:
        print(p.map(f, [1, 2, 3]))
