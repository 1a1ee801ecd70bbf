"""Why partitions are paused: each is fetched again when no reason is left (I23)."""

import enum
import functools
from collections.abc import Callable
from typing import Any

from faststream_concurrent_kafka._kafka_types import TopicPartition


class Reason(enum.Flag):
    """Why a partition is paused."""

    USER = enum.auto()
    """The user has called `consumer.pause`."""
    WINDOW = enum.auto()
    """Too many of its records are not acknowledged."""
    UNCOMMITTED = enum.auto()
    """Where it begins was found, and is not committed yet."""
    HALTED = enum.auto()
    """A record was left undone by policy."""


_NONE = Reason(0)


class Pauses:
    """The pauses of one consumer: its `pause` and `resume` are the user's from now on, and touch that reason alone.

    aiokafka drops all pauses at each assignment: the reasons of a partition that isn't paused are of an earlier one.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._reasons: dict[tuple[str, int], Reason] = {}
        self._pause: Callable[..., None] = consumer.pause
        self._resume: Callable[..., None] = consumer.resume
        consumer.pause = functools.partial(self.add, Reason.USER)
        consumer.resume = functools.partial(self.remove, Reason.USER)

    def add(self, reason: Reason, *partitions: TopicPartition) -> None:
        """Pause partitions, as `consumer.pause` does, until this reason and all others are removed.

        Raises:
            IllegalStateError: a partition is not assigned.
            TypeError: it is no `TopicPartition`.

        """
        paused = self._consumer.paused()
        self._pause(*partitions)
        for partition in partitions:
            known = self._reasons.get(partition, _NONE) if partition in paused else _NONE
            self._reasons[partition] = known | reason

    def remove(self, reason: Reason, *partitions: TopicPartition) -> None:
        """Resume those of the partitions, as `consumer.resume` does, that nothing else keeps paused.

        Raises:
            IllegalStateError: a partition is not assigned.
            TypeError: it is no `TopicPartition`.

        """
        paused = self._consumer.paused()
        free = []
        for partition in partitions:
            left = self._reasons.pop(partition, _NONE) & ~reason if partition in paused else _NONE
            if left:
                self._reasons[partition] = left
            else:
                free.append(partition)
        self._resume(*free)

    def has(self, reason: Reason, key: tuple[str, int]) -> bool:
        """Whether this is one of the reasons why an assigned partition is paused."""
        return reason in self._reasons.get(key, _NONE) and key in self._consumer.paused()
