"""Large payloads travel as a descriptor: written once into memory that the receiver maps.

A pickle and its out-of-band buffers are laid out in one memfd, whose descriptor goes with the
frame; the frame's own payload is only the table of lengths. The receiver maps the file privately,
so that an array arrives without being copied and may be written to.

The file is sealed against shrinking, growing and writing, and the receiver checks the seals: a
file that shrinks under a mapping is SIGBUS for whoever reads it. A message from a worker that died
half-way is a descriptor that nobody takes; the kernel frees it with the stream.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import pickle
import resource
import struct
from collections.abc import Sequence
from typing import Any

from poolwatch.transport import kernel

THRESHOLD = 512 * 1024
"""Bytes from which a payload travels as a descriptor; below it a copy is cheaper."""

_ALIGNMENT = 64  # what NumPy likes best for vector instructions
_SEALS = 0
if hasattr(fcntl, "F_SEAL_SHRINK"):
    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Bulk:
    """A payload that has been written into a memory file.

    Attributes:
        table: the lengths of its parts; what travels in the frame.
        fd: descriptor of the file, owned by this object.
    """

    __slots__ = ("fd", "table")

    waiting = 0  # how many there are in this process

    def __init__(self, table: bytes, fd: int) -> None:
        Bulk.waiting += 1
        self.table = table
        self.fd = fd

    def contents(self) -> mmap.mmap:
        """Return the file's bytes, mapped for reading."""
        return mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)

    def duplicate(self) -> int:
        """Return another descriptor of the file, which the caller owns."""
        return os.dup(self.fd)

    def close(self) -> None:
        """Give the descriptor back; may be called more than once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            Bulk.waiting -= 1
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "fd"):  # not when Ctrl-C came while this was being made
            self.close()


def write(parts: Sequence[Any]) -> Bulk:
    """Lay bytes-like parts out in a sealed memory file.

    Raises:
        OSError: no descriptor or no memory left; the caller sends the payload in the stream.
    """
    if Bulk.waiting >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4:
        raise OSError(errno.EMFILE, "too many large payloads wait")
    views = [memoryview(part).cast("B") for part in parts]
    table = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    bulk = Bulk(table, kernel.anonymous_file("poolwatch-bulk"))
    try:
        position = 0
        for view in views:
            _write_at(bulk.fd, view, position)
            position = _aligned(position + view.nbytes)
        os.ftruncate(bulk.fd, max(position, 1))
        if _SEALS:
            fcntl.fcntl(bulk.fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        bulk.close()
        raise
    return bulk


def load(table: bytes, fd: int) -> Any:
    """Unpickle what :func:`write` laid out; takes over (and closes) the descriptor.

    Raises:
        ValueError: the file is not what the table says, or not sealed.
        Exception: whatever unpickling raised.
    """
    return load_mapped(table, map_file(table, fd))


def map_file(table: bytes, fd: int) -> memoryview:
    """Map a payload privately and close its descriptor; the mapping needs none.

    Raises:
        ValueError: the file is not what the table says, or not sealed.
        OSError: it cannot be mapped.
    """
    try:
        total = sum(_aligned(length) for length in _lengths(table))
        if os.fstat(fd).st_size < total:
            raise ValueError("bulk payload is shorter than its table says")
        if _SEALS and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("bulk payload is not sealed")
        return kernel.map_privately(fd, max(total, 1))
    finally:
        os.close(fd)


def load_mapped(table: bytes, view: memoryview) -> Any:
    """Unpickle a mapped payload.

    Raises:
        Exception: whatever unpickling raised.
    """
    data, *buffers = parts_of(table, view)
    return pickle.loads(data, buffers=buffers)


def parts_of(table: bytes, view: memoryview) -> list[memoryview]:
    """Return the parts of a mapped payload: the pickle, and its buffers out of band."""
    views = []
    position = 0
    for length in _lengths(table):
        views.append(view[position : position + length])
        position = _aligned(position + length)
    return views


def _lengths(table: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(table) // 8}Q", table)


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def _write_at(fd: int, view: memoryview, position: int) -> None:
    while view.nbytes:
        written = os.pwrite(fd, view, position)
        position += written
        view = view[written:]
