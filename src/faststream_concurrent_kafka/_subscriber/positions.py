"""Where the partitions of one consumer begin: at their committed offsets, or at a position that is committed first.

aiokafka finds a position by itself where nothing is committed, or where the committed offset is out of range, and keeps
it to itself: the next owner would find another one, and skip what lies between. So what is found is committed before a
record from there on is delivered.
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
            ledger = self._offsets.ledgers.get(key)
            if ledger is None:
                self._offsets.begin(key, position, is_committed=False)
            else:
                # Of the record that was in hand.
                ledger.is_committed = False
        self._commit()

    # -- what aiokafka tells -------------------------------------------------------------------------------------

    def committed(self, key: TopicPartition, offset: int, metadata: str) -> None:
        """Note the committed offset of a partition that has just been assigned."""
        if key in self._offsets.ledgers:
            return
        self._offsets.begin(key, offset, is_committed=True)
        if metadata and self._offsets.metadata_limit:
            self._restore(key, offset, metadata)

    def found(self, key: TopicPartition, position: int) -> None:
        """Note where a partition goes on: at its committed offset, by a reset, or where the user wants it."""
        ledger = self._offsets.ledgers.get(key)
        was_sought = key in self._offsets.sought
        self._offsets.sought.discard(key)
        if ledger is not None and (was_sought or position == ledger.admitted):
            # If a seek goes back, the first record that is delivered begins another epoch.
            return
        self._offsets.begin(key, position, is_committed=False)
        self._pauses.add(Reason.UNCOMMITTED, key)
        self._pauses.remove(Reason.WINDOW | Reason.HALTED, key)
        self._commit()

    def sought(self, key: TopicPartition, position: int) -> None:
        """Note where the user wants a partition to go on."""
        self._pauses.remove(Reason.HALTED, key)
        if key not in self._offsets.ledgers:
            self.found(key, position)

    def acknowledged(self, key: tuple[str, int]) -> None:
        """Let a partition go whose position has been committed."""
        if self._pauses.has(Reason.UNCOMMITTED, key):
            self._pauses.remove(Reason.UNCOMMITTED, TopicPartition(*key))

    def _restore(self, key: TopicPartition, offset: int, metadata: str) -> None:
        try:
            self._offsets.restored[key] = OffsetMap.parse(metadata, offset)
        except ValueError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s ignores the metadata of the offset committed for %s[%d], because %s: %.100r",
                    *(self._name, key.topic, key.partition, error, metadata),
                )
