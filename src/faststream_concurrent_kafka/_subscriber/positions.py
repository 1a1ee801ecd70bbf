"""Where the partitions of one consumer begin: at their committed offsets, or at a position that is committed first.

aiokafka finds a position by itself where nothing is committed, or where the committed offset is out of range, and keeps
it to itself: the next owner would find another one, and skip what lies between. So what is found is committed before a
record from there on is delivered.

Invariants: I13.
"""

import logging
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition

from faststream_concurrent_kafka._commit.consumer import ConsumerOffsets
from faststream_concurrent_kafka._partition.offset_map import OffsetMap
from faststream_concurrent_kafka._upstream import consumers, hooks
from faststream_concurrent_kafka._upstream.pauses import Pauses, Reason


logger = logging.getLogger("faststream_concurrent_kafka")


class Positions:
    """Begins the ledger of each partition as soon as its position is known."""

    def __init__(
        self, name: str, consumer: Any, offsets: ConsumerOffsets, pauses: Pauses, commit: Callable[[], None]
    ) -> None:
        self._name = name
        self._consumer = consumer
        self._offsets = offsets
        self._pauses = pauses
        self._commit = commit
        self._has_warned = False

    def watch(self) -> None:
        """See how the positions of the present assignment are found: before the broker is asked for them."""
        hooks.watch_positions(self._consumer, self)

    def take_over(self) -> None:
        """Watch a consumer that is running already: what it has delivered before is not ours, what comes now is."""
        self.watch()
        for key, position in consumers.positions(self._consumer).items():
            partition = self._offsets.partition(key)
            if partition.ledger is None:
                partition.begin(position, is_committed=False)
            else:
                # Of the record that was in hand.
                partition.ledger.is_committed = False
        self._commit()

    # -- what aiokafka tells -------------------------------------------------------------------------------------

    def committed(self, key: TopicPartition, offset: int, metadata: str) -> None:
        """Note the committed offset of a partition that has just been assigned."""
        partition = self._offsets.partition(key)
        if partition.ledger is not None:
            return
        partition.begin(offset, is_committed=True)
        if metadata and self._offsets.metadata_limit:
            partition.restored = self._parse(key, offset, metadata)

    def found(self, key: TopicPartition, position: int) -> None:
        """Note where a partition goes on: at its committed offset, by a reset, or where the user wants it."""
        partition = self._offsets.partition(key)
        was_sought, partition.sought = partition.sought, False
        if partition.ledger is not None and (was_sought or position == partition.ledger.admitted):
            # If a seek goes back, the first record that is delivered begins another epoch.
            return
        partition.begin(position, is_committed=False)
        self._pauses.add(Reason.UNCOMMITTED, key)
        self._pauses.remove(Reason.WINDOW | Reason.HALTED, key)
        self._commit()

    def sought(self, key: TopicPartition, position: int) -> None:
        """Note where the user wants a partition to go on."""
        self._pauses.remove(Reason.HALTED, key)
        if self._offsets.partition(key).ledger is None:
            self.found(key, position)

    def acknowledged(self, key: tuple[str, int]) -> None:
        """Let a partition go whose position has been committed."""
        if self._pauses.has(Reason.UNCOMMITTED, key):
            self._pauses.remove(Reason.UNCOMMITTED, TopicPartition(*key))

    def _parse(self, key: TopicPartition, offset: int, metadata: str) -> OffsetMap | None:
        try:
            return OffsetMap.parse(metadata, offset)
        except ValueError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s ignores the metadata of the offset committed for %s[%d], because %s: %.100r",
                    *(self._name, key.topic, key.partition, error, metadata),
                )
            return None
