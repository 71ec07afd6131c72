"""The demo: what it follows, which handlers go wrong, and an account that can fail to add up.

The end-to-end tests run ``python -m poolwatch demo`` against the real documentation server. That
nothing is left behind is checked after each test by the fixture of the whole suite, and here at
once, where the demo itself promises it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import pty
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cloudpickle
import pytest
from leaks import LeakWatch
from rich.console import Console

from poolwatch.cli.demo import options as demo_options
from poolwatch.cli.demo.account import Account, Cause, cause_of
from poolwatch.cli.demo.crawl import START, Crawl
from poolwatch.cli.demo.faults import Fault, FaultPlan, PlannedError, commit
from poolwatch.cli.demo.options import DemoOptions
from poolwatch.cli.demo.pages import (
    ErrorPageError,
    FetchError,
    FetchTimeoutError,
    Page,
    PageOrder,
    fetch,
    parse,
)
from poolwatch.cli.demo.records import Ended, Event, Interrupted, WorkerRow, WorkerStarted
from poolwatch.cli.demo.report import account_lines
from poolwatch.cli.demo.runner import conclude
from poolwatch.cli.demo.site import DocSite, SiteError
from poolwatch.cli.demo.view import LiveView, PlainView, Snapshot
from poolwatch.cli.main import main
from poolwatch.exceptions import (
    MaybeEncodingError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

ROOT = Path(__file__).parent.parent
SITE = "http://127.0.0.1:1/"
PATHS = [f"module{number}.html" for number in range(10_000)]

# What each fault's job ends with, in a pool that tells.
ERRORS: dict[Fault, BaseException] = {
    Fault.ABORT: WorkerLostError("", exitcode=-signal.SIGABRT),
    Fault.SEGFAULT: WorkerLostError("", exitcode=-signal.SIGSEGV),
    Fault.KILL: WorkerLostError("", exitcode=-signal.SIGKILL),
    Fault.HANG: TimeLimitExceeded("", timeout=1.0),
    Fault.RAISE: PlannedError(),
    Fault.UNPICKLABLE: MaybeEncodingError("reason", "value"),
}


# --- which handlers go wrong ---


def test_same_seed_picks_the_same_pages() -> None:
    """The choice depends on seed and page only, not on the order of asking."""
    forwards = {path: FaultPlan(7, 0.06).fault_of(path) for path in PATHS}
    plan = FaultPlan(7, 0.06)
    assert {path: plan.fault_of(path) for path in reversed(PATHS)} == forwards
    assert {path: FaultPlan(8, 0.06).fault_of(path) for path in PATHS} != forwards


def test_choice_is_the_same_in_every_process() -> None:
    """No hash of the interpreter's is in it, which changes from process to process."""
    code = (
        "from poolwatch.cli.demo.faults import FaultPlan; plan = FaultPlan(7, 0.3);"
        "print([plan.fault_of(f'module{n}.html') for n in range(50)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    plan = FaultPlan(7, 0.3)
    assert done.stdout.strip() == str([plan.fault_of(path) for path in PATHS[:50]])


def test_share_of_the_pages_is_picked() -> None:
    """About the share that was asked for goes wrong, in every kind; with 0 none, with 1 all."""
    picked = Counter(FaultPlan(1, 0.06).fault_of(path) for path in PATHS)
    assert 500 < len(PATHS) - picked[None] < 700
    assert all(picked[fault] > 50 for fault in Fault)
    assert {FaultPlan(1, 0.0).fault_of(path) for path in PATHS} == {None}
    assert None not in {FaultPlan(1, 1.0).fault_of(path) for path in PATHS}


@pytest.mark.parametrize("seed", range(20))
def test_first_modules_of_the_index_meet_each_kind(seed: int) -> None:
    """Whatever the seed, a crawl of a few dozen pages has every kind of fault."""
    plan = FaultPlan(seed, 0.001)
    first = [f"{name}.html" for name in sys.builtin_module_names[:40]]
    assert {plan.fault_of(path) for path in first} >= set(Fault)


def test_no_share_spares_the_picked_pages_too() -> None:
    """Without faults not even one of each kind is left."""
    plan = FaultPlan(1, 0.0)
    assert not any(plan.fault_of(f"{name}.html") for name in sys.builtin_module_names)


@pytest.mark.parametrize(
    ("fault", "signum"),
    [
        (Fault.ABORT, signal.SIGABRT),
        (Fault.SEGFAULT, signal.SIGSEGV),
        (Fault.KILL, signal.SIGKILL),
    ],
)
def test_deadly_fault_dies_by_its_signal(fault: Fault, signum: int) -> None:
    """The process that commits it is really killed by the signal that the account expects."""
    code = (
        "from poolwatch.cli.demo.pages import prepare_worker; prepare_worker(True);"
        f"from poolwatch.cli.demo.faults import Fault, commit; commit({fault})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -signum


def test_other_faults_raise_and_return_what_no_pickle_holds() -> None:
    with pytest.raises(PlannedError):
        commit(Fault.RAISE)
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with pytest.raises(TypeError):
            dumps(commit(Fault.UNPICKLABLE))


# --- pages ---


def page_of(*hrefs: str, title: str = "Pydoc: module x", path: str = "x.html") -> Page:
    links = "".join(f'<p><a href="{href}">name</a>' for href in hrefs)
    return parse(SITE, path, f"<!DOCTYPE><html><head><title>{title}</title></head>{links}")


def test_links_are_the_sites_own_pages() -> None:
    """Kept once each and in order, without fragments; addresses elsewhere are not followed."""
    page = page_of(
        *("b.html", "a.b.html#Class", "#here", "topic?key=if", "b.html#again"),
        *("http://docs.python.org/3/b.html", "file:/lib/b.py", "pydoc_data/_pydoc.css"),
        *("https://[broken", "ftp://127.0.0.1:1/c.html", "http://127.0.0.1:11/c.html"),
    )
    assert page.links == ("b.html", "a.b.html", "x.html", "topic?key=if")


@pytest.mark.parametrize(
    "name", ["antigravity", "this", "idlelib", "idlelib.run", "test", "test.support", "a.__main__"]
)
def test_modules_that_must_not_be_imported_are_left_out(name: str) -> None:
    """The server imports what it shows, so these pages are never asked for."""
    assert page_of(f"{name}.html", f"topic?key={name}", "testing.html").links == ("testing.html",)


def test_link_that_http_does_not_allow_is_escaped() -> None:
    assert page_of("topic?key=not in", "topic?key=!=").links == (
        "topic?key=not%20in",
        "topic?key=!=",
    )


def test_title_and_size() -> None:
    page = page_of(title="\nPydoc: module &lt;x&gt; ")
    assert page.title == "module <x>"
    assert page.size > 50
    assert pickle.loads(pickle.dumps(page)) == page


def test_error_page_is_an_ordinary_failure() -> None:
    """The server answers 200 for a module that does not import; the title tells."""
    with pytest.raises(ErrorPageError, match=r"cannot show x\.html"):
        page_of(title="Pydoc: Error - x.html")


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server for one request; the answer gets the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        thread.join()
        listener.close()


HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n"


def test_fetch_reads_to_the_end() -> None:
    with serving(lambda connection: connection.sendall(HEAD + b"\xc3\xa4" * 100_000)) as site:
        assert fetch(site, "x.html", 30.0) == "ä" * 100_000


def test_fetch_reports_what_is_not_a_page() -> None:
    """A refusal, an answer that is no HTTP, and no server at all are failures of the fetch."""
    for answer in (b"HTTP/1.0 500 Oops\r\n\r\n", b"hello\r\n", b"", HEAD + b"\xff"):
        with (
            serving(lambda connection, answer=answer: connection.sendall(answer)) as site,  # type: ignore[misc]
            pytest.raises(FetchError),
        ):
            fetch(site, "x.html", 30.0)
    with pytest.raises(FetchError):
        fetch(site, "x.html", 30.0)


def test_fetch_from_a_silent_server_times_out() -> None:
    with (
        serving(lambda connection: connection.recv(1) and None) as site,
        pytest.raises(FetchTimeoutError, match=r"x\.html"),
    ):
        fetch(site, "x.html", 0.2)


def test_deadline_bounds_the_whole_fetch() -> None:
    """A server that never pauses and never ends is cut off too: the limit is not one per read."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(HEAD)
        while True:
            connection.sendall(b"x" * 16)

    with serving(drip) as site, pytest.raises(FetchTimeoutError):
        fetch(site, "x.html", 0.2)


# --- the server ---


def test_site_serves_and_ends() -> None:
    """It runs in its own session and directory, and nothing of it is left after the block."""
    with DocSite() as site:
        assert site.pid is not None
        assert os.getsid(site.pid) == site.pid
        assert os.readlink(f"/proc/{site.pid}/cwd") != os.getcwd()
        page = parse(site.url, START, fetch(site.url, START, 30.0))
        assert {"sys.html", "json.html", "topics.html"} <= set(page.links)
        assert site.exit_status is None
    assert site.pid is None


def test_site_tells_when_the_server_has_died() -> None:
    with DocSite() as site:
        assert site.pid is not None
        os.kill(site.pid, signal.SIGKILL)
        os.waitid(os.P_PID, site.pid, os.WEXITED | os.WNOWAIT)
        assert site.exit_status == -signal.SIGKILL


def test_site_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries what the server has said, and there is nothing to clean up."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(SiteError, match="pydoc ended at once"), DocSite():
        pytest.fail("a server without a standard library has started")


# --- the account ---


def booked(*faults: Fault | None) -> Account:
    """An account of one page for each fault, all found and all ended as planned."""
    account = Account(workers_asked=2, workers_alive=2)
    for number, fault in enumerate(faults):
        account.find(f"{number}.html", fault)
    for number, fault in enumerate(faults):
        account.end(ending(f"{number}.html", ERRORS[fault] if fault else None))
    return account


def ending(path: str, error: BaseException | None = None) -> Ended:
    return Ended(path, None if error else Page(path, path, 10, ()), error)


def test_account_adds_up() -> None:
    account = booked(None, *Fault)
    assert list(account.problems()) == []
    assert (account.found, account.parsed, account.failed.total()) == (7, 1, 6)
    text = "\n".join(account_lines(account))
    assert "7 found = 1 parsed + 6 failed" in text
    assert text.endswith("It adds up.")


@pytest.mark.parametrize("error", [FetchTimeoutError(), FetchError(), ErrorPageError()])
def test_page_that_could_not_be_had_is_an_ordinary_failure(error: BaseException) -> None:
    account = booked(None)
    account.find("x.html", None)
    account.end(ending("x.html", error))
    assert list(account.problems()) == []
    assert account.failed[cause_of(error)] == 1


def test_failed_fetch_forestalls_the_fault() -> None:
    """The handler never got so far; an error page, which it sees, is no such excuse."""
    account = booked(None)
    account.find("x.html", Fault.HANG)
    account.end(ending("x.html", FetchTimeoutError()))
    assert list(account.problems()) == []
    account.find("y.html", Fault.HANG)
    account.end(ending("y.html", ErrorPageError()))
    assert any("y.html was to hang" in problem for problem in account.problems())


def test_page_that_never_ended_is_a_problem() -> None:
    account = booked(None)
    account.find("x.html", Fault.KILL)
    account.find("y.html", None)
    assert any("2 pages never ended" in problem for problem in account.problems())
    text = "\n".join(account_lines(account))
    assert "1 whose handler was to go wrong: x.html (kill)" in text
    assert "1 that did nothing wrong: y.html" in text
    assert "It does not add up:" in text


def test_page_that_ended_twice_is_a_problem() -> None:
    account = booked(None)
    account.end(ending("0.html"))
    assert "1 pages found, but 2 ended" in list(account.problems())


@pytest.mark.parametrize("fault", Fault)
def test_planned_fault_must_be_seen_as_what_it_is(fault: Fault) -> None:
    """Another kind's end, or a parsed page, does not pass for it."""
    other = next(kind for kind in Fault if kind is not fault)
    for end in (ending("x.html", ERRORS[other]), ending("x.html")):
        account = booked(None)
        account.find("x.html", fault)
        account.end(end)
        assert f"1 x {fault.value} planned, 0 observed" in list(account.problems())


@pytest.mark.parametrize("error", [*ERRORS.values(), Terminated(), ValueError("odd")])
def test_unplanned_failure_is_a_problem(error: BaseException) -> None:
    account = booked(None)
    account.find("x.html", None)
    account.end(ending("x.html", error))
    (problem,) = account.problems()
    assert problem.startswith(f"x.html failed unplanned: {type(error).__name__}")


def test_missing_worker_dead_server_and_leftover_process_are_problems() -> None:
    account = booked(None)
    account.workers_alive, account.site_exit, account.left_behind = 1, -9, [123, 456]
    assert list(account.problems()) == [
        "2 workers asked for, 1 alive",
        "the documentation server ended by itself, with status -9",
        "processes left behind: 123, 456",
    ]


def test_crawl_that_parsed_nothing_does_not_add_up() -> None:
    """Else a server that shows nothing would pass for a success."""
    account = Account(workers_asked=2, workers_alive=2)
    account.find(START, None)
    account.end(ending(START, FetchError()))
    assert list(account.problems()) == ["not one page was parsed"]


def test_loss_by_any_other_signal_has_its_own_cause() -> None:
    assert cause_of(WorkerLostError("", exitcode=-signal.SIGBUS)) is Cause.LOST
    assert cause_of(WorkerLostError("", exitcode=3)) is Cause.LOST


def test_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    """0 only for an account that adds up; a signal is told as shells do."""
    good, bad = booked(None), booked(None)
    bad.find("x.html", None)
    assert conclude(good, None) == 0
    assert conclude(bad, None) == 1
    assert "It does not add up:\n  - 1 pages never ended" in capsys.readouterr().out
    assert conclude(bad, signal.SIGINT) == 130
    assert "stopped by SIGINT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--pages", "a whole number"),
        ("--seed", "a whole number"),
        ("--timeout", "a positive number of seconds"),
        ("--faults", "a number between 0 and 1"),
    ],
)
def test_what_is_no_number_is_refused(
    option: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what an option takes, and has no name of a private function."""
    parser = argparse.ArgumentParser()
    demo_options.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([option, "some"])
    assert f"argument {option}: must be {wanted}, not some" in capsys.readouterr().err


# --- the loop ---


class ListPool:
    """Ends each page at once, as `answers` says; pages that are not in it never end."""

    processes = 2
    ends_every_job = False

    def __init__(self, events: queue.SimpleQueue[Event], answers: dict[str, Event]) -> None:
        self.events = events
        self.answers = answers
        self.orders: list[PageOrder] = []
        self.living = 2

    def submit(self, order: PageOrder) -> None:
        self.orders.append(order)
        if order.path in self.answers:
            self.events.put(self.answers[order.path])

    def workers(self) -> list[WorkerRow]:
        return [WorkerRow(pid) for pid in range(self.living)]

    def stop(self) -> None:
        pass

    def __enter__(self) -> ListPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


class SilentView(PlainView):
    def show(self, snapshot: Snapshot) -> None:
        pass


def linked(path: str, *links: str) -> Event:
    return Ended(path, Page(path, path, 10, links), None)


def crawl_of(answers: Iterable[Event], **options: object) -> tuple[Crawl, ListPool]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    pages = {event.path if isinstance(event, Ended) else "stop": event for event in answers}
    pool = ListPool(events, pages)
    asked = DemoOptions(**{"share": 0.0, "deadline": 30.0, **options})  # type: ignore[arg-type]
    return Crawl(asked, SITE, pool, SilentView(), events), pool


def test_crawl_follows_links_once_and_to_the_bound() -> None:
    """Each page is ordered once; what lies beyond the bound is counted, once, and not ordered."""
    crawl, pool = crawl_of(
        [
            linked(START, "a", "b", "a", START),
            linked("a", "b", "c", "d"),
            linked("b", "e", "d", "e"),
            linked("c"),
        ],
        pages=4,
    )
    crawl.run()
    assert [order.path for order in pool.orders] == [START, "a", "b", "c"]
    assert (crawl.account.found, crawl.account.parsed, crawl.account.beyond) == (4, 4, 2)
    assert not crawl.late


def test_first_page_is_spared() -> None:
    """Without it there would be no crawl; every other page may be picked."""
    crawl, pool = crawl_of([linked(START, "a.html"), linked("a.html")], share=1.0)
    crawl.run()
    assert pool.orders[0].fault is None
    assert pool.orders[1].fault is not None


def test_deadline_ends_a_crawl_that_lost_a_page() -> None:
    crawl, _ = crawl_of([linked(START, "a", "lost"), linked("a")], deadline=0.05)
    crawl.run()
    crawl.drain()
    assert crawl.late
    assert list(crawl.account.unended_pages()) == [("lost", None)]


def test_signal_ends_the_crawl() -> None:
    crawl, _ = crawl_of([linked(START, "stop", "never"), Interrupted(signal.SIGTERM)])
    crawl.run()
    assert crawl.interrupted == signal.SIGTERM
    assert crawl.account.unended == 2


def test_replacement_on_its_way_is_waited_for() -> None:
    """The workers are counted again when the pool reports a new one."""
    crawl, pool = crawl_of([linked(START)])
    crawl.run()
    pool.living = 1

    class Late(queue.SimpleQueue[Event]):
        def get(self, block: bool = True, timeout: float | None = None) -> Event:
            pool.living = 2
            return WorkerStarted()

    crawl._events = Late()
    crawl.await_workers()
    assert crawl.account.workers_alive == 2


def test_queue_is_not_asked_for_something_within_no_time() -> None:
    """``SimpleQueue.get(timeout=0.0)`` may wait for ever in Python 3.10."""

    class Strict(queue.SimpleQueue[Event]):
        def get(self, block: bool = True, timeout: float | None = None) -> Event:
            assert timeout
            return super().get(block, timeout)

    crawl, pool = crawl_of([linked(START, "stop", "never"), Interrupted(signal.SIGTERM)])
    crawl._events = pool.events = Strict()
    crawl.run()
    crawl.drain()
    assert crawl.account.unended == 2


# --- the view ---


def snapshot() -> Snapshot:
    return Snapshot(
        elapsed=2.0,
        found=30,
        ended=10,
        workers=[WorkerRow(4711, "running", "topic?key=[x]", 0.5, 7.25), WorkerRow(4712)],
        failed=Counter({Cause.SIGKILL: 3}),
    )


def test_live_view_shows_rate_workers_and_losses() -> None:
    screen = io.StringIO()
    with LiveView(Console(file=screen, force_terminal=True, width=120)) as view:
        view.show(snapshot())
    for text in ("10/30 pages", "5.0 pages/s", "4711", "running", "topic?key=[x]", "7.2 s", "4712"):
        assert text in screen.getvalue()
    assert "worker lost: SIGKILL" in screen.getvalue()


def test_plain_view_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainView() as view:
        view.show(snapshot())
    assert capsys.readouterr().out == (
        "  2.0 s  10/30 pages  5.0 pages/s  2 workers  failed: worker lost: SIGKILL 3\n"
    )


# --- the command line ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pages", "0"],
        ["--workers", "none"],
        ["--timeout", "0"],
        ["--deadline", "inf"],
        ["--faults", "1.5"],
        ["--pool", "billiard"],
    ],
)
def test_wrong_option_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With status 2 and the option's name, before anything is started."""
    with pytest.raises(SystemExit) as info:
        main(["demo", *arguments])
    assert info.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "share", "deadline"),
    [
        ([], 0.06, 300.0),
        (["--faults"], 0.06, 300.0),
        (["--faults", "0.5"], 0.5, 300.0),
        (["--no-faults", "--deadline", "7"], 0.0, 7.0),
        (["--pool", "multiprocessing"], 0.06, 20.0),
    ],
)
def test_defaults(arguments: list[str], share: float, deadline: float) -> None:
    """Faults are on by default; the standard pool, which may never end, gets 20 seconds."""
    parser = argparse.ArgumentParser()
    demo_options.add_arguments(parser)
    options = DemoOptions.from_args(parser.parse_args(arguments))
    assert (options.share, options.deadline) == (share, deadline)
    assert options.fetch_seconds < options.timeout


# --- end to end ---


@contextlib.contextmanager
def demo(*arguments: object, **options: object) -> Iterator[subprocess.Popen[str]]:
    """The demo as a process of its own, killed if the test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "poolwatch", "demo", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options},  # type: ignore[call-overload]
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def run_demo(*arguments: object) -> tuple[int, str]:
    with demo(*arguments) as process:
        output, _ = process.communicate()
        return process.returncode, output


@pytest.mark.timeout(180)
def test_crawl_with_faults_adds_up(nothing_left_over: LeakWatch) -> None:
    """Every kind of fault happens, is seen as what it is, and costs its own page only."""
    status, output = run_demo("--pages", 60, "--timeout", 5)
    assert not nothing_left_over.processes()
    assert status == 0, output
    assert "\x1b" not in output
    assert "poolwatch-demo: job" not in output
    assert "workers asked for 4, alive 4" in output
    assert "It adds up." in output
    assert "One postmortem of" in output
    for fault in Fault:
        assert any(line.split()[0] == fault.value for line in output.splitlines() if line.split())


@pytest.mark.timeout(180)
def test_plain_crawl_adds_up() -> None:
    status, output = run_demo("--pages", 30, "--no-faults", "--workers", 2)
    assert status == 0, output
    assert "no fault was planned" in output
    assert "workers asked for 2, alive 2" in output


@pytest.mark.timeout(180)
def test_every_handler_goes_wrong() -> None:
    """A pool that loses workers all the time still ends each page; asked to, it logs each loss."""
    options = ("--pages", 40, "--faults", 1, "--timeout", 2, "--seed", 5, "--verbose")
    status, output = run_demo(*options)
    assert status == 0, output
    assert "poolwatch-demo: job" in output
    assert "40 found = 1 parsed + 39 failed" in output


@pytest.mark.timeout(180)
def test_standard_pool_loses_pages_without_a_word(nothing_left_over: LeakWatch) -> None:
    """The account shows it, the status says it, and the hung workers are put away."""
    status, output = run_demo("--pages", 60, "--pool", "multiprocessing", "--deadline", 5)
    assert not nothing_left_over.processes()
    assert status == 1, output
    assert "pages never ended; the pool did not say why" in output
    assert "(abort)" in output or "(segfault)" in output or "(kill)" in output


@pytest.mark.timeout(180)
def test_standard_pool_without_faults_adds_up() -> None:
    """So it is the faults, and not the way it is used."""
    status, output = run_demo(
        *("--pages", 30, "--pool", "multiprocessing", "--no-faults", "--deadline", 120)
    )
    assert status == 0, output


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return
    pytest.fail(f"the demo ended without {text!r}: {''.join(said)}")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("pool", ["poolwatch", "multiprocessing"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_leaves_nothing_behind(pool: str, signum: int, nothing_left_over: LeakWatch) -> None:
    """Workers, server and files are gone when the demo has ended, also in mid-crawl."""
    with demo("--pool", pool, "--faults", 0.3, "--pages", 1000, "--deadline", 120) as process:
        read_until(process, "pages/s")
        process.send_signal(signum)
        output, _ = process.communicate()
        assert not [left for left in nothing_left_over.processes() if left.pid != process.pid]
    assert process.returncode == 128 + signum, output
    assert "no process left behind" in output


@pytest.mark.timeout(180)
def test_ctrl_c_to_the_whole_group(nothing_left_over: LeakWatch) -> None:
    """As a terminal sends it: to the workers too, who must not die of it or print tracebacks."""
    with demo("--faults", 0.3, "--pages", 1000, start_new_session=True) as process:
        read_until(process, "pages/s")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate()
        assert not nothing_left_over.processes()
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.timeout(180)
def test_killed_demo_takes_its_server_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot clean up then; but the server ends at EOF, and the workers with the pool."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # only the server's empty directory stays
    with demo("--pages", 1000) as process:
        read_until(process, "pages/s")


@pytest.mark.timeout(180)
def test_live_view_on_a_terminal() -> None:
    """With a terminal as its output the demo draws in place, and prints the same account."""
    ours, theirs = pty.openpty()
    with demo("--pages", 20, "--no-faults", stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # EIO is how a terminal says that nobody is left
            while chunk := os.read(ours, 65536):
                output += chunk
        os.close(ours)
        process.wait()
    assert process.returncode == 0, output
    assert b"\x1b[" in output
    assert b"workers" in output
    assert b"It adds up." in output
