"""For how long a state has lasted. Pure: the clock is the caller's."""

from collections.abc import Mapping
from typing import Generic, TypeVar


K = TypeVar("K")
V = TypeVar("V")


class Lasting(Generic[K, V]):
    """Since when states have been the same, by samples. A limit of 0 finds nothing."""

    __slots__ = ("_limit_sec", "_seen")

    def __init__(self, limit_sec: float) -> None:
        self._limit_sec = limit_sec
        self._seen: dict[K, tuple[V, float]] = {}

    def look(self, states: Mapping[K, V], now: float) -> None:
        """Take in the states of now; one that is not named is over."""
        self._seen = {
            key: seen if (seen := self._seen.get(key)) is not None and seen[0] == state else (state, now)
            for key, state in states.items()
        }

    def for_long(self, now: float) -> list[tuple[K, V, float]]:
        """Return the states that have been the same for the limit, and for how many seconds."""
        if not self._limit_sec:
            return []
        return [
            (key, state, now - since) for key, (state, since) in self._seen.items() if now - since >= self._limit_sec
        ]
