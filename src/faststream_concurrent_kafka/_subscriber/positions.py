"""Where the partitions of one consumer begin: at their committed offsets, or at a position that is committed first.

Where nothing is committed, or the committed offset is out of range, aiokafka finds a position by `auto_offset_reset`
and does not commit it: the next owner may find a later one, and skip the records in between. So the library commits
such a position before it lets records of the partition be delivered.

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
        """Watch how aiokafka finds the positions of the present assignment; called before it asks the broker."""
        hooks.watch_positions(self._consumer, self)

    def take_over(self) -> None:
        """Watch a consumer that is running already: the library is responsible for what it delivers from now on."""
        self.watch()
        for key, position in consumers.positions(self._consumer).items():
            partition = self._offsets.partition(key)
            if partition.ledger is None:
                partition.begin(position, is_committed=False)
            else:
                # The ledger of the record that was in hand.
                partition.ledger.is_committed = False
        self._commit()

    # -- called when aiokafka knows a position --------------------------------------------------------------------

    def committed(self, key: TopicPartition, offset: int, metadata: str) -> None:
        """Note the committed offset of a partition that has just been assigned."""
        partition = self._offsets.partition(key)
        if partition.ledger is not None:
            return
        partition.begin(offset, is_committed=True)
        if metadata and self._offsets.metadata_limit and (offset_map := self._parse(key, offset, metadata)) is not None:
            partition.restore(offset_map)

    def found(self, key: TopicPartition, position: int) -> None:
        """Begin an epoch at a position that a reset or a seek has found, and have it committed first."""
        partition = self._offsets.partition(key)
        was_sought, partition.sought = partition.sought, False
        if partition.ledger is not None and (was_sought or position == partition.ledger.admitted):
            # No new epoch. After a seek back, the first record that is delivered begins one.
            return
        partition.begin(position, is_committed=False)
        self._pauses.add(Reason.UNCOMMITTED, key)
        self._pauses.remove(Reason.WINDOW | Reason.HALTED, key)
        self._commit()

    def sought(self, key: TopicPartition, position: int) -> None:
        """Note the position of a user's seek: it ends a halt."""
        self._pauses.remove(Reason.HALTED, key)
        if self._offsets.partition(key).ledger is None:
            self.found(key, position)

    def acknowledged(self, key: tuple[str, int]) -> None:
        """Resume a partition that was paused until its position was committed."""
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
