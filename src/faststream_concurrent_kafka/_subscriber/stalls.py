"""Finds stalled partitions: they have records, and none is delivered. Pure: `now` is a parameter.

A partition is well while its position moves, or is at the end of the log and the broker answers its fetches. Otherwise
(its position is unknown, it has records that are not fetched, or fetches are not answered) it is stalled as soon as
that has lasted for the limit.

Invariants: I30.
"""

from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from faststream_concurrent_kafka._upstream.consumers import FetchState


K = TypeVar("K")


class _Seen(NamedTuple):
    state: FetchState
    delivered_at: float
    """When the position last moved or was at the end of the log."""
    answered_at: float


class StallWatch(Generic[K]):
    """Compares samples of the partitions of one consumer; a limit of 0 reports nothing."""

    __slots__ = ("_limit_sec", "_seen")

    def __init__(self, limit_sec: float) -> None:
        self._limit_sec = limit_sec
        self._seen: dict[K, _Seen] = {}

    def sample(self, states: Mapping[K, FetchState], now: float, *, is_busy: bool) -> None:
        """Take a sample; while `is_busy`, the consumer does not fetch on purpose."""
        self._seen = {key: self._compare(self._seen.get(key), state, now, is_busy) for key, state in states.items()}

    @staticmethod
    def _compare(last: _Seen | None, state: FetchState, now: float, is_busy: bool) -> _Seen:  # noqa: FBT001
        if last is None or is_busy:
            return _Seen(state, now, now)
        lags = state.position is None or (state.end is not None and state.end > state.position)
        if state.position != last.state.position:
            return _Seen(state, now, now)
        return _Seen(
            state,
            last.delivered_at if lags else now,
            last.answered_at if state.answered_at == last.state.answered_at else now,
        )

    def stalled(self, now: float) -> list[tuple[K, float, str]]:
        """Return partition, seconds and reason of each stalled partition."""
        return [found for key, seen in self._seen.items() if (found := self._reason(key, seen, now)) is not None]

    def _reason(self, key: K, seen: _Seen, now: float) -> tuple[K, float, str] | None:
        if not self._limit_sec:
            return None
        position, end, _ = seen.state
        if now - seen.delivered_at >= self._limit_sec:
            if position is None or end is None:
                return key, now - seen.delivered_at, "its position is not known"
            return key, now - seen.delivered_at, f"it stands at {position}, {end - position} before the end"
        if now - seen.answered_at >= self._limit_sec:
            return key, now - seen.answered_at, "the broker does not answer its fetches"
        return None
