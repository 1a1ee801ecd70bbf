"""The partitions of one consumer: what of them is to be committed, and for how long that has been failing."""

from collections.abc import Callable, Iterable, Mapping

from faststream_concurrent_kafka._commit.admission import Admission, Consumer
from faststream_concurrent_kafka._commit.clock import CommitClock
from faststream_concurrent_kafka._kafka_types import TopicPartition
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.offset_map import MAX_BYTES
from faststream_concurrent_kafka._partition.redelivery import Redeliverable
from faststream_concurrent_kafka._partition.state import Partition, Sent
from faststream_concurrent_kafka._upstream import hooks


# In less than this nothing can be told.
_LEAST_METADATA = 32
# To make all maps may take no more than this share of the time.
_SHARE_FOR_MAPS = 0.04


class ConsumerOffsets:
    """The partitions of one consumer."""

    def __init__(self, consumer: Consumer, *, writes_metadata: bool = False) -> None:
        self.consumer = consumer
        self.partitions: dict[tuple[str, int], Partition[Admission]] = {}
        # How many bytes a commit may take to tell what has finished above its offset; 0 = it does not.
        self.metadata_limit = MAX_BYTES if writes_metadata else 0
        # Called with the partitions and ledgers of a commit that the broker has confirmed.
        self.on_ack: Callable[[TopicPartition, PartitionLedger[Admission]], None] | None = None
        # What is still owned between a `subscribe` at run time and the rebalance that it asks for.
        self.outgoing: hooks.Outgoing | None = None
        # Whether a rebalance listener will release held commits: not so with manually assigned partitions.
        self.is_group_managed = False
        # Whether no commit may be sent, but by a flush.
        self.is_held: bool = False
        self.clock: CommitClock = CommitClock()

    def partition(self, key: tuple[str, int]) -> Partition[Admission]:
        """Return what is known of a partition, which may be nothing yet."""
        partition = self.partitions.get(key)
        if partition is None:
            partition = self.partitions[TopicPartition(*key)] = Partition[Admission]()
        return partition

    # -- what is to be committed ---------------------------------------------------------------------------------

    def dirty(self) -> dict[TopicPartition, int]:
        """Return what may and should be committed. Unassigned partitions would fail the whole request."""
        assigned = self.consumer.assignment() if self.outgoing is None else self.outgoing.partitions
        with_metadata = self.metadata_limit > 0
        return {
            TopicPartition(*key): offset
            for key, partition in self.partitions.items()
            if (offset := partition.to_commit(with_metadata=with_metadata)) is not None and key in assigned
        }

    def healthy(self) -> dict[TopicPartition, int]:
        """Return what of it is committed in one request: all but what the broker has refused."""
        return {key: offset for key, offset in self.dirty().items() if self.partitions[key].refusal is None}

    def refused(self, until: float = float("inf")) -> dict[TopicPartition, int]:
        """Return what of it the broker has refused, and is to be tried again by then."""
        if all(partition.refusal is None for partition in self.partitions.values()):
            return {}
        return {
            key: offset
            for key, offset in self.dirty().items()
            if (refusal := self.partitions[key].refusal) is not None and refusal.again_at <= until
        }

    def map_pause_sec(self) -> float:
        """Return for how long a map is good enough: to make all of them may take no more than its share of the time."""
        costs = (each.told.cost_sec for each in self.partitions.values() if each.told is not None)
        return sum(costs) / _SHARE_FOR_MAPS

    def prepare(
        self, key: TopicPartition, *, with_metadata: bool, made_since: float, now: float
    ) -> Sent[Admission] | None:
        """Note that a partition is being committed, and return what to send; None if it is not assigned any more."""
        return self.partition(key).prepare(
            metadata_limit=self.metadata_limit, with_metadata=with_metadata, made_since=made_since, now=now
        )

    def take_less_metadata(self, sent: Iterable[Sent[Admission]]) -> None:
        """Have less of it sent from now on: this was too much for the broker."""
        for partition in self.partitions.values():
            partition.told = None
        # By a quarter: half of what was a little too much may be too little for anything.
        less = 3 * max(len(each.metadata) for each in sent) // 4
        self.metadata_limit = less if less >= _LEAST_METADATA else 0

    async def commit(self, offsets: Mapping[TopicPartition, int | tuple[int, str]]) -> None:
        """Send a commit."""
        await (self.consumer if self.outgoing is None else self.outgoing).commit(offsets)

    def acknowledge(self, taken: Mapping[TopicPartition, Sent[Admission]]) -> None:
        """Note what the broker has confirmed as committed."""
        for key, each in taken.items():
            each.ledger.ack(each.frontier, each.finished)
            if self.on_ack is not None and not each.ledger.closed:
                self.on_ack(key, each.ledger)

    def renew(self) -> None:
        """Have everything committed once more, whether or not there is news."""
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
        """Note that a commit of these has failed."""
        self._last_error()
        self.clock.fail(error, now)
        for key, offset in missing.items():
            self.partition(key).missing = offset

    def _last_error(self) -> str:
        if all(partition.missing is None for partition in self.partitions.values()):
            # Others have the partitions, or have committed them.
            self.clock.forget()
        return self.clock.error

    def failing_sec(self, now: float) -> float:
        """Return for how long no commit has succeeded, where there is something to commit."""
        return self.clock.age_sec(now, is_held=bool(self._last_error()) and self.is_held and bool(self.dirty()))

    # -- assignments ---------------------------------------------------------------------------------------------

    def expect(self, redeliverable: Mapping[tuple[str, int], Redeliverable[Admission]]) -> None:
        """Note what may be delivered again of what another consumer has had."""
        for key, each in redeliverable.items():
            self.partition(key).redeliverable = each

    def assigned(self) -> None:
        """Note that partitions have been assigned: commits may start again, also those that were refused."""
        self.is_held = False
        self.outgoing = None
        assignment = self.consumer.assignment()
        for key, partition in list(self.partitions.items()):
            if key not in assignment:
                partition.refusal = partition.missing = None
            elif partition.refusal is not None:
                partition.refusal.again_at = float("-inf")
            if partition.is_empty:
                del self.partitions[key]

    def end_epoch(self) -> dict[tuple[str, int], Redeliverable[Admission]]:
        """End the ledgers: what still runs of their records commits nothing; return what may be delivered again."""
        for partition in self.partitions.values():
            partition.end_epoch()
        return {key: each.redeliverable for key, each in self.partitions.items() if each.redeliverable is not None}

    def subscribe(self, subscribe: Callable[[], None]) -> None:
        """Subscribe; aiokafka gives the assignment up at once, but it can be committed for until the rebalance."""
        outgoing = hooks.outgoing(self.consumer)
        subscribe()
        self.outgoing = outgoing or self.outgoing

    def forget_on_seek(self, key: TopicPartition, is_found_later: bool) -> None:  # noqa: FBT001
        """Forget what was handled of a partition: a user who moves its position wants the records."""
        partition = self.partition(key)
        partition.forget()
        if is_found_later:
            partition.sought = True
