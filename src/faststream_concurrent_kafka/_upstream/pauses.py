"""Why partitions are paused: a partition is resumed when it has no reason left (I23)."""

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
    """Its window is full: too many of its records are not acknowledged."""
    UNCOMMITTED = enum.auto()
    """A reset has found its position, which is not committed yet."""
    HALTED = enum.auto()
    """Its failure policy has halted it at a record."""


_NONE = Reason(0)


class Pauses:
    """The pauses of one consumer. Its `pause` and `resume` are replaced: they add and remove the user's reason only.

    aiokafka drops all pauses at each assignment: reasons of a partition that is not paused belong to an earlier one.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._reasons: dict[tuple[str, int], Reason] = {}
        self._pause: Callable[..., None] = consumer.pause
        self._resume: Callable[..., None] = consumer.resume
        consumer.pause = functools.partial(self.add, Reason.USER)
        consumer.resume = functools.partial(self.remove, Reason.USER)

    def add(self, reason: Reason, *partitions: TopicPartition) -> None:
        """Pause partitions, as `consumer.pause` does, until every reason is removed.

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
        """Remove a reason of these partitions; resume, as `consumer.resume` does, those that have no other one.

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
        """Whether an assigned partition is paused for this reason, possibly among others."""
        return reason in self._reasons.get(key, _NONE) and key in self._consumer.paused()
