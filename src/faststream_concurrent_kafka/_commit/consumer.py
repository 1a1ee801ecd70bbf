"""The partitions of one consumer: which offsets have to be committed, and for how long commits have been failing."""

from collections.abc import Callable, Iterable, Mapping

from faststream_concurrent_kafka._commit.admission import Admission, Consumer
from faststream_concurrent_kafka._commit.clock import CommitClock
from faststream_concurrent_kafka._kafka_types import TopicPartition
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.offset_map import MAX_BYTES
from faststream_concurrent_kafka._partition.redelivery import Redeliverable
from faststream_concurrent_kafka._partition.state import Partition, Sent
from faststream_concurrent_kafka._upstream import consumers, hooks


# A map does not fit into fewer bytes.
_LEAST_METADATA = 32
# Making offset maps may take no more than this share of the time.
_SHARE_FOR_MAPS = 0.04


class ConsumerOffsets:
    """The partitions of one consumer."""

    def __init__(self, consumer: Consumer, *, writes_metadata: bool = False) -> None:
        self.consumer = consumer
        self.partitions: dict[tuple[str, int], Partition[Admission]] = {}
        # The size of a partition's commit metadata, in bytes; 0 = commits carry none.
        self.metadata_limit = MAX_BYTES if writes_metadata else 0
        # Called for each partition, with its ledger, when the broker has confirmed a commit.
        self.on_ack: Callable[[TopicPartition, PartitionLedger[Admission]], None] | None = None
        # The partitions that are owned until the rebalance that `subscribe` at run time has caused.
        self.outgoing: hooks.Outgoing | None = None
        # Whether a rebalance listener will release held commits: not so with manually assigned partitions.
        self.is_group_managed = False
        # Whether no commit may be sent, except by a flush.
        self.is_held: bool = False
        self.clock: CommitClock = CommitClock()

    def partition(self, key: tuple[str, int]) -> Partition[Admission]:
        """Return the state of a partition; make an empty one if there is none."""
        partition = self.partitions.get(key)
        if partition is None:
            partition = self.partitions[TopicPartition(*key)] = Partition[Admission]()
        return partition

    # -- what is to be committed ---------------------------------------------------------------------------------

    def dirty(self) -> dict[TopicPartition, int]:
        """Return the offsets to be committed, of assigned partitions: any other would fail the whole request."""
        assigned = consumers.assigned(self.consumer) if self.outgoing is None else self.outgoing.partitions
        with_metadata = self.metadata_limit > 0
        return {
            TopicPartition(*key): offset
            for key, partition in self.partitions.items()
            if (offset := partition.to_commit(with_metadata=with_metadata)) is not None
            and (assigned is None or key in assigned)
        }

    def healthy(self) -> dict[TopicPartition, int]:
        """Return the dirty partitions whose commits the broker does not refuse: they go into one request."""
        return {key: offset for key, offset in self.dirty().items() if self.partitions[key].refusal is None}

    def refused(self, until: float = float("inf")) -> dict[TopicPartition, int]:
        """Return the dirty partitions whose commits the broker has refused, and that are due again by `until`."""
        if all(partition.refusal is None for partition in self.partitions.values()):
            return {}
        return {
            key: offset
            for key, offset in self.dirty().items()
            if (refusal := self.partitions[key].refusal) is not None and refusal.again_at <= until
        }

    def map_pause_sec(self) -> float:
        """Return for how many seconds a map is used again, so that making maps stays within its share of the time."""
        costs = (each.sent_map.cost_sec for each in self.partitions.values() if each.sent_map is not None)
        return sum(costs) / _SHARE_FOR_MAPS

    def prepare(
        self, key: TopicPartition, *, with_metadata: bool, made_since: float, now: float
    ) -> Sent[Admission] | None:
        """Return what to send for a partition, and note it as sent; None if the partition is not assigned any more."""
        return self.partition(key).prepare(
            metadata_limit=self.metadata_limit, with_metadata=with_metadata, made_since=made_since, now=now
        )

    def take_less_metadata(self, sent: Iterable[Sent[Admission]]) -> None:
        """Send less metadata from now on: the broker found this too large."""
        for partition in self.partitions.values():
            partition.sent_map = None
        # Less by a quarter: where it was only a little too large, half of it would leave out more than needed.
        less = 3 * max(len(each.metadata) for each in sent) // 4
        self.metadata_limit = less if less >= _LEAST_METADATA else 0

    async def commit(self, offsets: Mapping[TopicPartition, int | tuple[int, str]]) -> None:
        """Send a commit."""
        await (self.consumer if self.outgoing is None else self.outgoing).commit(offsets)

    def acknowledge(self, taken: Mapping[TopicPartition, Sent[Admission]]) -> None:
        """Note which offsets the broker has confirmed as committed."""
        for key, each in taken.items():
            each.ledger.ack(each.frontier, each.finished)
            if self.on_ack is not None and not each.ledger.closed:
                self.on_ack(key, each.ledger)

    def renew(self) -> None:
        """Have the offsets of all partitions committed once more."""
        for partition in self.partitions.values():
            if partition.ledger is not None:
                partition.ledger.is_committed = False

    # -- failures ------------------------------------------------------------------------------------------------

    def succeeded(self) -> str:
        """Forget the failures of earlier commits; return the error of the last one, if any."""
        error = self._last_error()
        for partition in self.partitions.values():
            partition.missing = None
        self.clock.forget()
        return error

    def failed(self, missing: Mapping[TopicPartition, int], error: str, now: float) -> None:
        """Note that a commit of these offsets has failed."""
        self._last_error()
        self.clock.fail(error, now)
        for key, offset in missing.items():
            self.partition(key).missing = offset

    def _last_error(self) -> str:
        if all(partition.missing is None for partition in self.partitions.values()):
            # Other members own the partitions, or have committed their offsets.
            self.clock.forget()
        return self.clock.error

    def failing_sec(self, now: float) -> float:
        """Return for how many seconds commits have been failing."""
        return self.clock.age_sec(now, is_held=bool(self._last_error()) and self.is_held and bool(self.dirty()))

    # -- assignments ---------------------------------------------------------------------------------------------

    def expect(self, redeliverable: Mapping[tuple[str, int], Redeliverable[Admission]]) -> None:
        """Take over the records that the last consumer has not committed: they may be delivered again."""
        for key, each in redeliverable.items():
            self.partition(key).redeliverable = each

    def assigned(self) -> None:
        """Note that partitions have been assigned: release commits, and retry refused ones at once."""
        self.is_held = False
        self.outgoing = None
        assignment = consumers.assigned(self.consumer)
        for key, partition in list(self.partitions.items()):
            if assignment is not None and key not in assignment:
                partition.refusal = partition.missing = None
            elif partition.refusal is not None:
                partition.refusal.again_at = float("-inf")
            if partition.is_empty:
                del self.partitions[key]

    def end_epoch(self) -> dict[tuple[str, int], Redeliverable[Admission]]:
        """End the epoch of every partition; return the records that may be delivered again."""
        for partition in self.partitions.values():
            partition.end_epoch()
        return {key: each.redeliverable for key, each in self.partitions.items() if each.redeliverable is not None}

    def subscribe(self, subscribe: Callable[[], None]) -> None:
        """Subscribe; aiokafka gives the assignment up at once, but its offsets can be committed until the rebalance."""
        outgoing = hooks.outgoing(self.consumer)
        subscribe()
        self.outgoing = outgoing or self.outgoing

    def forget_on_seek(self, key: TopicPartition, is_found_later: bool) -> None:  # noqa: FBT001
        """Forget which records of a partition were handled: a user who moves its position wants them handled again."""
        partition = self.partition(key)
        partition.forget()
        if is_found_later:
            partition.sought = True
