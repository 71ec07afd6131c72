"""What a worker writes to its parent: small frames into the ring, the rest into the stream.

Each frame has left the worker when :meth:`Outbox.send` returns. Frames of one job keep their order:
the parent empties the ring before it takes a frame from the stream, and once one frame of a job has
gone through the stream the later ones of that job follow it.
"""

from __future__ import annotations

import os
import socket
import time

from poolwatch.transport import frames, ledger
from poolwatch.transport.bulk import Bulk
from poolwatch.transport.codec import Payload
from poolwatch.transport.frames import HEADER
from poolwatch.transport.rings import LARGEST, RingWriter

_FIRST_PAUSE = 0.0002  # seconds until the next look whether the ring has room; doubled each time
_LONGEST_PAUSE = 0.05


class Outbox:
    """The ring and the stream of one worker."""

    def __init__(self, sock: socket.socket, row: ledger.Row) -> None:
        self._sock = sock
        self._fields = row.fields
        self._ring = RingWriter(row)
        self._streamed = 0  # serial of the job that had a frame in the stream last

    def send(
        self,
        kind: int,
        payload: Payload,
        serial: int,
        first: int = 0,
        second: int = 0,
        quiet: bool = False,
    ) -> None:
        """Write one frame; blocks while the parent does not read.

        Args:
            kind: see ``frames``.
            payload: what the frame carries.
            serial: of the job that it is about.
            first: number, by kind.
            second: number, by kind.
            quiet: a parent that sleeps need not be woken for it.
        """
        if type(payload) is bytes and serial != self._streamed and self._ring.usable:
            size = len(payload)
            if size <= LARGEST:
                data = HEADER.pack(size, kind, 0, 0, 0, serial, first, second) + payload
                if not self._ring.put(data):
                    self._wait_for_room(data)
                if not quiet and self._fields[ledger.BELL]:
                    self.ring_the_bell()
                return
        self._streamed = serial
        self.send_through_stream(kind, payload, serial, first, second)

    def ring_the_bell(self) -> None:
        """Tell a parent that sleeps, or is about to, that there is something in the ring."""
        self._fields[ledger.BELL] = 0
        self.send_through_stream(frames.BELL, b"", 0)

    def _wait_for_room(self, data: bytes) -> None:
        """The parent is far behind, so it has been told already."""
        pause = _FIRST_PAUSE
        while not self._ring.put(data):
            if self._fields[ledger.BELL]:
                self.ring_the_bell()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def send_through_stream(
        self, kind: int, payload: Payload, serial: int, first: int = 0, second: int = 0
    ) -> None:
        """Write one frame into the stream; arguments as for :meth:`send`."""
        bulk = isinstance(payload, Bulk)
        data = frames.pack(
            kind,
            payload.table if isinstance(payload, Bulk) else payload,
            serial,
            flags=frames.BULK if bulk else 0,
            fds=int(bulk),
            first=first,
            second=second,
        )
        try:
            if isinstance(payload, Bulk):
                sent = socket.send_fds(self._sock, [data], [payload.fd])
                self._sock.sendall(memoryview(data)[sent:])
            else:
                self._sock.sendall(data)
        except ConnectionError:
            os._exit(1)  # the pool is gone, and nobody is left to tell

    def forget(self) -> None:
        """In a process that a job forks: the stream is not its own."""
        try:
            self._sock.close()
        except OSError:
            pass  # the job has closed it already
