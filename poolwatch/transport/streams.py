"""The parent's end of one worker's stream: writes never block, reads never wait.

Several threads write: whoever submits a job, and the supervisor. The guarantee: frames go out
whole and in the order in which they were given, each with its descriptor. What the kernel does not
take at once waits in the out-buffer, and as long as something waits there everybody appends behind
it; the supervisor flushes when the kernel has room.
"""

from __future__ import annotations

import array
import socket
import threading
from collections import deque

from poolwatch.transport.bulk import Bulk
from poolwatch.transport.frames import Frame, FrameReader


class Stream:
    """A non-blocking socket with an out-buffer."""

    __slots__ = ("_lock", "_out", "_reader", "broken", "sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.broken = False
        self._reader = FrameReader(sock)
        self._lock = threading.RLock()
        self._out: deque[tuple[memoryview, Bulk | None]] = deque()

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
            view = memoryview(data)
            if self._out:
                self._out.append((view, bulk))
                return False
            rest = self._write(view, bulk)
            if rest is None:
                return True
            self._out.append((rest, bulk if rest.nbytes == view.nbytes else None))
            return False

    def flush(self) -> bool:
        """Write what waits; return True when nothing is left."""
        with self._lock:
            while self._out and not self.broken:
                data, bulk = self._out[0]
                rest = self._write(data, bulk)
                if rest is None:
                    self._out.popleft()
                elif rest.nbytes == data.nbytes:
                    return False
                else:
                    self._out[0] = (rest, None)  # the descriptor went with the first byte
            return True

    def _write(self, data: memoryview, bulk: Bulk | None) -> memoryview | None:
        """Write once; return what the kernel did not take, or None."""
        try:
            if bulk is not None:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [bulk.fd]))
                sent = self.sock.sendmsg([data], [rights])
            else:
                sent = self.sock.send(data)
        except BlockingIOError:
            return data
        except (KeyboardInterrupt, SystemExit):
            self.broken = True  # nobody knows how much went out
            raise
        except OSError:
            # The worker is gone, or the kernel has no room for descriptors in flight. The
            # supervisor sees the mark and makes sure that the worker dies; its death is then
            # reported, and everything that it held is dealt with there.
            self.broken = True
            return None
        return None if sent == data.nbytes else data[sent:]

    def read(self) -> list[Frame] | None:
        """Read once; see :meth:`FrameReader.read`, whose errors it raises."""
        return self._reader.read()

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
