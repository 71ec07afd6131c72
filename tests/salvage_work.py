"""Results for the tests of what is salvaged when one of them does not unpickle."""

from __future__ import annotations

import enum
from typing import Any


def perform_at_once(call: tuple[Any, ...]) -> Any:
    return call[0](*call[1:])


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Holder:
    """Holds something, in its state."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Holder({self.held!r})"


class Listed(list):
    """A list of a class of its own."""


class NotKnownHere:
    pass


class RefusesState:
    def __init__(self) -> None:
        self.something = 1

    def __setstate__(self, state: object) -> None:
        raise ValueError("state")


class RefusesItems(list):
    def extend(self, items: object) -> None:
        raise ValueError("items")

    append = extend


class RefusesKeys(dict):
    def __setitem__(self, key: object, value: object) -> None:
        raise ValueError("keys")


class RefusesToBeMade:
    def __new__(cls, *args: object) -> RefusesToBeMade:
        if not args:
            raise ValueError("new")
        return super().__new__(cls)


class RefusesHash:
    """Cannot be put into a set, or be a key, once it has come back."""

    def __init__(self, refuses: bool = True) -> None:
        self.refuses = refuses

    def __hash__(self) -> int:
        if self.refuses:
            raise ValueError("hash")
        return 1

    def __reduce__(self) -> Any:
        return RefusesHash, ()


def _keys() -> RefusesKeys:
    refusing = RefusesKeys()
    dict.__setitem__(refusing, 1, 2)
    return refusing


def _items() -> RefusesItems:
    refusing = RefusesItems()
    list.extend(refusing, [1, 2])
    return refusing


WAYS = {
    "not known": NotKnownHere(),
    "class not known": NotKnownHere,
    "state": RefusesState(),
    "items": _items(),
    "keys": _keys(),
    "new": RefusesToBeMade(1),
    "hash in a set": {RefusesHash(False)},
    "hash in a frozenset": frozenset([RefusesHash(False)]),
    "hash of a key": {RefusesHash(False): 1},
}
