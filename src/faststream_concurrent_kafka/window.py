"""The window of a partition: so many records may be fetched and not acknowledged; then it is paused, and it alone."""

from aiokafka import TopicPartition

from faststream_concurrent_kafka.commit_task import KafkaCommitTask
from faststream_concurrent_kafka.offsets import PartitionLedger
from faststream_concurrent_kafka.pauses import Pauses, Reason


class Window:
    """The windows of the partitions of one consumer."""

    def __init__(self, size: int, pauses: Pauses) -> None:
        self.size = size
        self._pauses = pauses

    def pause(self, key: tuple[str, int]) -> None:
        """Pause a partition whose window is full."""
        if not self._pauses.has(Reason.WINDOW, key):
            self._pauses.add(Reason.WINDOW, TopicPartition(*key))

    def acknowledged(self, key: tuple[str, int], ledger: PartitionLedger[KafkaCommitTask]) -> None:
        """Resume a partition whose window is half empty again."""
        if ledger.window <= self.size // 2 and self._pauses.has(Reason.WINDOW, key):
            self._pauses.remove(Reason.WINDOW, TopicPartition(*key))
