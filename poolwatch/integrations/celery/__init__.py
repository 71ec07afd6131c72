"""Poolwatch as the pool of a Celery worker (extra ``celery``).

::

    pip install 'poolwatch[celery]'
    export CELERY_CUSTOM_WORKER_POOL=poolwatch.integrations.celery:TaskPool
    celery -A proj worker -P custom

The worker runs one of two loops, by the transport of its broker. With Redis or AMQP it is an event
loop in one thread, kombu's *hub*, and everything that Celery does with a task's outcome must happen
in that thread; with the filesystem or in memory it is a blocking loop, and any thread will do::

      hub's thread                         threads of the pool
    +--------------------------+         +----------------------------------+
    | consumer -> on_apply  ---+-------> | supervisor: sees deaths, limits, |
    |                          |         | great results                    |
    | Mailbox.empty() <--------+--pipe-- | Mailbox.post(TaskHandle.settle)  |
    |   callbacks of Request   |         +----------------------------------+
    |   semaphore.release()    |
    | Hosting.take_in() <------+--------   workers' streams, lent to the hub
    +--------------------------+
                                           without a hub: the delivery thread calls settle()

``TaskPool`` is what Celery sees, ``TaskHandle`` the way of one task through it, ``Mailbox`` the
door to the hub's thread, ``Slots`` the account of Celery's semaphore. ``child`` is what runs in the
workers, ``errors`` says which of Celery's exceptions stands for which end.
"""

from poolwatch.integrations.celery.pool import TaskPool

TaskPool.__module__ = __name__  # by which the worker's banner and ``inspect stats`` name it

__all__ = ["TaskPool"]
