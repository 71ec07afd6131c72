"""What comes back of a map: outcomes of neighbouring items, not unpickled before somebody asks."""

from __future__ import annotations

from typing import Any, NamedTuple

from poolwatch.exceptions import MaybeEncodingError
from poolwatch.outcome import Outcome
from poolwatch.transport import codec, frames


class Piece(NamedTuple):
    """The outcomes of neighbouring items, still pickled, or one error for all of them.

    Attributes:
        start: index of the first item in the whole map.
        length: how many items.
        outcome: what the worker sent, or the error.
        alone: one item that travelled alone.
    """

    start: int
    length: int
    outcome: Outcome | BaseException
    alone: bool

    def result(self) -> tuple[bool, Any]:
        """Return ``(True, value)`` or ``(False, exception)`` of an item that travelled alone."""
        outcome = self.outcome
        if isinstance(outcome, BaseException):
            return False, outcome
        if outcome.payload == codec.PICKLED_NONE:
            return True, None
        return outcome.result(f"item {self.start} of a map")

    def load(self) -> tuple[list[Any], dict[int, BaseException]]:
        """Return the values of items that travelled together, and their errors by place in them.

        May be done again after an interruption.
        """
        outcome = self.outcome
        if isinstance(outcome, BaseException):
            return self._all_failed(outcome)
        if outcome.kind not in (frames.RESULT, frames.PARTIAL):
            _, error = outcome.result(self._name_of(0, self.length))
            return self._all_failed(error)
        broken: dict[int, BaseException] = {}
        try:
            values, failures = outcome.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a user's __setstate__)
            try:
                (values, failures), broken = outcome.salvage()
            except (Exception, SystemExit):  # noqa: BLE001  (likewise)
                return self._all_failed(self._problem(error, 0, self.length))
        errors = {place: codec.decode_failure(data) for place, data in failures.items()}
        for place, reason in broken.items():
            errors[place] = self._problem(reason, place, 1)
        return values, errors

    def _name_of(self, place: int, count: int) -> str:
        first = self.start + place
        if count == 1:
            return f"item {first} of a map"
        return f"items {first} to {first + count - 1} of a map"

    def _problem(self, error: BaseException, place: int, count: int) -> MaybeEncodingError:
        text = f"the result does not unpickle: {codec.safe_repr(error)}"
        problem = MaybeEncodingError(text, self._name_of(place, count))
        problem.__cause__ = error
        return problem

    def _all_failed(self, error: BaseException) -> tuple[list[Any], dict[int, BaseException]]:
        return [None] * self.length, dict.fromkeys(range(self.length), error)


new_piece = tuple.__new__
"""``new_piece(Piece, (start, length, outcome, alone))``; calling the class takes twice as long."""
