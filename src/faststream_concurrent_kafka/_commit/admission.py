"""`Admission`: a delivered record whose offset is to be committed."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from faststream_concurrent_kafka._kafka_types import TopicPartition
from faststream_concurrent_kafka._partition.ledger import PartitionLedger


if TYPE_CHECKING:
    from faststream_concurrent_kafka._commit.loop import CommitLoop


class Consumer(Protocol):
    """What the committer needs of an `AIOKafkaConsumer`."""

    def assignment(self) -> Collection[TopicPartition]:
        """Return the partitions that the consumer owns now."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int | tuple[int, str]], /) -> None:
        """Commit "next to read" offsets, with metadata or without."""
        ...

    async def committed(self, partition: TopicPartition, /) -> int | None:
        """Return the committed offset."""
        ...


class Admission:
    """A delivered record: from `KafkaBatchCommitter.admit` to `complete`, no commit passes its offset.

    `identity` distinguishes the record from another one at the same offset. Without its `timestamp` (milliseconds),
    commit metadata can't list the records behind it that have finished.
    """

    __slots__ = (
        "admitted_at",
        "identity",
        "is_finished",
        "ledger",
        "loop",
        "offset",
        "timestamp",
        "topic_partition",
    )

    def __init__(
        self, topic_partition: tuple[str, int], offset: int, identity: int = 0, timestamp: int | None = None
    ) -> None:
        self.topic_partition: tuple[str, int] = topic_partition
        self.offset: int = offset
        self.identity: int = identity
        self.timestamp: int | None = timestamp
        self.is_finished: bool = False
        # Set by `KafkaBatchCommitter.admit`.
        self.ledger: PartitionLedger[Admission]
        self.loop: CommitLoop
        self.admitted_at: float

    @property
    def is_fenced(self) -> bool:
        """Whether its epoch is over, so that its offset can't be committed any more."""
        return self.ledger.closed

    @override
    def __repr__(self) -> str:
        topic, partition = self.topic_partition
        return f"{topic}[{partition}]@{self.offset}"
