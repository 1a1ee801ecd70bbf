"""`KafkaCommitTask`: one record on its way to being committed."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from aiokafka import TopicPartition
from typing_extensions import override

from faststream_concurrent_kafka._partition.ledger import PartitionLedger


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


class KafkaCommitTask:
    """One record on its way to being committed: what the committer is sent when the record's handling begins.

    The offset of its partition is never committed past this record before `KafkaBatchCommitter.complete` was called
    with it, or, where a `future` is given, before that has resolved (with a result or an exception; a cancelled
    future leaves the record unfinished).
    """

    __slots__ = (
        "admitted_at",
        "consumer",
        "future",
        "identity",
        "is_finished",
        "ledger",
        "offset",
        "timestamp",
        "topic_partition",
    )

    def __init__(  # noqa: PLR0913 - what a record is known by
        self,
        consumer: Consumer,
        topic_partition: tuple[str, int],
        offset: int,
        future: asyncio.Future[Any] | None = None,
        *,
        identity: int = 0,
        timestamp: int | None = None,
    ) -> None:
        self.consumer = consumer
        self.topic_partition = topic_partition
        self.offset = offset
        self.future = future
        # Tells the record from another one at the same offset.
        self.identity = identity
        # The record's, in milliseconds; without it nothing is noted of what has finished behind this record.
        self.timestamp = timestamp
        self.is_finished = False
        self.ledger: PartitionLedger[KafkaCommitTask]
        self.admitted_at: float

    @override
    def __repr__(self) -> str:
        topic, partition = self.topic_partition
        return f"{topic}[{partition}]@{self.offset}"
