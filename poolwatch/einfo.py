"""``ExceptionInfo``, as programs written for billiard know it."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Any

from poolwatch.exceptions import RemoteTraceback

ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


class ExceptionInfo:
    """An exception with the text of its traceback; pickles (from billiard).

    For an error that came from a worker the text holds the worker's traceback too.

    Attributes:
        type: the exception's class.
        exception: the exception itself. In billiard it is a wrapper that only unpickles into it.
        tb: the traceback; None once this has been pickled (billiard's is an imitation that has
            neither frames nor locals that could be used).
        traceback: the traceback as text.
        internal: the mark that was given.
    """

    def __init__(self, exc_info: ExcInfo | None = None, internal: bool = False) -> None:
        """Take note of an exception.

        Args:
            exc_info: as ``sys.exc_info()`` returns; by default what is being handled now.
            internal: a mark of the caller's, for errors of the pool itself.
        """
        self.type, self.exception, self.tb = exc_info or sys.exc_info()
        self.traceback = "".join(traceback.format_exception(self.type, self.exception, self.tb))
        self.internal = internal

    @classmethod
    def of(cls, error: BaseException, internal: bool = False) -> ExceptionInfo:
        """Return the record of an exception, such as an ``error_callback`` is called with."""
        return cls((type(error), error, error.__traceback__), internal)

    @property
    def exc_info(self) -> ExcInfo:
        """Class, exception and traceback, as ``sys.exc_info()`` returns them."""
        return self.type, self.exception, self.tb

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tb": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Pickle keeps neither the cause nor the traceback: the text stands for both.
        if self.exception is not None and self.exception.__cause__ is None:
            self.exception.__cause__ = RemoteTraceback(self.traceback)

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.exception!r}>"
