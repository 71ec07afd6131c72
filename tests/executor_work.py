"""Jobs and programs of the executor's tests."""

from __future__ import annotations

import signal
import time
from typing import NoReturn

import work


def hold_through_sigterm(bell: str) -> NoReturn:
    """Rings once SIGTERM does nothing any more, and stays."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    work.ring(bell)
    while True:
        time.sleep(3600)


def ring_number(bell: str, gate: str, number: int) -> int:
    """Rings with the number, waits at the gate, returns the number."""
    work.ring_and_wait(bell, gate, number)
    return number
