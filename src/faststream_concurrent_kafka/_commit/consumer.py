"""What the committer knows of one consumer: its ledgers, the state of its commits, what a failed commit means."""

import asyncio
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from faststream_concurrent_kafka._commit.clock import CommitClock
from faststream_concurrent_kafka._commit.refused import Refusals
from faststream_concurrent_kafka._commit.task import Consumer, KafkaCommitTask
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.offset_map import MAX_BYTES, MOST_SAMPLES, OffsetMap, rebased
from faststream_concurrent_kafka._partition.redelivery import Adoptable, Earlier
from faststream_concurrent_kafka._upstream import hooks


FIRST_BACKOFF_SEC = 0.1
LONGEST_BACKOFF_SEC = 5.0
# In less than this nothing can be told.
_LEAST_METADATA = 32
# To make a map takes about so long, and all of them no more than this share of the time.
_SEC_PER_BYTE = 3e-8
_SEC_PER_RECORD = 5e-7
_SHARE_FOR_MAPS = 0.04


class CommitFailure(enum.Enum):
    """What a failed commit means."""

    RETRIABLE = enum.auto()
    LOST_OWNERSHIP = enum.auto()
    FATAL = enum.auto()


_LOST_OWNERSHIP = (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


def classify(error: BaseException) -> CommitFailure:
    """Translate what a commit can raise; unless stated otherwise it is a fault of ours, and fatal."""
    if isinstance(error, _LOST_OWNERSHIP):
        return CommitFailure.LOST_OWNERSHIP
    # A refused authorisation is retried as well: an operator can grant it, and only a restart could do more.
    # CancelledError: aiokafka cancels its own tasks when a consumer closes under a commit.
    if isinstance(error, KafkaError | OSError | TimeoutError | asyncio.CancelledError):
        return CommitFailure.RETRIABLE
    return CommitFailure.FATAL


class Sent(NamedTuple):
    """What a request commits of one partition."""

    ledger: PartitionLedger[KafkaCommitTask]
    frontier: int
    finished: int
    """How many records of the ledger had finished."""
    metadata: str
    is_news: bool
    """Whether this offset has not been sent before: if the broker has it, it has it from this request."""

    def value(self) -> int | tuple[int, str]:
        """Return it as `consumer.commit` takes it."""
        return (self.frontier, self.metadata) if self.metadata else self.frontier


class Told(NamedTuple):
    """What commits tell of a partition, above their offset."""

    metadata: str
    last: int
    """The last offset that it marks as finished."""
    finished: int
    """How many records of the ledger had finished."""
    made_at: float
    cost_sec: float


class ConsumerOffsets:
    """The ledgers of one consumer, and the state of committing for it."""

    __slots__ = (
        "again",
        "backoff_sec",
        "clock",
        "consumer",
        "flushing",
        "held",
        "ledgers",
        "left",
        "metadata_limit",
        "on_ack",
        "outgoing",
        "refusals",
        "rejoins",
        "request",
        "restored",
        "retry",
        "retry_refused",
        "soon",
        "sought",
        "told",
    )

    def __init__(self, consumer: Consumer, *, writes_metadata: bool = False) -> None:
        self.consumer = consumer
        # How many bytes a commit may take to tell what has finished above its offset; 0 = it does not.
        self.metadata_limit = MAX_BYTES if writes_metadata else 0
        self.ledgers: dict[tuple[str, int], PartitionLedger[KafkaCommitTask]] = {}
        # What may come back of partitions that were revoked.
        self.left: dict[tuple[str, int], Adoptable[KafkaCommitTask]] = {}
        # What had finished above the committed offset when the partition was assigned, whoever had it before.
        self.restored: dict[tuple[str, int], OffsetMap] = {}
        # Where the user has asked aiokafka to find the beginning or the end, until it is found.
        self.sought: set[tuple[str, int]] = set()
        # What the last commits have told, per partition.
        self.told: dict[tuple[str, int], Told] = {}
        self.on_ack: Callable[[tuple[str, int], PartitionLedger[KafkaCommitTask]], None] | None = None
        # What is still ours between a `subscribe` at run time and the rebalance that it asks for.
        self.outgoing: hooks.Outgoing | None = None
        # Whether a rebalance listener will `release` commits again: not so with manually assigned partitions.
        self.rejoins = False
        self.held = False
        # One flush at a time: a stop and a rebalance may wait for the same last record, and then both commit.
        self.flushing = asyncio.Lock()
        self.request: asyncio.Task[None] | None = None
        self.again = False
        self.retry: asyncio.TimerHandle | None = None
        self.refusals: Refusals[TopicPartition] = Refusals()
        self.retry_refused: asyncio.TimerHandle | None = None
        # For a full window.
        self.soon: asyncio.TimerHandle | None = None
        self.backoff_sec = FIRST_BACKOFF_SEC
        self.clock: CommitClock[TopicPartition] = CommitClock()

    def dirty(self) -> dict[TopicPartition, int]:
        """Return what may and should be committed. Unassigned partitions would fail the whole request."""
        assigned = self.consumer.assignment() if self.outgoing is None else self.outgoing.partitions
        dirty: dict[TopicPartition, int] = {}
        for key, ledger in self.ledgers.items():
            frontier = self._frontier(key, ledger)
            # Who tells what has finished above has something to tell whenever something has finished.
            is_news = self.metadata_limit and ledger.finished > ledger.finished_acked
            if (frontier > ledger.acked or is_news or not ledger.is_committed) and key in assigned:
                dirty[TopicPartition(*key)] = frontier
        return dirty

    def _frontier(self, key: tuple[str, int], ledger: PartitionLedger[KafkaCommitTask]) -> int:
        """Return the offset to commit: the first unfinished one; or the last one, if what lies behind it is known."""
        if not self.metadata_limit or ledger.unfinished or ledger.is_held_back or not (self.left or self.restored):
            return ledger.frontier
        if ledger.newest is None:
            # Nothing has been delivered: the position.
            return ledger.frontier
        if ledger.room_wanted and ledger.admitted - 1 <= ledger.acked:
            # A window of a single record: it has to be acknowledged before there is another.
            return ledger.frontier
        restored = self.restored.get(key)
        if (restored is None or restored.ends_before(ledger.admitted)) and not any(self._left_beyond(key, ledger)):
            return ledger.frontier
        # What has finished further on is told with a record by which it can be recognised: here the last delivered
        # one, which is marked as finished, too.
        return max(ledger.admitted - 1, ledger.sent)

    def _left_beyond(self, key: tuple[str, int], ledger: PartitionLedger[KafkaCommitTask]) -> Iterator[int]:
        """Yield what has finished here in an earlier epoch, and has not been delivered in this one; never 0."""
        if (left := self.left.get(key)) is not None:
            for offset, entry in left.remaining(ledger.admitted):
                if entry is None or entry.is_finished:
                    yield offset

    def healthy(self) -> dict[TopicPartition, int]:
        """Return what of it is committed in one request: all but what the broker has refused."""
        return {key: frontier for key, frontier in self.dirty().items() if key not in self.refusals}

    def is_due(self, now: float) -> bool:
        """Whether there is something to send."""
        dirty = self.dirty()
        return any(key not in self.refusals for key in dirty) or bool(self.refusals.due(dirty, now))

    def map_pause_sec(self) -> float:
        """Return for how long a map is good enough: to make all of them may take no more than its share of the time."""
        return sum(told.cost_sec for told in self.told.values()) / _SHARE_FOR_MAPS

    def prepare(self, key: TopicPartition, *, with_metadata: bool, made_since: float, now: float) -> Sent | None:
        """Note that a partition is being committed, and return it; None if it has gone.

        What has finished above its offset is told as it was at `made_since` or later.
        """
        if (ledger := self.ledgers.get(key)) is None:
            return None
        frontier, told = self._frontier(key, ledger), None
        if with_metadata and self.metadata_limit:
            told = self._tell(key, ledger, frontier, made_since=made_since, now=now)
        is_news, ledger.sent = frontier != ledger.sent, frontier
        if told is None:
            return Sent(ledger, frontier, ledger.finished, "", is_news)
        return Sent(ledger, frontier, told.finished, told.metadata, is_news)

    def _tell(
        self,
        key: tuple[str, int],
        ledger: PartitionLedger[KafkaCommitTask],
        frontier: int,
        *,
        made_since: float,
        now: float,
    ) -> Told | None:
        """Say what has finished above a frontier; None if nothing has, or nothing tells its record from others."""
        if ledger.newest is None and (restored := self.restored.get(key)) is not None:
            # Nothing has been delivered since it was read.
            return Told(restored.dump(self.metadata_limit), restored.last, ledger.finished, now, 0.0)
        first = ledger.first_unfinished()
        timestamp = ledger.last_timestamp if first is None else first.timestamp
        if frontier == ledger.admitted or timestamp is None or ledger.is_held_back:
            return None
        told = self.told.get(key)
        if told is not None and told.made_at >= made_since:
            is_over = not told.metadata or told.last < frontier
            return told._replace(metadata="" if is_over else rebased(told.metadata, frontier, timestamp))
        left = self.left.get(key)
        newest = ledger.newest
        if left is not None and newest is not None and left.newest is not None:
            newest = max(newest, left.newest)
        delivered, all_delivered = ledger.delivered_from(frontier, MOST_SAMPLES)
        offset_map = OffsetMap.of(
            frontier,
            timestamp,
            admitted=ledger.admitted,
            unfinished=ledger.unfinished_offsets(),
            beyond=self._left_beyond(key, ledger),
            earlier=self.restored.get(key),
            delivered=delivered,
            newest=newest,
            all_delivered=all_delivered and left is None,
        )
        cost_sec = offset_map.size * _SEC_PER_BYTE + (ledger.unfinished + len(left or ())) * _SEC_PER_RECORD
        metadata = offset_map.dump(self.metadata_limit)
        told = self.told[key] = Told(metadata, offset_map.last, ledger.finished, now, cost_sec)
        return told

    def take_less_metadata(self, sent: Iterable[Sent]) -> None:
        """Have less of it sent from now on: this was too much for the broker."""
        self.told.clear()
        # By a quarter: half of what was a little too much may be too little for anything.
        less = 3 * max(len(each.metadata) for each in sent) // 4
        self.metadata_limit = less if less >= _LEAST_METADATA else 0

    def begin(self, key: tuple[str, int], offset: int, *, is_committed: bool) -> PartitionLedger[KafkaCommitTask]:
        """Begin an epoch of a partition: at its committed offset, or at one that is to be committed.

        What was finished in the last one says nothing about the records of this one.
        """
        if (last := self.ledgers.get(key)) is not None:
            # Its records that still run go on to pin the offset that may be committed.
            last.closed = True
            self.forget(key)
        elif (left := self.left.get(key)) is not None:
            left.begin(offset)
            if not left:
                del self.left[key]
        ledger = PartitionLedger[KafkaCommitTask](offset, is_committed=is_committed, behind=last)
        self.ledgers[TopicPartition(*key)] = ledger
        if is_committed:
            self.clock.deliver(TopicPartition(*key), offset)
        return ledger

    def admit(self, task: KafkaCommitTask) -> Earlier[KafkaCommitTask] | None:
        """Admit a record; return what is known of it if it was delivered before its partition was revoked."""
        key = task.topic_partition
        ledger = self.ledgers.get(key)
        if ledger is None or task.offset < ledger.admitted:
            # A new assignment, or the position went back: a seek's is kept as soon as something has finished.
            ledger = self.begin(key, task.offset, is_committed=True)
        task.ledger = ledger
        ledger.admit(task.offset, task, task.identity, task.timestamp)
        return self._recall(task) if self.left or self.restored else None

    def _recall(self, task: KafkaCommitTask) -> Earlier[KafkaCommitTask] | None:
        earlier = self._claim_left(task)
        # Even if it was left undone here, or still runs: somebody has finished it since.
        return Earlier(None) if self._claim_restored(task) else earlier

    def _claim_left(self, task: KafkaCommitTask) -> Earlier[KafkaCommitTask] | None:
        left = self.left.get(task.topic_partition)
        if left is None:
            return None
        earlier = left.claim(task.offset, task.identity)
        if not left:
            del self.left[task.topic_partition]
            self.told.pop(task.topic_partition, None)
        return earlier

    def _claim_restored(self, task: KafkaCommitTask) -> bool:
        restored = self.restored.get(task.topic_partition)
        if restored is None:
            return False
        had_finished = restored.claim(task.offset, task.timestamp)
        if restored.ends_before(task.offset + 1):
            # All of it has been delivered; or it is not believed any more, and not told again.
            del self.restored[task.topic_partition]
            self.told.pop(task.topic_partition, None)
        return had_finished

    def forget(self, key: tuple[str, int]) -> None:
        """Forget what was handled of a partition: it is delivered because somebody wants it handled again."""
        self.left.pop(key, None)
        self.restored.pop(key, None)
        self.told.pop(key, None)

    def sought_by_user(self, key: TopicPartition, is_found_later: bool) -> None:  # noqa: FBT001
        """Forget what was handled of a partition: a user who moves its position wants the records."""
        self.forget(key)
        if is_found_later:
            self.sought.add(key)

    def renew(self) -> None:
        """Have everything committed once more, whether or not there is news."""
        for ledger in self.ledgers.values():
            ledger.is_committed = False

    def succeeded(self) -> None:
        """Forget earlier failures."""
        self.clock.succeed()
        self.backoff_sec = FIRST_BACKOFF_SEC

    def subscribe(self, subscribe: Callable[[], None]) -> None:
        """Subscribe; aiokafka gives the assignment up at once, but it can be committed for until the rebalance."""
        outgoing = hooks.outgoing(self.consumer)
        subscribe()
        self.outgoing = outgoing or self.outgoing

    async def commit(self, offsets: Mapping[TopicPartition, int | tuple[int, str]]) -> None:
        """Send a commit."""
        await (self.consumer if self.outgoing is None else self.outgoing).commit(offsets)

    def assigned(self) -> None:
        """Let commits start again: partitions have been assigned."""
        self.held = False
        self.outgoing = None
        self.backoff_sec = FIRST_BACKOFF_SEC
        assignment = self.consumer.assignment()
        self.refusals.keep(assignment)
        self.clock.keep(assignment)

    def failing_sec(self, now: float) -> float:
        """Return for how long no commit has succeeded, where there is something to commit."""
        return self.clock.age_sec(now, is_held=self.held and bool(self.clock.error) and bool(self.dirty()))

    def refused_for(self, limit_sec: float, now: float) -> list[tuple[TopicPartition, float, str]]:
        """Return partition, seconds and error of what has been waiting to be committed for this long."""
        refused = self.refusals.older_than(limit_sec, now)
        dirty = self.dirty() if refused else ()
        return [each for each in refused if each[0] in dirty]

    def cancel_retry(self) -> None:
        """Forget the attempts that are due."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        if self.retry_refused is not None:
            self.retry_refused.cancel()
            self.retry_refused = None
        if self.soon is not None:
            self.soon.cancel()
            self.soon = None

    def end_epoch(self) -> None:
        """End the ledgers: what still runs of their records commits nothing, unless it comes back."""
        for key, ledger in self.ledgers.items():
            ledger.closed = True
            left = self.left.setdefault(key, Adoptable())
            left.absorb(ledger)
            if not left:
                del self.left[key]
        self.ledgers.clear()
        self.restored.clear()
        self.sought.clear()
        self.told.clear()

    def next_backoff_sec(self) -> float:
        """Return how long to wait before the next attempt, longer each time."""
        backoff_sec = self.backoff_sec
        self.backoff_sec = min(backoff_sec * 2, LONGEST_BACKOFF_SEC)
        return backoff_sec
