"""Streams, frames and bulk payloads by themselves, without a pool."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Iterator
from typing import NoReturn

import interruptions
import numpy
import pytest

from poolwatch.transport import bulk, codec, frames
from poolwatch.transport.frames import FrameReader
from poolwatch.transport.streams import Stream


@pytest.fixture
def ends() -> Iterator[tuple[Stream, socket.socket]]:
    """The parent's stream and the worker's socket."""
    ours, theirs = socket.socketpair()
    stream = Stream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


def read_all(reader: FrameReader, count: int) -> list[frames.Frame]:
    """Read until so many frames are complete."""
    received: list[frames.Frame] = []
    while len(received) < count:
        batch = reader.read()
        assert batch is not None
        received.extend(batch)
    return received


@pytest.mark.parametrize("step", [1, 7, 39, 40, 41, 1000])
def test_frames_survive_any_division_of_the_stream(step: int) -> None:
    """Boundaries of reads are not boundaries of frames."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sent = [b"", b"x", b"y" * 100, b"z" * 300]
        data = b"".join(
            frames.pack(frames.JOB, payload, serial) for serial, payload in enumerate(sent, 1)
        )
        reader = FrameReader(theirs)
        received: list[frames.Frame] = []
        for start in range(0, len(data), step):
            ours.sendall(data[start : start + step])
            received.extend(reader.read() or [])
        assert [frame.payload for frame in received] == sent
        assert [frame.serial for frame in received] == [1, 2, 3, 4]


def test_reader_tells_which_job_is_being_received() -> None:
    """The serial of a frame whose payload is not complete is known, and forgotten afterwards."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = FrameReader(theirs)
        data = frames.pack(frames.JOB, b"p" * 50, 77)
        ours.sendall(data[:60])
        assert reader.read() == []
        assert reader.receiving == 77
        ours.sendall(data[60:])
        assert [frame.serial for frame in reader.read() or []] == [77]
        assert reader.receiving == 0


def test_write_never_blocks_and_keeps_the_order(ends: tuple[Stream, socket.socket]) -> None:
    """What the kernel does not take waits in the out-buffer; everybody appends behind it."""
    stream, theirs = ends
    big = b"b" * 3_000_000
    assert not stream.send(frames.pack(frames.JOB, big, 1))
    assert not stream.send(frames.pack(frames.JOB, b"small", 2))
    reader = FrameReader(theirs)
    received: list[frames.Frame] = []
    flushed = False
    while len(received) < 2:
        flushed = stream.flush()
        received.extend(reader.read() or [])
    assert flushed or stream.flush()
    assert [frame.payload for frame in received] == [big, b"small"]


def test_each_descriptor_reaches_its_own_frame(ends: tuple[Stream, socket.socket]) -> None:
    """Descriptors go with their frames, also when they had to wait in the out-buffer."""
    stream, theirs = ends
    payloads = [bulk.write([codec.encode((number, "x" * 10))]) for number in range(5)]
    stream.send(frames.pack(frames.JOB, b"f" * 2_000_000, 1))
    for serial, payload in enumerate(payloads, 2):
        data = frames.pack(frames.JOB, payload.table, serial, flags=frames.BULK, fds=1)
        stream.send(data, payload)
    reader = FrameReader(theirs)
    received: list[frames.Frame] = []
    while len(received) < 6:
        stream.flush()
        received.extend(reader.read() or [])
    values = [codec.decode(frame.payload, frame.fd, True) for frame in received[1:]]
    assert values == [(number, "x" * 10) for number in range(5)]


def test_writing_to_the_dead_is_noted_not_raised(ends: tuple[Stream, socket.socket]) -> None:
    """A closed peer marks the stream as broken; the report of the death does the rest."""
    stream, theirs = ends
    theirs.close()
    assert stream.send(frames.pack(frames.JOB, b"late", 1))
    assert stream.broken


def test_array_arrives_without_a_copy_in_the_pickle_and_can_be_written_to() -> None:
    """A large buffer travels beside the pickle; the receiver's copy is its own."""
    array = numpy.arange(500_000, dtype="f8")
    payload = codec.encode(array)
    assert isinstance(payload, bulk.Bulk)
    received = codec.decode(payload.table, payload.duplicate(), True)
    received[0] = 42.0
    again = codec.decode(payload.table, payload.duplicate(), True)
    assert again[0] == 0.0
    assert numpy.array_equal(again, array)


def test_unsealed_or_short_bulk_is_refused() -> None:
    """A file that could shrink under a mapping, or that is too short, is not mapped."""
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    with pytest.raises(ValueError, match="not sealed"):
        bulk.load((100).to_bytes(8, "little"), fd)
    payload = bulk.write([b"short"])
    with pytest.raises(ValueError, match="shorter"):
        bulk.load((10_000).to_bytes(8, "little"), payload.duplicate())


def test_bulk_gives_its_descriptor_back() -> None:
    """A payload that nobody needs any more leaves no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    payload = bulk.write([b"x" * 1000])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del payload
    assert len(os.listdir("/proc/self/fd")) == before


def test_lost_descriptor_fails_its_own_payload() -> None:
    """Without its descriptor a payload is an error that says so."""
    with pytest.raises(OSError, match="too many open files"):
        codec.decode(b"", None, True)


def test_pickler_keeps_nothing_of_what_it_pickled() -> None:
    """The reused pickler's memo does not keep the caller's objects alive."""
    import gc
    import weakref

    class Thing:
        def __reduce__(self) -> tuple[type, tuple[()]]:
            return (list, ())

    thing = Thing()
    gone = weakref.ref(thing)
    assert codec.decode(codec.encode((thing,)), None, False) == ([],)  # type: ignore[arg-type]
    del thing
    gc.collect()
    assert gone() is None


class _Refuses:
    def __reduce__(self) -> NoReturn:
        raise TypeError("not this one")


@pytest.mark.parametrize("value", [[1, "a"], _Refuses(), bytearray(2_000_000)])
def test_interrupted_pickling_spoils_no_later_one(
    monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    """Wherever Ctrl-C strikes, also while an error is dealt with, the next pickle is whole."""

    def encode() -> None:
        with contextlib.suppress(TypeError):
            codec.encode(value)

    def strike() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(interruptions, "_FILES", {codec.__file__})
    encode()  # what is imported and made at first is there
    with interruptions.Interrupter():
        encode()  # Python 3.13.0 tells of instructions from the second time on
    with interruptions.Interrupter() as counting:
        encode()
    assert len(counting.passed) > 5
    for place in counting.passed:
        with contextlib.suppress(KeyboardInterrupt), interruptions.Interrupter(strike, place):
            encode()
        assert pickle.loads(codec.encode([2, "b"])) == [2, "b"], place
