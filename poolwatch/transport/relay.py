"""A log record on its way from a worker to its parent.

Records travel through a socket that all workers of a pool share, whose messages arrive whole or not
at all: one call into the kernel each, so that threads of jobs need no lock against a worker that
writes a result, a signal handler that raises cannot leave half a record behind, and what was sent
outlives its sender's crash.

A record is one pickle of plain values; what is not plain and pickles is a pickle within it, so that
one value which does not load costs only itself.
"""

from __future__ import annotations

import logging
import pickle
from multiprocessing import context
from typing import Any

from poolwatch.transport import codec

LARGEST = 128 * 1024
"""Bytes of the largest message."""

_LONGEST_TEXT = 8 * 1024  # characters of each text of a record that would be larger
_PLAIN = codec.PLAIN

_formatter = logging.Formatter()


class RelayEnd:
    """What workers need for relaying; inherited, or pickled for those that are started afresh.

    Attributes:
        fd: the end of the socket that is written to; non-blocking.
        level: of the records that travel.
        root_level: of the parent's root logger.
    """

    def __init__(self, fd: int, level: int, root_level: int) -> None:
        self.fd = fd
        self.level = level
        self.root_level = root_level

    def __reduce__(self) -> tuple[type[RelayEnd], tuple[int, int, int]]:
        popen: Any = context.get_spawning_popen()
        if popen is None:
            raise pickle.PicklingError("the relay of log records is passed on to workers only")
        return RelayEnd, (popen.duplicate_for_child(self.fd), self.level, self.root_level)


def encode(record: logging.LogRecord, dropped: int) -> bytes:
    """Return a record as a message.

    Args:
        record: the record; its arguments are formatted into its text unless they are plain.
        dropped: records that this process could not send before this one.

    Raises:
        Exception: whatever formatting the record raised.
    """
    values = dict(record.__dict__)
    if not _is_plain(values["args"]):
        values["msg"], values["args"] = record.getMessage(), None
    elif type(values["msg"]) is not str:
        values["msg"] = str(values["msg"])
    if values["exc_info"]:
        if not values["exc_text"]:
            values["exc_text"] = _formatter.formatException(values["exc_info"])
        values["exc_info"] = None
    values.pop("message", None)
    pickled = {name: _pickled(value) for name, value in values.items() if not _is_plain(value)}
    values.update(pickled)
    message = pickle.dumps((dropped, values, tuple(pickled)), codec.PROTOCOL)
    return message if len(message) <= LARGEST else _shortened(record, dropped, values)


def _shortened(record: logging.LogRecord, dropped: int, values: dict[str, Any]) -> bytes:
    """Only what every record has, and not all of that."""
    usual = logging.makeLogRecord({}).__dict__
    kept = {name: value for name, value in values.items() if name in usual and _is_plain(value)}
    kept["msg"], kept["args"] = record.getMessage(), None
    for name, value in kept.items():
        if isinstance(value, str) and len(value) > _LONGEST_TEXT // 4:
            longest = _LONGEST_TEXT if name in ("msg", "exc_text") else _LONGEST_TEXT // 4
            kept[name] = value if len(value) <= longest else value[:longest] + "... (cut off)"
    return pickle.dumps((dropped, kept, ()), codec.PROTOCOL)


def _is_plain(value: object) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is tuple:
        return all(type(item) in _PLAIN for item in value)  # type: ignore[attr-defined]
    if kind is dict:
        return all(type(key) is str for key in value) and all(  # type: ignore[attr-defined]
            type(item) in _PLAIN
            for item in value.values()  # type: ignore[attr-defined]
        )
    return False


def _pickled(value: object) -> bytes:
    try:
        return codec.dumps(value)
    except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        return pickle.dumps(codec.safe_repr(value), codec.PROTOCOL)


def decode(message: bytes) -> tuple[logging.LogRecord, int]:
    """Return a record and how many were lost before it; values of the user's are unpickled."""
    dropped, values, pickled = pickle.loads(message)
    for name in pickled:
        try:
            values[name] = pickle.loads(values[name])
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's __setstate__)
            values[name] = f"<does not unpickle: {codec.safe_repr(error)}>"
    return logging.makeLogRecord(values), dropped
