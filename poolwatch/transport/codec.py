"""Objects to payloads and back, one job at a time: what cannot be pickled fails its own job only.

Pickling uses multiprocessing's extra reducers (connections, sockets, and what users registered
with ``ForkingPickler.register``). What plain pickle refuses (lambdas, closures, functions of an
interactive session) goes through cloudpickle, which sends code by value.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import sys
import threading
import traceback
from collections import ChainMap
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, NamedTuple

from poolwatch.exceptions import MaybeEncodingError, RemoteTraceback
from poolwatch.transport import bulk
from poolwatch.transport.bulk import Bulk

Payload = bytes | Bulk

PROTOCOL = 5
PLAIN = frozenset({int, float, bool, str, bytes, type(None)})
"""Types whose values pickle without reducers, buffers or anybody's code."""

_OUT_OF_BAND = 64 * 1024  # smaller buffers are copied into the pickle; a mapping would cost more
_KEEP_BUFFER = 1024 * 1024  # a pickler that has written more than this is not kept for reuse
_REPR_LENGTH = 200

# Live views: a reducer that is registered later is seen.
_reducers = ChainMap(ForkingPickler._extra_reducers, copyreg.dispatch_table)  # type: ignore[attr-defined]
_by_value_lock = threading.Lock()  # cloudpickle's list of modules to send by value is global


class _Reusable:
    """A pickler and what it writes to; making one costs as much as pickling a small call."""

    def __init__(self) -> None:
        self.buffers: list[pickle.PickleBuffer] = []
        self.file = io.BytesIO()
        self.pickler = pickle.Pickler(self.file, PROTOCOL, buffer_callback=self._keep)
        self.pickler.dispatch_table = _reducers

    def _keep(self, buffer: pickle.PickleBuffer) -> bool:
        return _keep_out_of_band(buffer, self.buffers)


class _Spare(threading.local):
    """One for each thread, as long as it is not in use."""

    reusable: _Reusable | None = None


_spare = _Spare()
PICKLED_NONE = pickle.dumps(None, PROTOCOL)


def _keep_out_of_band(buffer: pickle.PickleBuffer, kept: list[pickle.PickleBuffer]) -> bool:
    """Decide on one buffer; true means that pickle copies it into the stream (its own rule)."""
    try:
        if buffer.raw().nbytes < _OUT_OF_BAND:
            return True
    except BufferError:  # not contiguous
        return True
    kept.append(buffer)
    return False


def encode(obj: object) -> Payload:
    """Pickle an object, by reference where pickle can and by value where it cannot.

    Returns:
        The pickle, or for large ones a :class:`Bulk`.

    Raises:
        Exception: whatever pickling the object raised.
    """
    if type(obj) in PLAIN:
        data = pickle.dumps(obj, PROTOCOL)
        return data if len(data) < bulk.THRESHOLD else _pack(data, [])
    try:
        return _encode_by_reference(obj)
    except Exception as error:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        try:
            return encode_by_value(obj)
        except Exception:  # noqa: BLE001
            raise error from None


def _encode_by_reference(obj: object) -> Payload:
    # Taken away while it is in use: a __reduce__ may submit a job of its own, and one that was left
    # in the middle, by an error or a signal handler that raised, is not fit for use any more.
    own = _spare.reusable
    _spare.reusable = None
    if own is None:
        own = _Reusable()
    file = own.file
    own.pickler.dump(obj)
    data = file.getvalue()
    if own.buffers or len(data) > _KEEP_BUFFER:
        return _pack(data, own.buffers)
    # The memo would keep the caller's objects alive until the next call.
    own.pickler.clear_memo()
    file.seek(0)
    file.truncate()
    _spare.reusable = own
    return data if len(data) < bulk.THRESHOLD else _pack(data, [])


def encode_by_value(obj: object, *modules: ModuleType) -> Payload:
    """Pickle an object with cloudpickle.

    Args:
        obj: what to pickle.
        modules: modules whose functions and classes go by value too; those of ``__main__``
            always do.

    Raises:
        Exception: whatever pickling the object raised.
    """
    import cloudpickle

    buffers: list[pickle.PickleBuffer] = []
    with _by_value_lock:
        listed = cloudpickle.list_registry_pickle_by_value()
        added = [module for module in modules if module.__name__ not in listed]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            data = cloudpickle.dumps(
                obj, PROTOCOL, buffer_callback=lambda buffer: _keep_out_of_band(buffer, buffers)
            )
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)
    return _pack(data, buffers)


def _pack(data: bytes, buffers: list[pickle.PickleBuffer]) -> Payload:
    if not buffers and len(data) < bulk.THRESHOLD:
        return data
    try:
        return bulk.write([data, *(buffer.raw() for buffer in buffers)])
    except OSError:
        # No descriptor or no memory file to be had: the stream takes it, more slowly.
        return pickle.dumps(pickle.loads(data, buffers=buffers), PROTOCOL) if buffers else data


def decode(payload: bytes, fd: int | None, is_bulk: bool) -> Any:
    """Unpickle a payload; a descriptor is used up, whether that succeeds or not.

    Raises:
        Exception: whatever unpickling raised.
    """
    if not is_bulk:
        return pickle.loads(payload)
    if fd is None:
        raise OSError("the payload's descriptor was lost: too many open files in this process")
    return bulk.load(payload, fd)


class Failure(NamedTuple):
    """A job's exception on its way to the parent; only the first field may fail to unpickle."""

    pickled: bytes | None
    type_name: str
    text: str
    traceback: str


def encode_failure(error: BaseException) -> bytes:
    """Pickle an exception together with its traceback as text; never raises."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    pickled: bytes | None
    try:
        pickled = pickle.dumps(error, PROTOCOL)
    except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        pickled = _failure_by_value(error)
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return pickle.dumps(tuple(Failure(pickled, name, safe_repr(error), text)), PROTOCOL)


def _failure_by_value(error: BaseException) -> bytes | None:
    try:
        payload = encode_by_value(error)
    except Exception:  # noqa: BLE001  (the text of the failure says what it was)
        return None
    return payload if isinstance(payload, bytes) else None


def decode_failure(payload: bytes) -> BaseException:
    """Return the job's exception, its traceback in the worker as ``__cause__``.

    What does not unpickle becomes a :class:`MaybeEncodingError` that tells what it was.
    """
    failure = Failure(*pickle.loads(payload))
    if failure.pickled is None:
        error: BaseException = MaybeEncodingError("the exception cannot be pickled", failure.text)
    else:
        try:
            error = pickle.loads(failure.pickled)
            if not isinstance(error, BaseException):
                raise TypeError(f"unpickled to {safe_repr(error)}, which is no exception")
        except Exception as reason:  # noqa: BLE001  (a user's __setstate__ may raise anything)
            error = MaybeEncodingError(
                f"the exception does not unpickle: {safe_repr(reason)}", failure.text
            )
    error.__cause__ = RemoteTraceback(f'\n"""\n{failure.traceback}"""')
    return error


def modules_of(func: object) -> list[ModuleType]:
    """Return the module of a function, if it is one that can be sent by value."""
    if isinstance(func, functools.partial):
        return modules_of(func.func)
    name = getattr(func, "__module__", None) if callable(func) else None
    module = sys.modules.get(name) if isinstance(name, str) else None
    return [] if module is None or name in ("__main__", "builtins") else [module]


def safe_repr(obj: object) -> str:
    """Return a shortened ``repr`` that never raises."""
    try:
        text = repr(obj)
    except Exception as error:  # noqa: BLE001  (a user's __repr__ may raise anything)
        return f"<{type(obj).__qualname__}: repr raised {type(error).__qualname__}>"
    return text if len(text) <= _REPR_LENGTH else text[: _REPR_LENGTH - 3] + "..."
