"""What is concluded from which evidence, without processes: groups, core files, dumps, calls."""

from __future__ import annotations

import datetime
import pickle
import signal
import time
import zoneinfo
from pathlib import Path

import pytest

from poolwatch.evidence import core_dumps
from poolwatch.evidence.call_text import describe_call
from poolwatch.evidence.oom import OomWatch, find_group
from poolwatch.evidence.stacks import trim
from poolwatch.evidence.verdicts import c_hint, innermost, verdict
from poolwatch.loss import Postmortem

MIB = 2**20
UNIFIED = "0::/a/b\n"
SEPARATE = "5:memory:/a\n4:cpu:/\n0::/\n"


def record(**values: object) -> Postmortem:
    return Postmortem(**{"worker": "w", "pid": 1, "exitcode": -9, "phase": "running", **values})  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Control groups of both versions."""
    for folder, kills, limit in (("a/b", 3, 512 * MIB), ("a", 5, 256 * MIB), ("", 7, None)):
        group = tmp_path / "sys/fs/cgroup" / folder
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.events").write_text(f"low 0\noom 9\noom_kill {kills}\n")
        (group / "memory.max").write_text("max\n" if limit is None else f"{limit}\n")
    group = tmp_path / "sys/fs/cgroup/memory/a"
    group.mkdir(parents=True)
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 11\n")
    (group / "memory.limit_in_bytes").write_text(f"{100 * MIB}\n")
    (group.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    return tmp_path


@pytest.mark.parametrize(("text", "kills", "limit"), [(UNIFIED, 3, 256), (SEPARATE, 11, 100)])
def test_group_is_found(root: Path, text: str, kills: int, limit: int) -> None:
    """Its own counter, and the least limit of those around it; both versions."""
    group = find_group(text, root)
    assert group is not None
    assert (group.kills(), group.limit()) == (kills, limit * MIB)


def test_group_out_of_sight(root: Path, tmp_path: Path) -> None:
    """Within a container the path is another one than outside: the nearest that can be seen."""
    group = find_group("0::/a/gone/deeper\n", root)
    assert group is not None
    assert group.kills() == 5
    moved = find_group("0::/../x\n", root)
    assert moved is not None
    assert moved.kills() == 7
    assert find_group(UNIFIED, tmp_path / "nothing") is None
    assert find_group("", root) is None


def test_evidence_is_used_up(root: Path) -> None:
    """What the counter went up by stands for as many deaths, at that moment, and no more."""
    now = [100.0]
    watch = OomWatch(lambda: now[0], root)
    events = root / "sys/fs/cgroup/a/b/memory.events"
    watch.enter(UNIFIED)
    assert watch.evidence(UNIFIED, 200 * MIB) is None
    events.write_text("oom_kill 5\n")
    now[0] = 101.0
    first = watch.evidence(UNIFIED, 200 * MIB)
    assert first is not None
    assert (first.kills_before, first.kills_after, first.seconds) == (3, 5, 1.0)
    assert watch.evidence(UNIFIED, 200 * MIB) is not None
    assert watch.evidence(UNIFIED, 200 * MIB) is None


def test_stale_evidence_is_none(root: Path) -> None:
    """A kill that was seen at an earlier look, long before the death."""
    now = [100.0]
    watch = OomWatch(lambda: now[0], root)
    watch.enter(UNIFIED)
    (root / "sys/fs/cgroup/a/b/memory.events").write_text("oom_kill 4\n")
    watch.look()
    now[0] = 110.0
    assert watch.evidence(UNIFIED, 200 * MIB) is None


def test_small_worker_is_no_victim(root: Path) -> None:
    """Somebody else was killed there, a child say: not this worker, which had next to nothing."""
    watch = OomWatch(lambda: 1.0, root)
    watch.enter(UNIFIED)
    (root / "sys/fs/cgroup/a/b/memory.events").write_text("oom_kill 4\n")
    assert watch.evidence(UNIFIED, 10 * MIB) is None
    assert watch.evidence(UNIFIED, 250 * MIB) is not None


def test_without_groups_it_says_possibly() -> None:
    """No counter: a large worker was possibly taken by the kernel, a small one was not."""
    large = verdict(record(peak_rss=900 * MIB), False, 1000 * MIB)
    assert large == (
        "killed by SIGKILL from outside (not by this pool), possibly by the kernel's "
        "out-of-memory killer: worker at 900 MiB of 1000 MiB"
    )
    outside = "killed by SIGKILL from outside (not by this pool)"
    assert verdict(record(peak_rss=90 * MIB), False, 1000 * MIB) == outside
    assert verdict(record(peak_rss=900 * MIB), True, 1000 * MIB) == outside


THREADS = """Fatal Python error: Aborted

Thread 0x00007f01 (most recent call first):
  File "/usr/lib/threading.py", line 312 in wait

Current thread 0x00007f00 (most recent call first):
  File "/srv/crawler/parse.py", line 88 in parse
  File "/srv/crawler/main.py", line 5 in run
"""


def test_innermost_frame() -> None:
    """The current thread's, wherever it stands; nothing where there is no Python frame."""
    assert innermost(THREADS) == "crawler/parse.py:88 in parse"
    assert innermost('Current thread 0x1:\n  File "x.py", line 3 in f') == "x.py:3 in f"
    assert innermost("Current thread 0x1:\n  <no Python frame>\nThread 0x2:\n  File ...") is None
    assert innermost(None) is innermost("") is None


@pytest.mark.parametrize(
    ("signum", "words"),
    [
        (signal.SIGABRT, "aborted"),
        (signal.SIGSEGV, "segmentation fault"),
        (signal.SIGBUS, "bus error"),
        (signal.SIGFPE, "arithmetic error"),
        (signal.SIGILL, "illegal instruction"),
    ],
)
def test_crashes(signum: int, words: str) -> None:
    """Each crash by its name and place."""
    place = "in C code called from crawler/parse.py:88 in parse"
    found = verdict(record(exitcode=-signum, traceback=THREADS), True, None)
    assert found == f"{words} {place}"
    assert verdict(record(exitcode=-signum), True, None) == words


def test_hint() -> None:
    """The last telling line of standard error, and no other."""
    assert c_hint("free(): invalid pointer\nsaying goodbye\n") == "free(): invalid pointer"
    assert c_hint("AssertionError: handled and logged, all well") is None
    assert c_hint("x.c:3: f: Assertion `n > 0' failed.") is not None
    assert c_hint("all is well") is c_hint(None) is None


def test_core_pattern(tmp_path: Path) -> None:
    """Patterns with what is known, wildcards for what is not, programs by name."""
    (tmp_path / "core.12.python3.6").touch()
    found = core_dumps.locate(12, 6, "core.%p.%e.%s", str(tmp_path))
    assert found == str(tmp_path / "core.12.python3.6")
    assert core_dumps.locate(13, 6, "core.%p", str(tmp_path)) == "written as core.%p"
    piped = "|/lib/systemd/systemd-coredump %P %u"
    assert core_dumps.locate(14, 6, piped) == "kept by systemd-coredump: coredumpctl info 14"
    assert core_dumps.locate(15, 6, "|/usr/share/apport -p%p") == "given to /usr/share/apport"


def test_calls() -> None:
    """Odd payloads never raise; what cannot be read is left out."""
    assert describe_call("f", True, None, None) == "f(...)"
    assert describe_call("f", True, b"no pickle", None) == "f(...)"
    assert describe_call("f", True, pickle.dumps((object(),), 5), None) == "f(object())"
    loop: list[object] = []
    loop.append(loop)
    assert describe_call("f", True, pickle.dumps((loop,), 5), None) == "f([[[[...]]]])"
    root: dict[str, object] = {}
    root["children"] = [{"parent": root} for _ in range(3)]
    assert len(describe_call("f", True, pickle.dumps((Pair(root, root),), 5), None)) <= 200
    deep: object = 1
    for _ in range(40):
        deep = Pair(deep, deep)
    text = describe_call("f", True, pickle.dumps((deep,), 5), None)
    assert text.startswith("f(Pair(left=Pair(left=Pair(left=Pair(...), right=Pair(...)), right=")
    assert describe_call("f", True, pickle.dumps((1, 10**5000), 5), None) == (
        "f(1, <int of 16610 bits>)"
    )
    moment = datetime.datetime(2020, 1, 2, tzinfo=zoneinfo.ZoneInfo("UTC"))
    text = describe_call("f", True, pickle.dumps((moment, "next"), 5), None)
    assert text.startswith("f(datetime(")
    assert text.endswith("'next')")
    began = time.monotonic()
    assert describe_call("f", True, pickle.dumps((Huge(),), 5), None) == "f(bytearray(300000000))"
    assert time.monotonic() - began < 1.0
    long = describe_call("f", True, pickle.dumps(tuple("x" * 99 for _ in range(9)), 5), None)
    assert len(long) == 200
    assert long.endswith("...)")
    whole = pickle.dumps((len, ("a",), {"b": 1}), 5)
    assert describe_call("f", False, whole, None) == "f('a', b=1)"
    chunk = pickle.dumps((len, [("a", 1), ("b", 2)], True), 5)
    assert describe_call("f", False, chunk, 1) == "f('b', 2)"


class Pair:
    def __init__(self, left: object, right: object) -> None:
        self.left, self.right = left, right


class Huge:
    def __reduce__(self) -> object:
        return bytearray, (300_000_000,)


def test_idle_worker_s_own_frames_are_left_out() -> None:
    """Of a worker that waits for a job nothing is left; of a thread of the user's there is."""
    from poolwatch.transport import frames
    from poolwatch.worker import main

    own = f'  File "{frames.__file__}", line 9 in read\n  File "{main.__file__}", line 8 in serve'
    head = "Current thread 0x1 (most recent call first):\n"
    assert trim(head + own, in_job=False) == ""
    other = 'Thread 0x2 (most recent call first):\n  File "/srv/x.py", line 3 in work\n\n'
    assert "x.py" in trim(other + head + own, in_job=False)


def test_note_follows_the_header_of_its_thread() -> None:
    """A job whose function is C code has no frame; other threads, before or after it, have."""
    from poolwatch.worker import chunks, main

    note = "  in the job's function itself, which is not Python code"
    fatal = "Fatal Python error: Aborted\n\n"
    head = "Current thread 0x1 (most recent call first):\n"
    own = (
        f'  File "{chunks.__file__}", line 4 in run\n'
        f'  File "{main.__file__}", line 8 in serve\n  File "/srv/start.py", line 1 in <module>\n'
    )
    other = 'Thread 0x2 (most recent call first):\n  File "/srv/x.py", line 3 in work\n'
    modules = "\nExtension modules: _pydatetime (total: 1)\n"
    assert trim(fatal + other + "\n" + head + own + modules) == fatal + other + "\n" + head + note
    after = trim(fatal + head + own + "\n" + other)
    assert after == fatal + head + note + "\n\n" + other.rstrip()
    assert note not in trim(head + own.replace("/srv/start.py", "/x.py") + other, in_job=False)
    called = '  File "/srv/job.py", line 2 in job\n'
    assert trim(fatal + head + called + own) == (fatal + head + called).rstrip()
