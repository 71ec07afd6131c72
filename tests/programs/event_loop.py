"""run_in_executor with processes, as in asyncio's documentation. Argument: whose executor."""

import asyncio
import sys

if sys.argv[1] == "poolwatch":
    from poolwatch import ProcessPoolExecutor
else:
    from concurrent.futures import ProcessPoolExecutor


def cpu_bound():
    return sum(i * i for i in range(10**5))


def fails(text):
    raise LookupError(text)


async def main():
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor() as pool:
        result = await loop.run_in_executor(pool, cpu_bound)
        print("custom process pool", result)
        print(await asyncio.gather(*(loop.run_in_executor(pool, pow, n, 2) for n in range(5))))
        try:
            await loop.run_in_executor(pool, fails, "nothing here")
        except LookupError as error:
            print(repr(error), "caused by", type(error.__cause__).__name__)


if __name__ == "__main__":
    asyncio.run(main())
