"""What the jobs do in the tests of what a job finds around it."""

from __future__ import annotations

import contextvars
import logging
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from typing import Any

import poolwatch
from poolwatch import CurrentJob, current_job, worker_id

tenant: contextvars.ContextVar[Any] = contextvars.ContextVar("tenant")
locale: contextvars.ContextVar[str] = contextvars.ContextVar("locale", default="en")
unlisted: contextvars.ContextVar[str] = contextvars.ContextVar("unlisted", default="own")
log = logging.getLogger("child_work.sub")
seen_by_initializer: list[Any] = []


def wait_at(gate: str) -> None:
    with open(gate, "rb", buffering=0) as file:  # a buffer would take what others wait for
        file.read(1)


# -- surroundings ---------------------------------------------------------------------------------


def look_around(*names: str) -> tuple[str, dict[str, str | None]]:
    return os.getcwd(), {name: os.environ.get(name) for name in names}


def look_at_item(item: int) -> tuple[Any, str, str]:
    return variables()


def variables(*ignored: Any) -> tuple[Any, str, str]:
    return tenant.get("unset"), locale.get(), unlisted.get()


def length_and_variables(payload: bytes) -> tuple[int, Any]:
    return len(payload), tenant.get("unset")


def set_variables() -> None:
    tenant.set("leaked")
    locale.set("leaked")


def raise_around() -> None:
    raise KeyError("around")


def leave_around() -> None:
    sys.exit(3)


def ring_and_spin(bell: str) -> None:
    with open(bell, "w") as file:
        file.write("in\n")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pass


def spoil_environment() -> None:
    """Takes away the variable that will be taken back, and the mapping itself."""
    del os.environ["POOLWATCH_A"]
    os.environ["POOLWATCH_OWN"] = "own"
    os.environ = {}  # type: ignore[assignment]  # noqa: B003


def remove_old_directory(path: str) -> str:
    os.rmdir(path)
    return os.getcwd()


def enter(path: str) -> None:
    os.chdir(path)


def crash_the_first_time(flag: str) -> tuple[str, Any, CurrentJob | None]:
    if not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.environ["POOLWATCH_A"], tenant.get("unset"), current_job()


class LoadsNowhere:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ArithmeticError("refused")


# -- the current job ------------------------------------------------------------------------------


def note_what_the_initializer_sees() -> None:
    seen_by_initializer[:] = [current_job(), worker_id()]


def what_the_initializer_saw() -> list[Any]:
    return list(seen_by_initializer)


def who_am_i(*ignored: Any) -> CurrentJob | None:
    return current_job()


class Callable:
    def __call__(self) -> CurrentJob | None:
        return current_job()


def who_is_in_a_thread() -> CurrentJob | None:
    found: list[CurrentJob | None] = []
    thread = threading.Thread(target=lambda: found.append(current_job()))
    thread.start()
    thread.join()
    return found[0]


def who_is_in_a_nested_pool(context: str) -> tuple[CurrentJob | None, CurrentJob | None, list[Any]]:
    with poolwatch.Pool(1, note_what_the_initializer_sees, context=context, name="inner") as inner:
        return (
            inner.apply_async(who_am_i).get(20),
            current_job(),
            inner.apply_async(what_the_initializer_saw).get(20),
        )


def who_is_in_a_fork() -> str:
    return _in_fork(lambda: repr((current_job(), worker_id())))


def _in_fork(call: Any) -> str:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, call().encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


class WatchingThread:
    """A thread that outlives its job, and what it sees between two jobs."""

    seen: list[Any] = []  # noqa: RUF012

    @classmethod
    def start(cls, gate: str, bell: str) -> None:
        def watch() -> None:
            wait_at(gate)
            cls.seen.append(current_job())
            with open(bell, "w") as file:
                file.write("seen\n")

        threading.Thread(target=watch, daemon=True).start()

    @classmethod
    def what_it_saw(cls) -> list[Any]:
        return cls.seen


def ring_place_and_wait(bell: str, gate: str) -> int | None:
    with open(bell, "w") as file:
        file.write(f"{worker_id()}\n")
    wait_at(gate)
    return worker_id()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- logs -----------------------------------------------------------------------------------------


def log_from_initializer() -> None:
    log.warning("from the initializer")


class Unpicklable:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return "<an unpicklable>"


def log_all_kinds() -> None:
    log.debug("too low")
    log.warning("plain %s of %d", "args", 2, extra={"order": 7, "rich": {1, 2}})
    log.warning("odd %s", Unpicklable(), extra={"odd": Unpicklable()})
    try:
        raise ValueError("told as text")
    except ValueError:
        log.exception("an exception")


def log_once(name: str, text: str) -> None:
    logging.getLogger(name).warning(text)


def log_unloadable() -> None:
    log.warning("unloadable", extra={"evil": LoadsNowhere()})


def log_badly() -> None:
    log.warning("%d", "no number")


def log_and_crash() -> None:
    log.error("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def log_large(size: int) -> None:
    log.warning("x" * size, extra={"blob": "\N{SNOWMAN}" * size})


def log_many(count: int) -> int:
    for number in range(count):
        log.warning("one of many %d %s", number, "." * 200)
    return count


def log_in_threads(threads: int, each: int) -> list[int]:
    workers = [threading.Thread(target=log_many, args=(each,)) for _ in range(threads)]
    for thread in workers:
        thread.start()
    results = [n for n in range(200)]  # noqa: C416
    for thread in workers:
        thread.join()
    return results


def log_in_fork() -> int:
    pid = os.fork()
    if pid == 0:
        log.warning("from a fork")
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


# -- titles, random streams -----------------------------------------------------------------------


def command_lines() -> tuple[str, str, str]:
    """Of this worker, its parent and its parent's parent."""
    zygote = os.getppid()
    with open(f"/proc/{zygote}/status") as file:
        guardian = next(line.split()[1] for line in file if line.startswith("PPid:"))
    return _command_line("self"), _command_line(str(zygote)), _command_line(guardian)


def _command_line(pid: str) -> str:
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().strip("\0")


def draw() -> tuple[int, float, float, str, str]:
    import numpy

    return (
        os.getpid(),
        random.random(),
        float(numpy.random.random()),
        secrets.token_hex(),
        str(uuid.uuid4()),
    )


# -- usage ----------------------------------------------------------------------------------------


def burn(seconds: float) -> None:
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        sum(range(20_000))  # reading the clock is the kernel's work


def burn_in_kernel(seconds: float) -> None:
    start = time.thread_time()
    with open("/dev/zero", "rb", buffering=0) as zero:
        target = bytearray(1 << 20)
        while time.thread_time() - start < seconds:
            zero.readinto(target)


def read_own_usage(func: str, seconds: float) -> tuple[float, float]:
    """User and system time as the kernel tells them, of a part of this job."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    globals()[func](seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def burn_in_thread(seconds: float) -> None:
    thread = threading.Thread(target=burn, args=(seconds,))
    thread.start()
    thread.join()


def fill(size: int) -> int:
    return len(b"\1" * size)


def fill_for(size: int, seconds: float) -> None:
    """Fill memory, and take that long at least."""
    fill(size)
    burn(seconds)


def fill_and_fail(size: int) -> None:
    fill(size)
    raise ValueError("filled")


# -- nests ----------------------------------------------------------------------------------------


def in_nested_pool(kind: str, method: str) -> int:
    if kind == "poolwatch":
        with poolwatch.Pool(2, context=method) as pool:
            return sum(pool.map(square, range(10)))
    import multiprocessing

    context = multiprocessing.get_context(method)
    if kind == "multiprocessing":
        with context.Pool(2) as pool:
            return sum(pool.map(square, range(10)))
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2, mp_context=context) as executor:
        return sum(executor.map(square, range(10)))


def square(n: int) -> int:
    return n * n


def leave_nested_pool_open() -> int:
    pool = poolwatch.Pool(1)
    pid = pool.apply(os.getpid)
    globals()["_kept"] = pool
    return int(pid)


def hold_nested_pool(bell: str) -> None:
    with poolwatch.Pool(1) as pool:
        pid = pool.apply(os.getpid)
        with open(bell, "w") as file:
            file.write(f"{pid}\n")
        threading.Event().wait(60)


def fork_and_return() -> str:
    return "child" if os.fork() == 0 else "parent"


def fork_and_raise() -> str:
    if os.fork() == 0:
        raise ValueError("in the child")
    return "parent"


def fork_and_exit(how: str) -> str:
    if os.fork() == 0:
        if how == "os._exit":
            os._exit(0)
        sys.exit(0)
    return "parent"


def leave_thread(daemon: bool) -> int:
    threading.Thread(target=threading.Event().wait, args=(60,), daemon=daemon).start()
    return os.getpid()


def leave_finite_thread(gate: str) -> int:
    def wait() -> None:
        wait_at(gate)

    threading.Thread(target=wait).start()
    return os.getpid()


def run_program() -> str:
    program = [sys.executable, "-c", "print('out')"]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip()
