"""The watch for leftovers finds each kind of leftover: a check that cannot fail is none."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator

import pytest
from helpers import Stage, assert_gone
from leaks import SHARED_MEMORY, LeakWatch

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def watch() -> Iterator[LeakWatch]:
    watch = LeakWatch()
    yield watch
    watch.close()


def found(watch: LeakWatch) -> str:
    return "\n".join(watch.leftovers(patience=0.1))


def test_nothing_is_found_where_nothing_is_left(watch: LeakWatch) -> None:
    """A process, a thread, a descriptor and files that are gone again are no leftovers."""
    subprocess.run(["true"], check=True)
    thread = threading.Thread(target=str)
    thread.start()
    thread.join()
    with socket.socket(), tempfile.NamedTemporaryFile():
        pass
    assert found(watch) == ""


def test_child_is_found_and_killed(watch: LeakWatch) -> None:
    """A child that still runs is reported, and kill() ends and reaps it."""
    child = subprocess.Popen(["sleep", "60"])
    assert f"process {child.pid} " in found(watch)
    watch.kill()
    assert child.wait() in (0, -signal.SIGKILL)  # 0: psutil has reaped it
    assert found(watch) == ""


def test_zombie_is_found(watch: LeakWatch) -> None:
    """A child that has ended but was not reaped is reported."""
    child = subprocess.Popen(["true"])
    assert_gone(child.pid)
    assert f"process {child.pid} " in found(watch)
    child.wait()
    assert found(watch) == ""


def orphan(start: str, stage: Stage) -> int:
    """A process that its parent has left behind, in a session of its own."""
    middle = os.fork()
    if not middle:
        with contextlib.suppress(BaseException):
            if start == "exec":
                subprocess.Popen(["sh", "-c", f"echo $$ > {stage.bell}; exec sleep 60"])
            elif not os.fork():
                os.setsid()
                with open(stage.bell, "w") as bell:
                    bell.write(f"{os.getpid()}\n")
                signal.pause()
        os._exit(0)
    os.waitpid(middle, 0)
    return int(stage.heard())


@pytest.mark.parametrize("start", ["exec", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # pytest-timeout has a thread
def test_orphan_is_found(watch: LeakWatch, stage: Stage, start: str) -> None:
    """A process that was adopted by another one is found, by environment or by descriptor."""
    pid = orphan(start, stage)
    assert f"process {pid} " in found(watch)
    watch.kill()
    assert_gone(pid)


def test_stranger_is_not_found(watch: LeakWatch, stage: Stage) -> None:
    """A process that began meanwhile, but carries another mark, is not the test's."""
    other = LeakWatch()
    pid = orphan("exec", stage)
    os.environ["POOLWATCH_TEST"] = watch.mark
    assert f"process {pid} " in found(other)
    assert found(watch).count("process") == 0
    other.kill()
    other.close()


def test_thread_is_found(watch: LeakWatch) -> None:
    """A thread that still runs is reported by its name."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left over")
    thread.start()
    assert "thread left over" in found(watch)
    end.set()
    thread.join()


@pytest.mark.parametrize("kind", ["socket", "pipe", "memfd", "epoll"])
def test_descriptor_is_found(watch: LeakWatch, kind: str) -> None:
    """Descriptors of each kind that the pool uses are reported with their target."""
    if kind == "socket":
        opened = [socket.socket().detach()]
    elif kind == "pipe":
        opened = list(os.pipe())
    elif kind == "memfd":
        opened = [os.memfd_create("left-over")]
    else:
        poller = select.epoll()
        opened = [os.dup(poller.fileno())]
        poller.close()
    text = found(watch)
    for descriptor in opened:
        assert f"descriptor {descriptor} -> " in text
        os.close(descriptor)
    assert {"epoll": "eventpoll"}.get(kind, kind) in text


def test_file_is_found(watch: LeakWatch) -> None:
    """A file in the temporary directory and a name in /dev/shm are reported."""
    with tempfile.NamedTemporaryFile(delete=False) as file:
        pass
    shared = SHARED_MEMORY / f"poolwatch-{watch.mark}"
    shared.touch()
    text = found(watch)
    shared.unlink()
    assert file.name in text
    assert str(shared) in text


def test_shared_memory_of_strangers_is_not_found(watch: LeakWatch) -> None:
    """What another program keeps open in /dev/shm is that program's own business."""
    shared = SHARED_MEMORY / f"poolwatch-{watch.mark}"
    other = LeakWatch()  # what is started now carries the other watch's mark
    with shared.open("w") as file:
        keeper = subprocess.Popen(["sleep", "60"], stdout=file, env={})
    try:
        assert str(shared) not in found_files(watch, keeper.pid)
    finally:
        keeper.kill()
        keeper.wait()
        shared.unlink()
        other.close()


def found_files(watch: LeakWatch, stranger: int) -> str:
    """What the watch finds, once it takes the process for a stranger's."""
    known = watch.processes
    watch.processes = lambda: [p for p in known() if p.pid != stranger]  # type: ignore[method-assign]
    return found(watch)
