"""What the committer knows of one consumer: its ledgers, the state of its commits, what a failed commit means."""

import asyncio
import enum
import functools
from collections.abc import Callable
from typing import Any

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

from faststream_concurrent_kafka.adoption import Adoptable, Earlier
from faststream_concurrent_kafka.commit_task import Consumer, KafkaCommitTask
from faststream_concurrent_kafka.offsets import PartitionLedger


FIRST_BACKOFF_SEC = 0.1
LONGEST_BACKOFF_SEC = 5.0


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


class ConsumerOffsets:
    """The ledgers of one consumer, and the state of committing for it."""

    __slots__ = (
        "again",
        "backoff_sec",
        "consumer",
        "held",
        "last_error",
        "ledgers",
        "left",
        "on_ack",
        "rejoins",
        "request",
        "retry",
        "trying_since",
    )

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.ledgers: dict[tuple[str, int], PartitionLedger[KafkaCommitTask]] = {}
        # What may come back of partitions that were revoked.
        self.left: dict[tuple[str, int], Adoptable[KafkaCommitTask]] = {}
        self.on_ack: Callable[[tuple[str, int], PartitionLedger[KafkaCommitTask]], None] | None = None
        # Whether a rebalance listener will `release` commits again: not so with manually assigned partitions.
        self.rejoins = False
        self.held = False
        self.request: asyncio.Task[None] | None = None
        self.again = False
        self.retry: asyncio.TimerHandle | None = None
        self.backoff_sec = FIRST_BACKOFF_SEC
        # When the first attempt since the last success was made.
        self.trying_since: float | None = None
        self.last_error = ""

    def dirty(self) -> dict[TopicPartition, int]:
        """Return what may and should be committed. Unassigned partitions would fail the whole request."""
        assigned = self.consumer.assignment()
        return {
            TopicPartition(*key): ledger.frontier
            for key, ledger in self.ledgers.items()
            if ledger.is_dirty and key in assigned
        }

    def admit(self, task: KafkaCommitTask) -> Earlier[KafkaCommitTask] | None:
        """Admit a record; return what is known of it if it was delivered before its partition was revoked."""
        key = task.topic_partition
        ledger = self.ledgers.get(key)
        if ledger is None or task.offset < ledger.admitted:
            # A new assignment, or the position went back (a seek, a reset, a truncated topic): what was finished in
            # the old epoch says nothing about these records.
            if ledger is not None:
                ledger.closed = True
                self.left.pop(key, None)
            ledger = PartitionLedger[KafkaCommitTask](task.offset)
            self.ledgers[TopicPartition(*key)] = ledger
        task.ledger = ledger
        ledger.admit(task.offset, task, task.identity)
        left = self.left.get(key)
        if left is None:
            return None
        earlier = left.claim(task.offset, task.identity)
        if not left:
            del self.left[key]
        return earlier

    def heed_seeks(self) -> None:
        """Have the consumer's seeks forget what was handled: whoever moves the position wants the records."""
        for name in ("seek", "seek_to_beginning", "seek_to_end", "seek_to_committed"):
            if (seek := getattr(self.consumer, name, None)) is not None:
                setattr(self.consumer, name, functools.partial(self._seek, seek))

    def _seek(self, seek: Callable[..., Any], *places: Any, **options: Any) -> Any:
        for key in places or tuple(self.left):
            if isinstance(key, tuple):
                self.left.pop(key, None)
        return seek(*places, **options)

    def succeeded(self) -> None:
        """Forget earlier failures."""
        self.trying_since = None
        self.last_error = ""
        self.backoff_sec = FIRST_BACKOFF_SEC

    def cancel_retry(self) -> None:
        """Forget the attempt that is due."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def end_epoch(self) -> None:
        """End the ledgers: what still runs of their records commits nothing, unless it comes back."""
        for key, ledger in self.ledgers.items():
            ledger.closed = True
            left = self.left.setdefault(key, Adoptable())
            left.absorb(ledger)
            if not left:
                del self.left[key]
        self.ledgers.clear()

    def next_backoff_sec(self) -> float:
        """Return how long to wait before the next attempt, longer each time."""
        backoff_sec = self.backoff_sec
        self.backoff_sec = min(backoff_sec * 2, LONGEST_BACKOFF_SEC)
        return backoff_sec
