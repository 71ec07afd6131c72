"""``AsyncPool``: the pool for programs that run in an ``asyncio`` event loop.

No thread waits for a job: the loop is woken once for many that have ended. Cancelling the task that
awaits a job stops the job.
"""

from poolwatch.aio.imap import AsyncIMapIterator
from poolwatch.aio.jobs import JobFuture
from poolwatch.aio.pool import AsyncCalls, AsyncPool

__all__ = ["AsyncCalls", "AsyncIMapIterator", "AsyncPool", "JobFuture"]
