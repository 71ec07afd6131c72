"""A Celery app whose tasks end in every way there is; configured by the environment.

``CELERY_APP_CONF`` holds its configuration as JSON. Run by ``celery -A celery_app worker``.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any, NoReturn

from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded

app = Celery("celery_app", set_as_current=False)
app.conf.update(json.loads(os.environ.get("CELERY_APP_CONF", "{}")))

BOTH = {"acks_late": True, "reject_on_worker_lost": True}


def ring(bell: str, text: object) -> None:
    with open(bell, "w") as fifo:
        fifo.write(f"{text}\n")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def pid() -> int:
    return os.getpid()


@app.task
def pause(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.task
def ring_and_wait(bell: str, gate: str) -> int:
    """Say which process this is, and wait to be let go."""
    ring(bell, os.getpid())
    with open(gate, "rb", buffering=0) as fifo:
        fifo.read(1)
    return os.getpid()


@app.task(acks_late=True)
def ring_and_wait_late(bell: str, gate: str) -> int:
    return ring_and_wait.run(bell, gate)  # type: ignore[no-any-return]


@app.task
def abort() -> NoReturn:
    os.abort()


@app.task
def segfault() -> int:
    return ctypes.string_at(0)  # type: ignore[return-value]


@app.task
def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def leave(code: int) -> NoReturn:
    os._exit(code)


@app.task
def leave_at_once() -> NoReturn:
    os._exit(0)


@app.task
def system_exit(code: int) -> NoReturn:
    sys.exit(code)


@app.task
def fail() -> NoReturn:
    raise ValueError("mine")


@app.task(soft_time_limit=0.3)
def soft_limit() -> str:
    """Catches Celery's own class."""
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "caught"
    return "not interrupted"


@app.task(soft_time_limit=0.3)
def soft_limit_uncaught() -> None:
    time.sleep(30)


@app.task(time_limit=0.5)
def hard_limit() -> None:
    """In C code that holds the interpreter's lock."""
    sum(range(10**12))


@app.task(time_limit=0.5, soft_time_limit=5)
def crossed_limits() -> None:
    time.sleep(30)


@app.task(**BOTH)
def abort_at_first(path: str) -> str:
    """Kills its process, and runs to its end when it is delivered again."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os.abort()
    return "again"


@app.task(acks_late=True)
def late_abort() -> NoReturn:
    os.abort()


@app.task(bind=True, max_retries=2, default_retry_delay=0.3)
def retry_twice(self: Any) -> int:
    if self.request.retries < 2:
        raise self.retry()
    return int(self.request.retries)


@app.task
def swallow_exit(bell: str) -> str:
    """Does not heed SIGTERM."""
    ring(bell, os.getpid())
    while True:
        try:
            time.sleep(30)
        except SystemExit:
            pass


@app.task
def unpicklable_error() -> NoReturn:
    class Local(Exception):
        pass

    raise Local("cannot travel")


@app.task
def grab(megabytes: int) -> int:
    """Makes its process grow for good."""
    grab.kept = [*getattr(grab, "kept", ()), bytearray(os.urandom(1)) * (megabytes << 20)]
    return os.getpid()


@app.task
def child_of_task(kind: str) -> int | None:
    """A task may start processes of its own."""
    if kind == "subprocess":
        return subprocess.run([sys.executable, "-c", "print(1)"], check=True).returncode
    process = importlib.import_module(kind).Process(target=os.getpid)
    process.start()
    process.join()
    return int(process.exitcode)


@app.task
def about_me() -> dict[str, Any]:
    """What Celery and billiard know of this process."""
    from billiard.process import current_process

    process = current_process()
    return {"name": process.name, "index": process.index, "hostname": pid.app.conf.get("x") or ""}


# -- what the signals of pool processes have seen ----------------------------------------------


def note(line: str) -> None:
    path = os.environ.get("CELERY_APP_NOTES")
    if path:
        with open(path, "a") as notes:
            notes.write(f"{line} {os.getpid()}\n")


@signals.worker_process_init.connect
def on_init(**_: Any) -> None:
    note("init")
    if "CELERY_APP_DOES_NOT_BOOT" in os.environ:
        sys.exit("this process does not boot")


@signals.worker_process_shutdown.connect
def on_shutdown(pid: int, exitcode: int, **_: Any) -> None:
    note(f"shutdown {pid} {exitcode}")


@signals.worker_before_create_process.connect
def on_create(**_: Any) -> None:
    note("create")
