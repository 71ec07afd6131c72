"""Objects to payloads and back, one job at a time: what cannot be pickled fails its own job only.

Pickling uses multiprocessing's extra reducers (connections, sockets, and what users registered
with ``ForkingPickler.register``). What plain pickle refuses (lambdas, closures, functions of an
interactive session) goes through cloudpickle, which sends code by value, with the same reducers:
without them a connection would arrive as the bare number of a descriptor that is another's there.
"""

from __future__ import annotations

import copyreg
import functools
import io
import os
import pickle
import sys
import threading
import traceback
from collections import ChainMap
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from poolwatch.exceptions import MaybeEncodingError, RemoteTraceback
from poolwatch.transport import bulk
from poolwatch.transport.bulk import Bulk

Payload = bytes | Bulk

PROTOCOL = 5
PLAIN = frozenset({int, float, bool, str, bytes, type(None)})
"""Types whose values pickle without reducers, buffers or anybody's code."""

_NAMED = (FunctionType, BuiltinFunctionType, type)
_OUT_OF_BAND = 64 * 1024  # smaller buffers are copied into the pickle; a mapping would cost more
_KEEP_BUFFER = 1024 * 1024  # a pickler that has written more than this is not kept for reuse
_REPR_LENGTH = 200

# Live views: a reducer that is registered later is seen.
_reducers = ChainMap(ForkingPickler._extra_reducers, copyreg.dispatch_table)  # type: ignore[attr-defined]
# cloudpickle's list of modules to send by value is global. A __reduce__ may submit a job itself.
_by_value_lock = threading.RLock()
_BufferCallback = Callable[[pickle.PickleBuffer], object]


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


def _forget_locks() -> None:
    """In a forked child: another thread of the parent may have held the lock at that moment."""
    global _by_value_lock
    _by_value_lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_locks)
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
    file = io.BytesIO()
    with _by_value_lock:
        listed = cloudpickle.list_registry_pickle_by_value()
        added = [module for module in modules if module.__name__ not in listed]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            _by_value_pickler()(file, lambda buffer: _keep_out_of_band(buffer, buffers)).dump(obj)
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)
    return _pack(file.getvalue(), buffers)


@functools.cache
def _by_value_pickler() -> Callable[[io.BytesIO, _BufferCallback | None], pickle.Pickler]:
    """Return what makes cloudpickle's pickler with multiprocessing's reducers in front.

    Bound methods are left to cloudpickle: multiprocessing's reducer looks them up by the name of
    their function, under which a class may know another or none. Code keeps the name of its file,
    which newer cloudpickles drop: a traceback or a postmortem would not say where it is.
    """
    from cloudpickle import CloudPickler

    own = CloudPickler.dispatch_table
    first: dict[type, Any] = {kind: own[kind] for kind in (MethodType,) if kind in own}
    if CodeType in own:
        first[CodeType] = functools.partial(_reduce_code, own[CodeType])

    extra = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    pickler = type("Pickler", (CloudPickler,), {"dispatch_table": ChainMap(first, extra, own)})
    return lambda file, callback: pickler(file, PROTOCOL, callback)


def _reduce_code(reduce: Callable[[CodeType], Any], code: CodeType) -> tuple[Any, ...]:
    make, args = reduce(code)[:2]
    return _code_of_file, (code.co_filename, make, args)


def _code_of_file(filename: str, make: Callable[..., CodeType], args: tuple[Any, ...]) -> CodeType:
    return make(*args).replace(co_filename=filename)


def dumps(obj: object) -> bytes:
    """Pickle an object by reference, with the extra reducers, everything in one piece.

    Raises:
        Exception: whatever pickling the object raised.
    """
    file = io.BytesIO()
    pickler = pickle.Pickler(file, PROTOCOL)
    pickler.dispatch_table = _reducers
    pickler.dump(obj)
    return file.getvalue()


def named_by_reference(obj: object, module: str) -> list[Any] | None:
    """Return the functions and classes of a module that an object's pickle names, and perhaps more.

    None when the object does not pickle by reference.
    """
    pickler = _Noting(io.BytesIO(), PROTOCOL, buffer_callback=lambda buffer: False)
    pickler.named, pickler.module = [], module
    try:
        pickler.dump(obj)
    except Exception:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        return None
    return pickler.named


class _Noting(pickle.Pickler):
    """Notes what it pickles by reference."""

    dispatch_table = _reducers
    named: list[Any]
    module: str

    def reducer_override(self, value: Any) -> Any:
        # What functools.cache makes of a function is named too, and is neither.
        is_named = isinstance(value, _NAMED) or hasattr(value, "__wrapped__")
        if is_named and getattr(value, "__module__", None) == self.module:
            self.named.append(value)
        return NotImplemented


def dumps_by_value(obj: object) -> bytes:
    """Pickle an object as :func:`encode_by_value` does, everything in one piece.

    Raises:
        Exception: whatever pickling the object raised.
    """
    file = io.BytesIO()
    _by_value_pickler()(file, None).dump(obj)
    return file.getvalue()


def _pack(data: bytes, buffers: list[pickle.PickleBuffer]) -> Payload:
    if not buffers and len(data) < bulk.THRESHOLD:
        return data
    try:
        return bulk.write([data, *(buffer.raw() for buffer in buffers)])
    except OSError:
        # No descriptor or no memory file to be had: the stream takes it, more slowly.
        return pickle.dumps(_Joined(data, buffers), PROTOCOL) if buffers else data


class _Joined:
    """A pickle and its out-of-band buffers, to be pickled as one; unpickles to what they hold.

    Pickling the object a second time would not do: a connection is handed over once.
    """

    def __init__(self, data: bytes, buffers: list[pickle.PickleBuffer]) -> None:
        views = [buffer.raw() for buffer in buffers]
        self._parts = data, [bytes(view) if view.readonly else bytearray(view) for view in views]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rejoin, self._parts


def _rejoin(data: bytes, buffers: list[Any]) -> Any:
    return pickle.loads(data, buffers=buffers)


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
    """A job's exception on its way to the parent; only the first field may fail to unpickle.

    Where that is None, the last field says why the exception does not pickle.
    """

    pickled: bytes | None
    type_name: str
    text: str
    traceback: str
    reason: str = ""


def encode_failure(error: BaseException, saying: str | None = None) -> bytes:
    """Pickle an exception together with its traceback as text, in a child; never raises.

    Args:
        error: the exception.
        saying: what :func:`failure_text` returns of it; the exception's ``repr`` if not given.
    """
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    pickled: bytes | None = None
    reason = ""
    try:
        pickled = dumps(error)
    except BaseException as problem:  # noqa: BLE001  (a user's __reduce__ may raise anything)
        reason = safe_repr(problem)
        try:
            pickled = dumps_by_value(error)
        except BaseException:  # noqa: BLE001
            pass  # the text of the failure says what it was
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}"
    failure = Failure(pickled, name, saying or safe_repr(error), text, reason)
    return pickle.dumps(tuple(failure), PROTOCOL)


def failure_text(payload: bytes) -> str:
    """Return what a failure says about its exception, without unpickling the exception itself."""
    return Failure(*pickle.loads(payload)).text


def decode_failure(payload: bytes) -> BaseException:
    """Return the job's exception, its traceback in the worker as ``__cause__``.

    What does not unpickle becomes a :class:`MaybeEncodingError` that tells what it was.
    """
    failure = Failure(*pickle.loads(payload))
    if failure.pickled is None:
        reason = f"the exception cannot be pickled: {failure.reason}"
        error: BaseException = MaybeEncodingError(reason, failure.text)
    else:
        try:
            error = pickle.loads(failure.pickled)
            if not isinstance(error, BaseException):
                raise TypeError(f"unpickled to {safe_repr(error)}, which is no exception")
        except Exception as problem:  # noqa: BLE001  (a user's __setstate__ may raise anything)
            error = MaybeEncodingError(
                f"the exception does not unpickle: {safe_repr(problem)}", failure.text
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
    except KeyboardInterrupt:
        raise  # where the user asks for it, it is not the object's
    except BaseException as error:  # noqa: BLE001  (a user's __repr__ may raise anything)
        return f"<{type(obj).__qualname__}: repr raised {type(error).__qualname__}>"
    return text if len(text) <= _REPR_LENGTH else text[: _REPR_LENGTH - 3] + "..."
