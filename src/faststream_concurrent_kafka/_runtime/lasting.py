"""For how long states have lasted. Pure: `now` is a parameter."""

from collections.abc import Mapping
from typing import Generic, TypeVar


K = TypeVar("K")
V = TypeVar("V")


class Lasting(Generic[K, V]):
    """Notes, from samples, since when each key has had the same state. A limit of 0 reports nothing."""

    __slots__ = ("_limit_sec", "_seen")

    def __init__(self, limit_sec: float) -> None:
        self._limit_sec = limit_sec
        self._seen: dict[K, tuple[V, float]] = {}

    def sample(self, states: Mapping[K, V], now: float) -> None:
        """Take a sample of all states; a key that is missing has none any more."""
        self._seen = {
            key: seen if (seen := self._seen.get(key)) is not None and seen[0] == state else (state, now)
            for key, state in states.items()
        }

    def for_long(self, now: float) -> list[tuple[K, V, float]]:
        """Return key, state and seconds of each state that has lasted for the limit."""
        if not self._limit_sec:
            return []
        return [
            (key, state, now - since) for key, (state, since) in self._seen.items() if now - since >= self._limit_sec
        ]
