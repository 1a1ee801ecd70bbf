"""Partitions whose commits the broker refuses while it takes those of others. Pure: the clock is the caller's.

One that was deleted, or whose topic the group may not read any more, would make every request fail that it is in. So
it is tried on its own, now and then, and the others go on without it.
"""

import dataclasses
from collections.abc import Iterable, KeysView, Mapping
from typing import Generic, TypeVar


K = TypeVar("K")

AGAIN_SEC = 5.0


@dataclasses.dataclass(slots=True)
class _Refusal:
    since: float
    again_at: float
    error: str


class Refusals(Generic[K]):
    """The refused partitions of one consumer."""

    __slots__ = ("_refused",)

    def __init__(self) -> None:
        self._refused: dict[K, _Refusal] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._refused)

    def keys(self) -> KeysView[K]:
        """Return which are refused."""
        return self._refused.keys()

    def note(self, keys: Iterable[K], error: str, *, since: float, now: float) -> list[K]:
        """Note that these were refused at an attempt that began at `since`; return those that are new."""
        new = []
        for key in keys:
            known = self._refused.get(key)
            if known is None:
                new.append(key)
            self._refused[key] = _Refusal(since if known is None else known.since, now + AGAIN_SEC, error)
        return new

    def forget(self, keys: Iterable[K]) -> list[K]:
        """Note that these are refused no more; return those that were."""
        return [key for key in keys if self._refused.pop(key, None) is not None]

    def clear(self) -> None:
        """Forget all of them."""
        self._refused.clear()

    def choose(self, dirty: Mapping[K, int], now: float) -> dict[K, int]:
        """Return what to send: those that are to be tried again, alone; else all the others."""
        if not self._refused:
            return dict(dirty)
        due = {key: dirty[key] for key, refusal in self._refused.items() if key in dirty and refusal.again_at <= now}
        return due or {key: offset for key, offset in dirty.items() if key not in self._refused}

    def hurry(self) -> None:
        """Have all of them tried again now."""
        for refusal in self._refused.values():
            refusal.again_at = float("-inf")

    def next_at(self) -> float | None:
        """Return when the next one is to be tried again."""
        return min((refusal.again_at for refusal in self._refused.values()), default=None)

    def older_than(self, limit_sec: float, now: float) -> list[tuple[K, float, str]]:
        """Return partition, seconds and error of what has been refused for so long."""
        return [
            (key, now - refusal.since, refusal.error)
            for key, refusal in self._refused.items()
            if now - refusal.since >= limit_sec
        ]
