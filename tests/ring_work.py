"""Functions that run in workers for the tests of how results leave them."""

from __future__ import annotations

import pickle
import time

from poolwatch.transport import codec


def patterned(number: int, size: int) -> bytes:
    """So many bytes that tell which number they belong to."""
    return number.to_bytes(4, "little") * (size // 4) + bytes(size % 4)


def pickled_to(number: int, size: int) -> bytes:
    """Bytes whose pickle has the given size, as far as a pickle can."""
    value = patterned(number, size)
    while len(pickle.dumps(value, codec.PROTOCOL)) > size:
        value = value[:-1]
    return value


def patterned_item(item: tuple[int, int, float]) -> bytes:
    """The same for a map; each item uses some time, so that outcomes leave on their way."""
    number, size, seconds = item
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return patterned(number, size)
