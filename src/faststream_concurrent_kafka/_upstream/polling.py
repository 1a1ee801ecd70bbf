"""A consumer that is not asked for records for a while, and must not be evicted from its group for that (I22)."""

import asyncio
from typing import Any, Self

from faststream_concurrent_kafka._upstream import consumers


_LONGEST_PAUSE_SEC = 1.0


def poll_pause_sec(consumer: Any) -> float:
    """Return how many seconds there may be between two polls: three of them in each `max_poll_interval_ms`."""
    return min(_LONGEST_PAUSE_SEC, consumers.max_poll_interval_sec(consumer) / 3)


class Polling:
    """For as long as its block takes, a consumer counts as polled.

    By a timer, so whatever is awaited meanwhile. It fetches nothing, and waits for no rebalance, as `getmany` would.
    """

    __slots__ = ("_consumer", "_pause_sec", "_timer")

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._pause_sec = poll_pause_sec(consumer)
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> Self:
        self._poll()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._timer.cancel()

    def _poll(self) -> None:
        consumers.count_as_polled(self._consumer)
        self._timer = asyncio.get_running_loop().call_later(self._pause_sec, self._poll)
