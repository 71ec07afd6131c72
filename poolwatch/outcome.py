"""How a job ended, as its worker tells it: what came of it, and what it has used."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from poolwatch import salvage
from poolwatch.exceptions import JobDecodingError, MaybeEncodingError
from poolwatch.transport import bulk, codec, frames
from poolwatch.transport.frames import Frame


class Usage(NamedTuple):
    """What a finished job has used in its worker, its whole process with all threads.

    What processes that the job started have used is not in it. Of a job that was started several
    times, it is the last time's.

    Attributes:
        wall: seconds from its beginning to its end, without the time that it waited.
        user: seconds of processor time in the job's own code. Of jobs below a millisecond, all
            their processor time.
        system: seconds of processor time in the kernel.
        max_rss: bytes of memory that the worker held at most while the job ran, also what it had
            before; None where it was not measured (see ``usage`` of ``Pool``).
    """

    wall: float
    user: float
    system: float
    max_rss: int | None

    @property
    def cpu(self) -> float:
        """Seconds of processor time, user and system."""
        return self.user + self.system


class Outcome(NamedTuple):
    """How a job, or some items of a map, ended, as it came from the worker: not yet unpickled."""

    kind: int
    payload: bytes
    mapping: memoryview | OSError | ValueError | None  # of a bulk payload, or why there is none

    @classmethod
    def of(cls, frame: Frame) -> Outcome:
        """Take over a frame; a descriptor is mapped and closed, so that results hold none."""
        if not frame.flags & frames.BULK:
            return cls(frame.kind, frame.payload, None)
        try:
            if frame.fd is None:
                raise OSError("the result's descriptor was lost: too many open files")
            return cls(frame.kind, frame.payload, bulk.map_file(frame.payload, frame.fd))
        except (OSError, ValueError) as error:
            return cls(frame.kind, frame.payload, error)

    def load(self) -> Any:
        """Unpickle the payload; may be done again after an interruption.

        Raises:
            Exception: whatever unpickling raised.
        """
        if self.mapping is None:
            return pickle.loads(self.payload)
        if isinstance(self.mapping, Exception):
            raise self.mapping
        return bulk.load_mapped(self.payload, self.mapping)

    def salvage(self) -> tuple[Any, dict[int, BaseException]]:
        """Unpickle as much as can be of a payload that does not load; see ``salvage.load``.

        Raises:
            Exception: nothing can be had.
        """
        if self.mapping is None:
            return salvage.load(self.payload, ())
        if isinstance(self.mapping, Exception):
            raise self.mapping
        data, *buffers = bulk.parts_of(self.payload, self.mapping)
        return salvage.load(data, buffers)

    def result(self, name: str) -> tuple[bool, Any]:
        """Return ``(True, value)`` or ``(False, exception)``; never raises.

        Args:
            name: of the function, for the texts of errors.
        """
        if self.kind == frames.RESULT:
            try:
                return True, self.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's __setstate__)
                text = f"the result does not unpickle: {codec.safe_repr(error)}"
                problem = MaybeEncodingError(text, name)
                problem.__cause__ = error
                return False, problem
        failure = codec.decode_failure(self.payload)
        if self.kind == frames.DECODING_FAILED:
            text = f"the arguments of {name} could not be unpickled in the worker: {failure!r}"
            cause = failure.__cause__
            failure = JobDecodingError(text)
            failure.__cause__ = cause
        return False, failure
