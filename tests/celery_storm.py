"""Tasks in their thousands while somebody outside kills the worker's processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field

import psutil
from celery_rig import FINAL, Client, Worker

_PAUSE = 0.05  # seconds between two kills


@dataclass
class Account:
    """What became of the tasks.

    Attributes:
        sent: how many were sent.
        open: how many had no final state in the end.
        succeeded: how many returned.
        lost: how many have failed with a reason.
        kills: how many processes were killed meanwhile.
        reasons: the classes of the failures.
    """

    sent: int = 0
    open: int = 0
    succeeded: int = 0
    lost: int = 0
    kills: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def storm(worker: Worker, client: Client, count: int, timeout: float = 60.0) -> Account:
    """Send tasks, and kill a process that may run one every few milliseconds until all have ended.

    Args:
        worker: whose processes are killed.
        client: sends the tasks.
        count: how many tasks.
        timeout: seconds that they have to end.
    """
    account = Account(sent=count)
    over = threading.Event()
    killer = threading.Thread(target=_kill_until, args=(over, worker, account), daemon=True)
    killer.start()
    try:
        ids = client.send_many("add", [(n, n) for n in range(count)])
        with contextlib.suppress(AssertionError):
            client.metas(ids, timeout)
    finally:
        over.set()
        killer.join()
    for meta in client.broker.metas(ids):
        if meta is None or meta["status"] not in FINAL:
            account.open += 1
        elif meta["status"] == "SUCCESS":
            account.succeeded += 1
        elif meta["result"]["exc_message"]:
            account.lost += 1
            account.reasons[meta["result"]["exc_type"]] += 1
    return account


def _kill_until(over: threading.Event, worker: Worker, account: Account) -> None:
    chance = random.Random(1)
    while not over.wait(_PAUSE):
        victims = task_processes(worker)
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(victims), signal.SIGKILL)
                account.kills += 1


def task_processes(worker: Worker) -> list[int]:
    """The processes that run tasks: those below the worker that have no children."""
    found = []
    for process in worker.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            if not process.children():
                found.append(process.pid)
    return found
