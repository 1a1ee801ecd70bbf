"""Partitions whose commits the broker refuses while it takes those of others. Pure: the clock is the caller's.

One that was deleted, or whose topic the group may not read any more, would make every request fail that it is in. So
it is tried on its own, now and then, and the others go on without it.
"""

import dataclasses
from collections.abc import Container, Iterable, Mapping
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

    def __contains__(self, key: object) -> bool:
        """Whether a partition is refused."""
        return key in self._refused

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

    def keep(self, keys: Container[K]) -> None:
        """Forget all but these, and have these tried again now: partitions have been assigned."""
        self._refused = {key: refusal for key, refusal in self._refused.items() if key in keys}
        for refusal in self._refused.values():
            refusal.again_at = float("-inf")

    def due(self, dirty: Mapping[K, int], now: float) -> dict[K, int]:
        """Return what of the refused is to be tried again."""
        return {key: dirty[key] for key, refusal in self._refused.items() if key in dirty and refusal.again_at <= now}

    def next_at(self, dirty: Container[K]) -> float | None:
        """Return when the next one of these is to be tried again."""
        return min((refusal.again_at for key, refusal in self._refused.items() if key in dirty), default=None)

    def older_than(self, limit_sec: float, now: float) -> list[tuple[K, float, str]]:
        """Return partition, seconds and error of what has been refused for this long."""
        return [
            (key, now - refusal.since, refusal.error)
            for key, refusal in self._refused.items()
            if now - refusal.since >= limit_sec
        ]
