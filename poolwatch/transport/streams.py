"""The parent's end of one worker's stream: writes never block, reads never wait.

Several threads write: whoever submits a job, and the supervisor. The guarantee: frames go out
whole and in the order in which they were given, each with its descriptor. What the kernel does not
take at once waits in the out-buffer, and as long as something waits there everybody appends behind
it; the supervisor flushes when the kernel has room.

A signal handler may raise (Ctrl-C) right after the kernel has taken something. So everything is in
the out-buffer until it is known how much of it went out, and that is stored by the same call into C
that writes: Python runs no signal handlers in between. See :meth:`Stream._write`.
"""

from __future__ import annotations

import array
import itertools
import socket
import threading
from collections import deque

from poolwatch.transport.bulk import Bulk
from poolwatch.transport.frames import Frame, FrameReader

_REPEATED = 16  # so many times a frame may be there that is waited for alone


class Stream:
    """A non-blocking socket with an out-buffer."""

    __slots__ = ("_lock", "_out", "_reader", "_taken", "broken", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.broken = False
        self._reader = FrameReader(sock)
        self._lock = threading.RLock()
        self._out: deque[tuple[memoryview, Bulk | None]] = deque()
        self._taken: list[int] = []  # bytes of the first that the kernel has taken just now

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self.sock.fileno()

    def send(self, data: bytes, bulk: Bulk | None = None) -> bool:
        """Write whole frames, with a bulk payload's descriptor if there is one; never blocks.

        Returns:
            False when something is left in the out-buffer, so that :meth:`flush` is needed.
        """
        with self._lock:
            if self.broken:
                return True
            self._out.append((memoryview(data), bulk))
            return len(self._out) == 1 and self.flush()

    def flush(self) -> bool:
        """Write what waits; return True when nothing is left."""
        with self._lock:
            self._settle()  # what an interruption has left
            while self._out and not self.broken:
                try:
                    self._write(*self._out[0])
                except BlockingIOError:
                    return False
                except OSError:
                    # The worker is gone, or the kernel has no room for descriptors in flight. The
                    # supervisor sees the mark and makes sure that the worker dies; its death is
                    # then reported, and everything that it held is dealt with there.
                    self.broken = True
                self._settle()
            return True

    @property
    def unfinished(self) -> bool:
        """True when something waits to be flushed."""
        return bool(self._out) and not self.broken

    def _write(self, data: memoryview, bulk: Bulk | None) -> None:
        """Write once; note in one go how much the kernel has taken."""
        if bulk is None:
            self._taken.extend(map(self.sock.send, (data,)))
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [bulk.fd]))
            self._taken.extend(itertools.starmap(self.sock.sendmsg, (([data], [rights]),)))

    def _settle(self) -> None:
        """Take out of the out-buffer what the kernel has taken.

        Statements without a call between them are not interrupted.
        """
        if not self._taken:
            return
        data, _ = self._out[0]
        rest = data[self._taken[0] :]
        if rest.nbytes:
            self._out[0] = (rest, None)  # the descriptor went with the first byte
        else:
            del self._out[0]
        del self._taken[0]

    def read(self) -> list[Frame] | None:
        """Read once; see :meth:`FrameReader.read`, whose errors it raises."""
        return self._reader.read()

    @property
    def is_amid(self) -> bool:
        """True when the beginning of a frame has been read."""
        return self._reader.is_amid

    def take_only(self, frame: bytes) -> bool:
        """Read once if nothing but this frame is there, once or several times; else nothing.

        What else is there is left where it is, for :meth:`read`.

        Returns:
            False when something else is there, or the end of the stream.
        """
        if self.is_amid:
            return False
        try:
            data = self.sock.recv(_REPEATED * len(frame), socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data or data != frame * (len(data) // len(frame)):
            return False
        self.sock.recv(len(data))
        return True

    def abandon(self) -> None:
        """Let go of the descriptor in a forked child, where the lock may be held for ever."""
        self.broken = True
        self._reader.close()
        self.sock.close()

    def close(self) -> None:
        """Close the socket and everything that waited for it; may be called more than once."""
        with self._lock:
            self.broken = True
            self._out.clear()
            self._reader.close()
            self.sock.close()
