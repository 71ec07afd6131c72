"""What programs written for multiprocessing.Pool rely on, often without knowing it."""

from __future__ import annotations

import array
import fcntl
import functools
import gc
import inspect
import multiprocessing
import multiprocessing.pool
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dropin_work
import pytest
import work
from helpers import DEADLINE, ProcessWatch, Stage, bounded, eventually, only_worker

import poolwatch
from poolwatch import Pool
from poolwatch.transport import bulk, frames, kernel

pytestmark = pytest.mark.timeout(40)
Standard = multiprocessing.pool.Pool
PACKAGE = str(Path(poolwatch.__file__).parent)


# -- the surface --------------------------------------------------------------------------------

METHODS = [
    *("apply", "apply_async", "map", "map_async", "starmap", "starmap_async"),
    *("imap", "imap_unordered", "close", "terminate", "join", "__enter__", "__init__"),
]


@pytest.mark.parametrize("name", METHODS)
def test_arguments_are_the_same(name: str) -> None:
    """Each method begins with multiprocessing's arguments: names, order and defaults."""
    theirs = list(inspect.signature(getattr(Standard, name)).parameters.values())
    ours = list(inspect.signature(getattr(Pool, name)).parameters.values())[: len(theirs)]
    assert [(each.name, each.default) for each in ours] == [
        (each.name, each.default) for each in theirs
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (poolwatch.ApplyResult, multiprocessing.pool.ApplyResult),
        (poolwatch.MapResult, multiprocessing.pool.MapResult),  # type: ignore[attr-defined]
        (poolwatch.IMapIterator, multiprocessing.pool.IMapIterator),
        (poolwatch.IMapUnorderedIterator, multiprocessing.pool.IMapUnorderedIterator),
    ],
)
def test_results_have_the_same_methods(ours: type, theirs: type) -> None:
    """With multiprocessing's arguments."""
    methods = [name for name in vars(theirs) if name[0] != "_" or name in ("__iter__", "__next__")]
    for name in {*methods} - {"__class_getitem__"}:
        expected = list(inspect.signature(getattr(theirs, name)).parameters.values())
        found = list(inspect.signature(getattr(ours, name)).parameters.values())
        assert [(each.name, each.default) for each in found] == [
            (each.name, each.default) for each in expected
        ], name


def test_all_arguments_by_position() -> None:
    """Pool(processes, initializer, initargs, maxtasksperchild, context), contexts included."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with Pool(1, queue.put, ("begun",), 1, context) as pool:
        pids = [pool.apply_async(os.getpid).get(DEADLINE) for _ in range(2)]
        assert len({*pids}) == 2
        assert bounded(queue.get) == "begun"
    queue.close()


@pytest.mark.every_start_method("spawn", "forkserver")
def test_initializer_inherits_queues_and_locks(start_method: str) -> None:
    """initargs need not be picklable: they are there when workers are made."""
    queue, lock = multiprocessing.SimpleQueue(), multiprocessing.Lock()
    with Pool(2, dropin_work.keep, (queue, lock), context=start_method) as pool:
        pool.map(dropin_work.put, ["a", "b", "c"], 1)
        assert sorted(bounded(queue.get) for _ in range(3)) == ["a", "b", "c"]
    queue.close()


def test_pool_refuses_to_be_pickled_in_the_same_words(make_pool: Any) -> None:
    """NotImplementedError, and the text."""
    with pytest.raises(NotImplementedError) as ours:
        pickle.dumps(make_pool(1))
    with Standard(1) as pool, pytest.raises(NotImplementedError) as theirs:
        pickle.dumps(pool)
    pool.join()
    assert ours.value.args == theirs.value.args


def test_closed_pool_refuses_in_the_same_words(make_pool: Any) -> None:
    """ValueError, and the text; join() of an open one likewise."""
    pool, standard = make_pool(1), Standard(1)
    refusals = []
    for each in (pool, standard):
        with pytest.raises(ValueError) as open_still:  # noqa: PT011
            each.join()
        each.close()
        with pytest.raises(ValueError) as closed:  # noqa: PT011
            each.apply_async(work.square, (3,))
        each.join()
        refusals.append((open_still.value.args, closed.value.args))
    assert refusals[0] == refusals[1]


def test_private_names_tell_the_truth(make_pool: Any, stage: Stage) -> None:
    """Number of workers, their processes, the state, and what is unfinished."""
    pool = make_pool(2, maxtasksperchild=1000)
    assert pool._processes == 2
    assert pool._maxtasksperchild == 1000
    assert [member.is_alive() for member in pool._pool] == [True, True]
    assert {member.exitcode for member in pool._pool} == {None}
    assert pool._state == multiprocessing.pool.RUN
    assert not pool._cache
    assert pool._taskqueue.empty()
    jobs = [pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate)) for _ in range(5)]
    assert {*stage.heard_pids(2)} <= {member.pid for member in pool._pool}
    eventually(lambda: len(pool._cache) == 5)  # and no callback is on its way
    assert 1 <= pool._taskqueue.qsize() <= 3
    stage.let_go(5)
    for job in jobs:
        job.get(DEADLINE)
    eventually(lambda: not pool._cache)
    first = pool._pool[0]
    pool._repopulate_pool()
    pool.close()
    assert pool._state == multiprocessing.pool.CLOSE
    bounded(pool.join)
    assert not first.is_alive()
    assert first.exitcode == 0
    terminated = make_pool(1)
    terminated.terminate()
    assert terminated._state == multiprocessing.pool.TERMINATE


def test_workers_have_pids_at_once(make_pool: Any) -> None:
    """As in multiprocessing, where they are made before Pool() returns."""
    pool = make_pool(3)
    pids = [member.pid for member in pool._pool]
    assert len({*pids}) == 3
    assert None not in pids
    assert pool.apply(os.getpid) in pids


def test_nothing_is_unfinished_only_when_callbacks_have_run(make_pool: Any) -> None:
    """A program that waits for an empty _cache finds everything that its callbacks do."""
    pool = make_pool(1)
    entered, gate, found = threading.Event(), threading.Event(), []

    def slow_callback(value: int) -> None:
        entered.set()
        gate.wait(DEADLINE)
        found.append(value)

    pool.apply_async(work.square, (3,), callback=slow_callback)
    assert entered.wait(DEADLINE)
    assert pool._cache
    gate.set()
    eventually(lambda: not pool._cache)
    assert found == [9]


def test_private_names_of_a_map_give_what_is_left(make_pool: Any, stage: Stage) -> None:
    """The product of both, which is what programs show."""
    items = [(stage.bell, stage.gate)] * 3
    result = make_pool(1).starmap_async(work.ring_and_wait, items, 1)
    stage.heard()
    assert result._number_left * result._chunksize == 3
    stage.let_go(3)
    result.get(DEADLINE)
    assert result._number_left == 0


# -- errors -----------------------------------------------------------------------------------


def test_cause_is_the_workers_traceback(make_pool: Any) -> None:
    """Type, text and printed form are multiprocessing's, so that handlers and eyes know it."""
    caught = []
    with Standard(1) as standard:
        for pool in (make_pool(1), standard):
            with pytest.raises(LookupError) as error:
                pool.apply(dropin_work.raises_in_worker, (3,))
            caught.append(error.value)
    standard.join()
    ours, theirs = caught
    assert isinstance(ours.__cause__, multiprocessing.pool.RemoteTraceback)  # type: ignore[attr-defined]
    assert type(ours.__cause__).__name__ == type(theirs.__cause__).__name__ == "RemoteTraceback"
    assert str(ours.__cause__).startswith('\n"""\nTraceback (most recent call last):\n')
    assert "raise LookupError(number)" in str(ours.__cause__)
    printed = "".join(traceback.format_exception(ours))
    assert "raise LookupError(number)" in printed
    assert printed.endswith("LookupError: 3\n")
    copy = pickle.loads(pickle.dumps(ours.__cause__))
    assert copy.tb == ours.__cause__.tb


def test_callbacks_have_run_when_get_returns(make_pool: Any) -> None:
    """For jobs and maps, values and errors, without waiting for anything else."""
    pool = make_pool(2)
    for _ in range(50):
        seen: list[Any] = []
        assert pool.apply_async(work.square, (3,), callback=seen.append).get(DEADLINE) == 9
        assert seen == [9]
        assert pool.map_async(work.square, [4], callback=seen.append).get(DEADLINE) == [16]
        assert seen == [9, [16]]
        failing = pool.apply_async(work.fail, ("no",), error_callback=seen.append)
        with pytest.raises(ValueError, match="no"):
            failing.get(DEADLINE)
        assert isinstance(seen[2], ValueError)


def test_map_raises_the_first_error_in_input_order(make_pool: Any) -> None:
    """However the items are divided."""
    pool = make_pool(2)
    for size in (None, 1, 2, 100):
        with pytest.raises(LookupError) as error:
            pool.map(dropin_work.raises_in_worker, range(20), size)
        assert error.value.args == (1,)


# -- inputs -----------------------------------------------------------------------------------

MAPS: dict[str, Callable[[Any, Any], Any]] = {
    "map": lambda pool, items: pool.map(work.square, items),
    "map_async": lambda pool, items: pool.map_async(work.square, items).get(DEADLINE),
    "starmap": lambda pool, items: pool.starmap(work.square, ((item,) for item in items)),
    "starmap_async": lambda pool, items: pool.starmap_async(
        work.square, ((item,) for item in items)
    ).get(DEADLINE),
    "imap": lambda pool, items: list(pool.imap(work.square, items)),
    "imap of chunks": lambda pool, items: list(pool.imap(work.square, items, 10)),
    "imap_unordered": lambda pool, items: sorted(pool.imap_unordered(work.square, items)),
}
EACH_MAP = pytest.mark.parametrize("call", MAPS.values(), ids=MAPS)


@EACH_MAP
def test_inputs_of_all_kinds(make_pool: Any, call: Callable[[Any, Any], Any]) -> None:
    """Nothing, generators, sets, dicts, strings' kin: what has a length and what has not."""
    pool = make_pool(2)
    for nothing in ([], (), iter(()), {}, range(0)):
        assert bounded(lambda items=nothing: call(pool, items)) == []
    for items in (iter([1, 2]), {1: 0, 2: 0}, bytes([1, 2]), (n for n in (1, 2))):
        assert bounded(lambda items=items: call(pool, items)) == [1, 4]


@EACH_MAP
def test_input_that_raises_half_way(make_pool: Any, call: Callable[[Any, Any], Any]) -> None:
    """The error reaches the caller, without a worker's traceback, and the pool goes on."""
    pool = make_pool(2)
    with pytest.raises(LookupError, match="the input broke") as error:
        bounded(lambda: call(pool, dropin_work.two_then_error()))
    assert error.value.__cause__ is None
    assert pool.apply(work.square, (3,)) == 9


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("name", ["map", "map_async", "starmap", "imap", "imap_unordered"])
def test_chunksize_below_one_is_refused(make_pool: Any, name: str, size: int) -> None:
    """ValueError; multiprocessing's map returns a list of None for it."""
    with pytest.raises(ValueError, match="chunksize"):
        getattr(make_pool(1), name)(work.square, [1, 2], size)


def test_next_with_a_timeout(make_pool: Any, stage: Stage) -> None:
    """imap(...).next(timeout) raises TimeoutError, and the item comes later."""
    results = make_pool(1).imap(work.echo_after, [(stage.bell, stage.gate, 5)])
    stage.heard()
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0.01)
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0)
    stage.let_go()
    assert results.next(DEADLINE) == 5
    with pytest.raises(StopIteration):
        results.next(0)


# -- functions --------------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_functions_behind_their_names(make_pool: Any) -> None:
    """Decorated functions, what a decorator has hidden, and what another one has replaced."""
    pool = make_pool(1)
    assert pool.apply(dropin_work.greet, ("you",)) == "hello you!"
    hidden = inspect.unwrap(dropin_work.greet)
    assert pool.apply(hidden, ("you",)) == "hello you"
    assert pool.apply(functools.partial(hidden, "you")) == "hello you"
    assert pool.apply(dropin_work.shadowed) == "second"
    assert pool.apply(dropin_work.first_shadowed) == "first"


@pytest.mark.every_start_method
def test_module_that_is_imported_after_the_pool(
    make_pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its functions and classes come through, to workers that have never seen it."""
    pool = make_pool(1)
    assert pool.apply(work.square, (3,)) == 9
    (tmp_path / "late_module.py").write_text(
        "class Late:\n    def __init__(self, n): self.n = n\n\ndef late(n): return Late(n + 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import late_module  # type: ignore[import-not-found]

    try:
        assert pool.apply(late_module.late, (4,)).n == 5
        assert [each.n for each in pool.map(late_module.late, [1, 2])] == [2, 3]
    finally:
        del sys.modules["late_module"]


# -- threads and Ctrl-C -------------------------------------------------------------------------


def test_every_method_from_several_threads(make_pool: Any) -> None:
    """One pool, many threads, each with its own kind of call."""
    pool = make_pool(2)
    failures: list[BaseException] = []

    def use(call: Callable[[Any, Any], Any]) -> None:
        try:
            for _ in range(10):
                assert call(pool, range(20)) == [n * n for n in range(20)]
                assert pool.apply(work.square, (3,)) == 9
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=use, args=(call,), daemon=True) for call in MAPS.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE * 2)
        assert not thread.is_alive()
    assert failures == []


def interrupt_when(is_there: Callable[[], object]) -> threading.Thread:
    """Sends this process a Ctrl-C once the main thread is where it is to be."""

    def run() -> None:
        eventually(is_there)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def is_waiting_in_the_pool() -> bool:
    """The main thread is in poolwatch's code, or what that calls, and has been for a moment."""
    main = threading.main_thread().ident
    assert main is not None

    def places() -> list[tuple[str, int]]:
        frames = traceback.walk_stack(sys._current_frames()[main])
        return [(frame.f_code.co_filename, frame.f_lasti) for frame, _ in frames]

    before = places()
    threading.Event().wait(0.05)
    return places() == before and any(name.startswith(PACKAGE) for name, _ in before[:4])


def close_and_join(pool: Any, _: Any) -> None:
    pool.close()
    pool.join()


WAITS: dict[str, Callable[[Any, tuple[str, str]], object]] = {
    "get": lambda pool, item: pool.apply_async(work.ring_and_wait, item).get(),
    "get with a timeout": lambda pool, item: pool.apply_async(work.ring_and_wait, item).get(30),
    "wait": lambda pool, item: pool.apply_async(work.ring_and_wait, item).wait(),
    "apply": lambda pool, item: pool.apply(work.ring_and_wait, item),
    "map": lambda pool, item: pool.map(work.echo_after, [(*item, 0)]),
    "starmap": lambda pool, item: pool.starmap(work.ring_and_wait, [item]),
    "next": lambda pool, item: next(pool.imap(work.echo_after, [(*item, 0)])),
    "next of a generator": lambda pool, item: next(
        pool.imap_unordered(work.echo_after, ((*item, n) for n in range(1)))
    ),
}


@pytest.mark.parametrize("call", WAITS.values(), ids=WAITS)
def test_ctrl_c_reaches_the_main_thread(
    make_pool: Any, stage: Stage, call: Callable[[Any, tuple[str, str]], object]
) -> None:
    """KeyboardInterrupt is raised while the job runs on, whose worker is none the worse."""
    pool = make_pool(1)
    pid = only_worker(pool)
    thread = interrupt_when(is_waiting_in_the_pool)
    with pytest.raises(KeyboardInterrupt):
        call(pool, (stage.bell, stage.gate))
    thread.join(DEADLINE)
    stage.heard()
    stage.let_go()
    assert only_worker(pool) == pid
    assert pool.map(work.square, range(3)) == [0, 1, 4]


def test_ctrl_c_reaches_the_main_thread_in_join(make_pool: Any, stage: Stage) -> None:
    """And join() can be called again."""
    pool = make_pool(1)
    job = pool.apply_async(work.ring_and_wait, (stage.bell, stage.gate))
    stage.heard()
    pool.close()
    thread = interrupt_when(is_waiting_in_the_pool)
    with pytest.raises(KeyboardInterrupt):
        pool.join()
    thread.join(DEADLINE)
    assert not job.ready()
    stage.let_go()
    bounded(pool.join)
    assert job.get(0) > 0


def test_ctrl_c_reaches_the_main_thread_in_a_submission(make_pool: Any) -> None:
    """While the arguments are pickled, which is the caller's own code."""
    pool = make_pool(1)
    pid = only_worker(pool)
    argument = dropin_work.PicklesSlowly()
    thread = interrupt_when(lambda: argument.is_pickled)
    with pytest.raises(KeyboardInterrupt):
        pool.apply_async(work.echo, (argument,))
    thread.join(DEADLINE)
    assert only_worker(pool) == pid
    eventually(lambda: not pool._cache)


# -- more than 4 GiB --------------------------------------------------------------------------

HUGE = (5 << 30) + 3


class Announces:
    """A socket that gives a header only, of a frame that is yet to come."""

    def __init__(self, header: bytes) -> None:
        self.header = header

    def recvmsg(self, *_: int) -> tuple[bytes, list[Any], int, None]:
        return self.header, [], 0, None


def test_length_of_a_frame_has_64_bits() -> None:
    """A reader waits for all of a payload of 5 GiB, and knows whose it is."""
    header = frames.HEADER.pack(HUGE, frames.RESULT, 0, 0, 0, 17, 0, 0)
    assert frames.HEADER.unpack(header)[0] == HUGE
    reader = frames.FrameReader(Announces(header))  # type: ignore[arg-type]
    assert reader.read() == []
    assert reader.receiving == 17
    assert reader._need == frames.HEADER.size + HUGE


@pytest.mark.skipif(not bulk._SEALS, reason="needs sealed memory files")
def test_large_payload_is_mapped_beyond_4_gib() -> None:
    """A buffer of 5 GiB arrives whole; it is a hole in a file, and costs no memory."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(pickle.PickleBuffer(b""), protocol=5, buffer_callback=buffers.append)
    file = kernel.anonymous_file("poolwatch-test")
    try:
        os.pwrite(file, head, 0)
        start = bulk._aligned(len(head))
        os.pwrite(file, b"the end", start + HUGE - 7)
        os.ftruncate(file, bulk._aligned(start + HUGE))
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, bulk._SEALS)
    except BaseException:
        os.close(file)
        raise
    try:
        view = memoryview(bulk.load(struct.pack("<2Q", len(head), HUGE), file))
    except OSError as error:
        pytest.skip(f"this machine does not map so much: {error}")
    assert view.nbytes == HUGE
    assert view[-7:] == b"the end"
    assert view[1 << 32] == 0
    view.release()


def test_descriptors_and_lengths_fit_a_frame() -> None:
    """Header, payload and descriptor of a large result in one message, as a worker sends it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        table = struct.pack("<2Q", 50, HUGE)
        frame = frames.pack(frames.RESULT, table, 3, flags=frames.BULK, fds=1)
        with open("/dev/null", "rb") as file:
            rights = (
                socket.SOL_SOCKET,
                socket.SCM_RIGHTS,
                array.array("i", [file.fileno()]).tobytes(),
            )
            ours.sendmsg([frame], [rights])
        found = frames.FrameReader(theirs).read()
        assert found is not None
        assert bulk._lengths(found[0].payload) == (50, HUGE)
        assert found[0].fd is not None
        os.close(found[0].fd)


# -- the end ----------------------------------------------------------------------------------


def test_open_pool_that_is_collected_warns_in_the_same_words(nothing_left_over: Any) -> None:
    """A filter that a program has for multiprocessing's ResourceWarning works here too."""
    pool = Pool(1)
    with ProcessWatch([pool.apply(os.getpid)]) as watch:
        with pytest.warns(ResourceWarning, match="^unclosed running"):  # noqa: PT031
            del pool
            gc.collect()
        watch.assert_gone()
