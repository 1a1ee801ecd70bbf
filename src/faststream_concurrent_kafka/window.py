"""The window of a partition: so many records may be fetched and not acknowledged; then it is paused, and it alone."""

from typing import Any

from aiokafka import TopicPartition

from faststream_concurrent_kafka.commit_task import KafkaCommitTask
from faststream_concurrent_kafka.offsets import PartitionLedger


class Window:
    """The windows of one subscriber's partitions. What the user pauses, the user resumes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._consumer: Any = None
        self._pause: Any = None
        # Of these the pause is ours. A rebalance drops all pauses, so it may be gone.
        self._paused: set[tuple[str, int]] = set()

    def adopt(self, consumer: Any) -> None:
        """Watch over a new consumer."""
        self._paused.clear()
        self._consumer = consumer
        if (pause := getattr(consumer, "pause", None)) is not None:
            self._pause = pause
            consumer.pause = self._users_pause

    def _users_pause(self, *partitions: TopicPartition) -> None:
        self._paused.difference_update(partitions)
        self._pause(*partitions)

    def pause(self, key: tuple[str, int]) -> None:
        """Pause a partition whose window is full, unless the user has."""
        partition = TopicPartition(*key)
        if partition not in self._consumer.paused():
            self._paused.add(key)
            self._pause(partition)

    def acknowledged(self, key: tuple[str, int], ledger: PartitionLedger[KafkaCommitTask]) -> None:
        """Resume a partition whose window is half empty again."""
        if key in self._paused and ledger.window <= self.size // 2 and ledger.stopped_at is None:
            self._paused.discard(key)
            if (partition := TopicPartition(*key)) in self._consumer.assignment():
                self._consumer.resume(partition)

    def close(self, key: tuple[str, int]) -> None:
        """Pause a partition for the rest of its assignment."""
        self._paused.discard(key)
        if self._consumer is not None and (partition := TopicPartition(*key)) in self._consumer.assignment():
            self._pause(partition)
