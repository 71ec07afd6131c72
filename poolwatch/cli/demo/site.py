"""The site that the demo crawls: ``python -m pydoc``, run as a child while it is needed."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from types import TracebackType
from typing import IO

import psutil

from poolwatch.exceptions import PoolwatchError

_READY = re.compile(r"Server ready at (\S+)")
_START_SECONDS = 30.0
_END_SECONDS = 3.0  # its loop looks once a second whether it should end


class SiteError(PoolwatchError):
    """The documentation server did not start."""


class DocSite:
    """The standard library's documentation server, as a context manager.

    It imports every module that it shows, which decides how it is started:

    * in an empty directory of its own: it would import each script that lies about in ours;
    * in its own session, so that Ctrl-C reaches the demo alone, which then stops the server;
    * with its output read to the end: modules print when they are imported, and a full pipe would
      stop the server in the middle of a page;
    * with a pipe as its standard input, where it ends at EOF: it does so even if we are killed.
    """

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._address: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.url = ""

    @property
    def pid(self) -> int | None:
        """The server's process, None before it has started."""
        return self._process.pid if self._process else None

    @property
    def exit_status(self) -> int | None:
        """How the server has ended, None while it runs."""
        return self._process.poll() if self._process else None

    def __enter__(self) -> DocSite:
        """Start the server and wait until it serves.

        Raises:
            SiteError: If it ends, or does not serve within 30 seconds.
        """
        try:
            self._start()
            self.url = self._await_address()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server, whatever happened."""
        self.stop()

    def stop(self) -> None:
        """End the server and everything that an import has started below it; at most seconds."""
        if self._process is not None:
            _end(self._process)
            self._process = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _start(self) -> None:
        self._directory = tempfile.TemporaryDirectory(
            prefix="poolwatch-demo-", ignore_cleanup_errors=True
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pydoc", "-n", "127.0.0.1", "-p", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self._directory.name,
            # A demo does not write compiled files into the installation, which may not be ours.
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        threading.Thread(
            target=self._read_output,
            args=(self._process.stdout,),
            name="poolwatch-demo-site",
            daemon=True,  # a process that an import has left behind could hold the pipe open
        ).start()

    def _read_output(self, output: IO[str]) -> None:
        with output:
            for line in output:
                self._said.append(line)
                if found := _READY.search(line):
                    self._address.put(found[1])
        self._address.put(None)

    def _await_address(self) -> str:
        try:
            address = self._address.get(timeout=_START_SECONDS)
        except queue.Empty:
            raise SiteError(f"pydoc does not serve after {_START_SECONDS:g} s") from None
        if address is None:
            raise SiteError("pydoc ended at once; it said:\n" + "".join(self._said))
        return address


def _end(process: subprocess.Popen[str]) -> None:
    below = _descendants(process.pid)
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        # An import hangs, or a process forked after the server holds the other end of its pipe.
        process.kill()
        process.wait()
    for child in below:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
