"""Many big results that nobody has fetched yet, under a low limit of descriptors."""

import resource

from helpers import DEADLINE

from poolwatch import Pool

COUNT = 300
SIZE = 1 << 20

if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    with Pool(2) as pool:
        jobs = [pool.apply_async(bytes, (SIZE,)) for _ in range(COUNT)]
        for job in jobs:
            job.wait(DEADLINE)
        whole = [job.get(DEADLINE) == bytes(SIZE) for job in jobs]
    print(whole.count(True), "of", COUNT)
