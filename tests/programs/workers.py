"""A tour of Pool's methods, as under "Using a pool of workers". Argument: where Pool comes from."""

import multiprocessing
import random
import sys
import time

if sys.argv[1] == "poolwatch":
    from poolwatch import Pool, TimeoutError
else:
    from multiprocessing import Pool, TimeoutError


def calculate(func, args):
    return f"{func.__name__}{args} = {func(*args)}", multiprocessing.current_process().name


def calculatestar(args):
    return calculate(*args)


def mul(a, b):
    time.sleep(0.05 * random.random())
    return a * b


def plus(a, b):
    time.sleep(0.05 * random.random())
    return a + b


def f(x):
    return 1.0 / (x - 5.0)


def pow3(x):
    return x**3


def noop(x):
    pass


def slow(x):
    time.sleep(0.6)
    return x


def show(heading, results):
    print(heading)
    for text, worker in results:
        assert worker != "MainProcess"
        print("\t", text)


def raises(call):
    try:
        call()
    except ZeroDivisionError as error:
        print("\tgot", repr(error), "caused by", type(error.__cause__).__name__)
    else:
        raise AssertionError("expected ZeroDivisionError")


def errors(pool):
    print("Error handling:")
    raises(lambda: pool.apply(f, (5,)))
    raises(lambda: pool.map(f, list(range(10))))
    raises(lambda: list(pool.imap(f, list(range(10)))))
    it = pool.imap(f, list(range(10)))
    for i in range(10):
        try:
            x = next(it)
        except ZeroDivisionError:
            assert i == 5
        except StopIteration:
            break
        else:
            print("\t", i, x)
    assert i == 9


def timeouts(pool):
    res = pool.apply_async(slow, (3,))
    waits = 0
    while True:
        try:
            print("\tgot", res.get(0.1))
            break
        except TimeoutError:
            waits += 1
    print("\twaited", waits > 0)
    it = pool.imap(slow, list(range(3)))
    waits = 0
    while True:
        try:
            print("\tgot", it.next(0.1))
        except StopIteration:
            break
        except TimeoutError:
            waits += 1
    print("\twaited", waits > 0)


def test():
    with Pool(4) as pool:
        tasks = [(mul, (i, 7)) for i in range(10)] + [(plus, (i, 8)) for i in range(10)]
        handles = [pool.apply_async(calculate, t) for t in tasks]
        in_order = pool.imap(calculatestar, tasks)
        out_of_order = pool.imap_unordered(calculatestar, tasks)
        show("apply_async:", [handle.get() for handle in handles])
        show("imap:", in_order)
        show("imap_unordered:", sorted(out_of_order))
        show("map, which blocks:", pool.map(calculatestar, tasks))
        show("starmap:", pool.starmap(calculate, tasks, 3))
        errors(pool)
        print("Timeouts:")
        timeouts(pool)

        found = []
        pool.map_async(pow3, range(6), callback=found.extend).wait()
        pool.apply_async(mul, (7, 8), callback=found.append).wait()
        print("callbacks:", found)
        print("of None:", pool.map(noop, range(3)))
        pool.close()
        pool.join()
        print("joined")


if __name__ == "__main__":
    multiprocessing.freeze_support()
    test()
