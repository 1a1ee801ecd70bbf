"""What had finished above the committed offsets when partitions are assigned, read from the metadata of the commits."""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from faststream_concurrent_kafka import private_parts
from faststream_concurrent_kafka.consumer_offsets import ConsumerOffsets
from faststream_concurrent_kafka.offset_map import OffsetMap
from faststream_concurrent_kafka.pauses import Pauses, Reason


logger = logging.getLogger(__package__)

# Nothing is delivered meanwhile; without an answer everything above the committed offset is handled again.
_READ_TIMEOUT_SEC = 5.0


class Restorer:
    """Reads for one subscriber; says once what it can't make sense of."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_warned = False

    async def restore(
        self, offsets: ConsumerOffsets, consumer: Any, pauses: Pauses, assigned: Collection[TopicPartition]
    ) -> None:
        """Let `offsets` know what had finished, before the first record of these partitions is delivered."""
        if not assigned:
            return
        # Records may be delivered before the listener has returned.
        pauses.add(Reason.ASSIGNMENT, *assigned)
        try:
            async with asyncio.timeout(_READ_TIMEOUT_SEC):
                committed = await private_parts.committed_offsets(consumer, assigned)
            for key, (offset, metadata) in committed.items():
                if metadata and key not in offsets.ledgers:
                    self._take(offsets, key, offset, metadata)
        except (KafkaError, OSError, TimeoutError) as error:
            logger.warning(
                "%s could not read what had finished above its committed offsets, so that is handled again: %r",
                *(self._name, error),
            )
        finally:
            try:
                pauses.remove(Reason.ASSIGNMENT, *assigned)
            except IllegalStateError:
                logger.debug("%s has lost its partitions again", self._name)

    def _take(self, offsets: ConsumerOffsets, key: TopicPartition, offset: int, metadata: str) -> None:
        try:
            offsets.restored[key] = OffsetMap.parse(metadata, offset)
        except ValueError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s ignores the metadata of the offset committed for %s[%d], because %s: %.100r",
                    *(self._name, key.topic, key.partition, error, metadata),
                )
