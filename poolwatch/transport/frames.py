"""The unit that travels on a stream: a fixed header, a payload, and perhaps descriptors.

The header says how many descriptors the frame owns. Boundaries of ancillary data are not frame
boundaries, so received descriptors queue up and each frame takes its share from the front.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from typing import NamedTuple

HEADER = struct.Struct("<QBBHIQQQ")
"""length of the payload, kind, flags, descriptors, spare, serial, and two numbers by kind."""

# Parent to worker.
JOB = 1  # numbers: length of what is in front of the arguments (settings, the function's own
# pickle, see calls), and the job's label: its id, and above LABEL_BITS how often it was lost before
LEAVE = 2  # finish what was sent before this, then exit
PING = 3  # answer: asked of a worker that has not touched what it was sent

# Worker to parent.
READY = 10  # booted; the initializer has run; number one: the process id
BOOT_FAILED = 11  # the initializer raised; the payload tells what
ACCEPTED = 12  # the job begins: number one is the clock in ns
RESULT = 13  # payload: pickled value; numbers: wall time in ns, and CPU time, see usage
FAILURE = 14  # payload: a failure, see codec; numbers as above
DECODING_FAILED = 15  # the arguments did not unpickle; payload: a failure
NOT_FOUND = 16  # the function or a class is unknown here: send it by value
DROPPED = 17  # the job was begun and voided at the same time; it did not run
LEAVING = 18  # the worker has done its share of jobs, or was told to, and takes no more
PONG = 19
PARTIAL = 20  # chunks of a map: outcomes of the next items; number one: how many
BELL = 21  # there is something in the ring, see rings
INITIALIZING = 23  # nothing is in the way of the initializer, which is called now
PEAK = 22  # before a result: number one is the job's own peak of memory in bytes

# Flags.
WANT_ACCEPT = 1  # job: write an ACCEPTED frame before it begins
BULK = 2  # the payload is a table; the bytes are in the frame's descriptor
BY_VALUE = 4  # job: already sent by value, NOT_FOUND would not help
CHUNK = 8  # job: the payload is a function and a list of items, see worker.chunks
LIMITED = 16  # chunk: time limits hold for each item
PROMPT = 32  # chunk: somebody may wait for the first outcomes while the last items run
SETTINGS = 64  # job: the payload begins with a section of settings, see settings

LABEL_BITS = 48

READ_BYTES = 120 * 1024  # below malloc's mmap threshold, so a read costs no page faults
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * array.array("i").itemsize)  # a frame owns one at most


class Frame(NamedTuple):
    """One received frame; see :data:`HEADER`."""

    kind: int
    flags: int
    serial: int
    first: int
    second: int
    payload: bytes
    fd: int | None  # None also when we had no room for it, although the header promised one


_new = tuple.__new__  # Frame(...) takes twice as long


def pack(
    kind: int,
    payload: bytes,
    serial: int,
    *,
    flags: int = 0,
    fds: int = 0,
    first: int = 0,
    second: int = 0,
) -> bytes:
    """Return header and payload of one frame, ready to be written."""
    return HEADER.pack(len(payload), kind, flags, fds, 0, serial, first, second) + payload


def read_ancillary(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors of one ``recvmsg``."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


class FrameReader:
    """Turns what comes out of a stream into frames.

    Attributes:
        receiving: serial of a frame whose header is here and whose payload is not, else 0.
    """

    __slots__ = ("_buffer", "_fds", "_need", "receiving", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.receiving = 0
        self._buffer = bytearray()  # the beginning of a frame whose end has not come yet
        self._need = 0  # length that the buffer must have before it is worth looking again
        self._fds: deque[int | None] = deque()

    def read(self) -> list[Frame] | None:
        """Read once and return the frames that are complete; None at the end of the stream.

        Raises:
            BlockingIOError: nothing to read (non-blocking sockets).
            ConnectionError: the other side is gone; everything it wrote has been read.
        """
        data, ancillary, flags, _ = self.sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES)
        if flags & socket.MSG_CTRUNC:
            # Our descriptor table is full and the kernel has dropped one. Its place is kept, or
            # the next frame's descriptor would go to the wrong frame.
            self._fds.append(None)
        elif ancillary:
            self._fds.extend(read_ancillary(ancillary))
        if not data:
            return None
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = bytes(self._buffer)
            self._buffer = bytearray()
        return self._split(data)

    @property
    def is_amid(self) -> bool:
        """True when the beginning of a frame is here, or a descriptor that belongs to one."""
        return bool(self._buffer or self._fds)

    def _split(self, data: bytes) -> list[Frame]:
        frames = []
        position, end, header_size = 0, len(data), HEADER.size
        unpack = HEADER.unpack_from
        self.receiving = 0
        while end - position >= header_size:
            length, kind, flags, fds, _, serial, first, second = unpack(data, position)
            start = position + header_size
            if end - start < length:
                self.receiving = serial
                self._need = header_size + length
                break
            position = start + length
            fd = self._fds.popleft() if fds else None
            fields = (kind, flags, serial, first, second, data[start:position], fd)
            frames.append(_new(Frame, fields))
        else:
            self._need = header_size
        if position < end:
            self._buffer = bytearray(data[position:])
        return frames

    def close(self) -> None:
        """Close descriptors that came for frames which never became complete."""
        while self._fds:
            fd = self._fds.popleft()
            if fd is not None:
                os.close(fd)
