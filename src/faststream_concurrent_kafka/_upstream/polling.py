"""Keeps a consumer that does not fetch for a while from being evicted from its group (I22)."""

import asyncio
from typing import Any, Self

from faststream_concurrent_kafka._upstream import consumers


_LONGEST_PAUSE_SEC = 1.0


def poll_pause_sec(consumer: Any) -> float:
    """Return the seconds between two polls: a third of `max_poll_interval_ms`."""
    return min(_LONGEST_PAUSE_SEC, consumers.max_poll_interval_sec(consumer) / 3)


class Polling:
    """A context manager in which the consumer counts as polled.

    A timer resets the poll interval while the block awaits something. Unlike `getmany`, it does not wait for a
    rebalance to end. The drain of a rebalance needs none of this: FastStream's loop is in a pending `getone` or
    `getmany` then, which counts as polled.
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
