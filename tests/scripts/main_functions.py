"""Functions and classes of __main__, from before and after the pool. Argument: start method."""

import sys

from poolwatch import Pool


def before(number: int) -> int:
    return number * number


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def total(self) -> int:
        return self.x + self.y


if __name__ == "__main__":
    with Pool(2, context=sys.argv[1]) as pool:

        def after(number: int) -> int:
            return number**3

        print("before", pool.apply(before, (3,)))
        print("after", pool.apply(after, (3,)))
        print("class", pool.apply(Point.total, (Point(2, 3),)))
        print("lambda", pool.apply(lambda n: n + 10, (2,)))
