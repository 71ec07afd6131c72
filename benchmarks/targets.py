"""What is aimed at: a bound on a figure, or on its ratio to somebody else's in the same round."""

from __future__ import annotations

from dataclasses import dataclass

BEST = "the best peer"
LIMIT = "bare limit"
NOT_SLOWER = 1.15  # the noise of a shared machine


@dataclass(frozen=True, slots=True)
class Target:
    """A bound.

    Attributes:
        bound: what the median must not pass.
        at_least: whether it is a lower bound.
        peer: whose figure of the same round is divided by: a peer's name, ``BEST`` or ``LIMIT``.
        row: poolwatch's own figure that is divided by, by the name of its row.
        note: for the table.

    Without ``peer`` and ``row`` the bound is one for the figure itself.
    """

    bound: float
    at_least: bool
    peer: str | None = None
    row: str | None = None
    note: str = ""

    @property
    def is_absolute(self) -> bool:
        """Whether it bounds the figure itself and no ratio."""
        return self.peer is None and self.row is None

    @property
    def text(self) -> str:
        """The target in words."""
        sign = "≥" if self.at_least else "≤"
        against = f"x {self.peer}" if self.peer else f"x `{self.row}`" if self.row else ""
        return f"{sign} {self.bound:g}{against}{self.note}"

    def is_reached(self, value: float) -> bool:
        """Whether a median is within the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(bound: float, peer: str | None = None, **more: str) -> Target:
    """Return a lower bound."""
    return Target(bound, True, peer, **more)


def at_most(bound: float, peer: str | None = None, **more: str) -> Target:
    """Return an upper bound."""
    return Target(bound, False, peer, **more)


def not_slower(peer: str | None = None, *, rate: bool = False, **more: str) -> Target:
    """Return the bound within which two figures are the same: of times, or of rates."""
    if rate:
        return at_least(round(1 / NOT_SLOWER, 2), peer, **more)
    return at_most(NOT_SLOWER, peer, **more)
