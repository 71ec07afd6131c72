"""The program beside ProcessPoolExecutor. Argument: where the executor comes from."""

import concurrent.futures
import math
import sys

if sys.argv[1] == "poolwatch":
    from poolwatch import ProcessPoolExecutor
else:
    from concurrent.futures import ProcessPoolExecutor

PRIMES = [
    112272535095293,
    112582705942171,
    115280095190773,
    115797848077099,
    1099726899285419,
]


def is_prime(n):
    if n < 2:
        return False
    if n == 2:
        return True
    if n % 2 == 0:
        return False
    return all(n % i for i in range(3, min(math.isqrt(n), 200_000) + 1, 2))


def main():
    with ProcessPoolExecutor() as executor:
        for number, prime in zip(PRIMES, executor.map(is_prime, PRIMES), strict=True):
            print(f"{number} is prime: {prime}")
        futures = {executor.submit(is_prime, n): n for n in PRIMES}
        for future in concurrent.futures.as_completed(futures, timeout=30):
            print("done", futures[future], future.result())


if __name__ == "__main__":
    main()
