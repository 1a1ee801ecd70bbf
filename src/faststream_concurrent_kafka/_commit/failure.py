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
    """Classify an exception of a commit; one that is not listed is a fault of this library, and fatal."""
    if isinstance(error, _LOST_OWNERSHIP):
        return CommitFailure.LOST_OWNERSHIP
    # A refused authorisation is retriable: an operator can grant it without a restart of this process. CancelledError:
    # aiokafka cancels its own tasks when a consumer closes under a commit.
    if isinstance(error, KafkaError | OSError | TimeoutError | asyncio.CancelledError):
        return CommitFailure.RETRIABLE
    return CommitFailure.FATAL
