"""What a failed commit means."""

import asyncio
import enum

from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


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
    """Translate what a commit can raise; unless stated otherwise it is a fault of this library, and fatal."""
    if isinstance(error, _LOST_OWNERSHIP):
        return CommitFailure.LOST_OWNERSHIP
    # A refused authorisation is retried as well: an operator can grant it, and only a restart could do more.
    # CancelledError: aiokafka cancels its own tasks when a consumer closes under a commit.
    if isinstance(error, KafkaError | OSError | TimeoutError | asyncio.CancelledError):
        return CommitFailure.RETRIABLE
    return CommitFailure.FATAL
