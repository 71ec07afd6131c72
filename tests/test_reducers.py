"""Multiprocessing's reducers hold whichever way a thing travels, by reference or by value."""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import pickle
import threading
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
from helpers import DEADLINE

from poolwatch.transport import bulk, codec

pytestmark = pytest.mark.timeout(40)
MEGABYTE = 1 << 20
variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


class Registered:
    """Pickles with the reducer that multiprocessing has been told of, and without it refuses."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        raise TypeError("Registered needs its reducer")


class RegisteredError(Exception):
    """Carries something that only pickles with a reducer."""

    def __init__(self, thing: Registered) -> None:
        super().__init__(thing)


def reduce_registered(thing: Registered) -> Any:
    return Registered, (thing.value,)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ForkingPickler._extra_reducers, Registered, reduce_registered)


@pytest.fixture
def ends() -> Any:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield ours, theirs
    resource_sharer.stop()  # hands descriptors over to those that unpickle them


def raise_registered() -> None:
    raise RegisteredError(Registered(3))


def read_variable() -> Any:
    return variable.get()


class Resubmits:
    """Its pickling submits a job of its own."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def __reduce__(self) -> Any:
        return int, (self.pool.apply_async(lambda: 4).get(DEADLINE),)


# -- arguments and results ------------------------------------------------------------------------


@pytest.mark.every_start_method
def test_connection_goes_with_a_function_by_value(make_pool: Any, ends: Any) -> None:
    """A job that travels by value writes into the caller's connection, not into a stranger's."""
    ours, theirs = ends
    pool = make_pool(1)
    assert pool.apply_async(lambda end: end.send("hello") or "sent", (theirs,)).get(DEADLINE)
    assert ours.poll(DEADLINE)
    assert ours.recv() == "hello"
    assert pool.apply_async(lambda end: end.fileno() > 2, (theirs,)).get(DEADLINE)


@pytest.mark.every_start_method("spawn", "forkserver")
@pytest.mark.parametrize("chunksize", [1, 2])
def test_registered_reducer_holds_by_value(make_pool: Any, chunksize: int) -> None:
    """A class that ForkingPickler knows goes with lambdas as it does with named functions."""
    pool = make_pool(1)
    things = [Registered(1), Registered(2)]
    assert pool.map(lambda thing: thing.value, things, chunksize=chunksize) == [1, 2]
    assert pool.apply_async(lambda thing: thing, (things[0],)).get(DEADLINE).value == 1


def test_exception_keeps_its_reducers(make_pool: Any) -> None:
    """What a job's exception carries comes back by its reducer, and so does one by value."""
    pool = make_pool(1)
    with pytest.raises(RegisteredError) as caught:
        pool.apply_async(raise_registered).get(DEADLINE)
    assert caught.value.args[0].value == 3

    class LocalError(RegisteredError):
        pass

    error = codec.decode_failure(codec.encode_failure(LocalError(Registered(5))))
    assert isinstance(error, LocalError)
    assert error.args[0].value == 5


def test_context_variable_keeps_its_reducers(make_pool: Any) -> None:
    """The value of a context variable is pickled with the reducers too."""
    pool = make_pool(1, contextvars=[variable])
    for value in (Registered(7), (Registered(7), lambda: None)):
        context = contextvars.copy_context()
        context.run(variable.set, value)
        job = context.run(pool.apply_async, read_variable)
        found = job.get(DEADLINE)
        assert (found[0] if isinstance(found, tuple) else found).value == 7


# -- by themselves --------------------------------------------------------------------------------


def test_methods_are_looked_up_by_their_function() -> None:
    """A method whose class knows it by another name travels by value nevertheless."""

    class Local:
        def answer(self) -> int:
            return 42

        other = answer

    Local.answer = None  # type: ignore[assignment,method-assign]
    payload = codec.encode_by_value(Local().other)
    assert codec.decode(payload, None, False)() == 42  # type: ignore[arg-type]


def test_code_that_travels_by_value_keeps_its_file() -> None:
    """Tracebacks and postmortems name the file of a lambda, and of what is nested in it."""
    payload = codec.encode_by_value(lambda: lambda: 1)
    outer = codec.decode(payload, None, False)  # type: ignore[arg-type]
    assert outer.__code__.co_filename == __file__
    assert outer().__code__.co_filename == __file__
    assert outer()() == 1


def test_pickling_within_pickling_keeps_the_reducers() -> None:
    """A __reduce__ that pickles something itself gets the same reducers."""

    class Outer:
        def __reduce__(self) -> Any:
            return bytes, (codec.encode(Registered(9)),)

    inner = codec.decode(codec.encode(Outer()), None, False)  # type: ignore[arg-type]
    assert pickle.loads(inner).value == 9


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_buffers_without_a_memory_file(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """Without descriptors a large payload goes in one piece, pickled only once."""

    def refuse(parts: Any) -> Any:
        raise OSError("no descriptor")

    monkeypatch.setattr(bulk, "write", refuse)
    data = kind(b"x" * MEGABYTE)
    pickled = 0

    class Counted:
        def __reduce__(self) -> Any:
            nonlocal pickled
            pickled += 1
            return int, (5,)

    payload = codec.encode((pickle.PickleBuffer(data), Counted()))
    assert isinstance(payload, bytes)
    back, number = codec.decode(payload, None, False)
    assert (type(back), back, number, pickled) == (kind, data, 5, 1)


def test_pickling_by_value_may_submit_by_value(make_pool: Any) -> None:
    """A __reduce__ that sends a job by value itself does not wait for its own pickling."""
    pool = make_pool(1)
    assert pool.apply_async(lambda number: number + 1, (Resubmits(pool),)).get(DEADLINE) == 5


def test_lock_is_free_in_a_forked_child() -> None:
    """A child that was forked while another thread pickled by value can do so itself."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with codec._by_value_lock:
            held.set()
            done.wait(DEADLINE)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(DEADLINE)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if codec._by_value_lock.acquire(timeout=1) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        done.set()
        thread.join()
