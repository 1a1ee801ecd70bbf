"""The states of a record in flight, and every transition between them. Pure."""

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.Enum):
    """What a record in flight is doing."""

    QUEUED = "waiting for those before it in its order"
    """The record has no task yet."""
    READY = "waiting for a slot"
    RUNNING = "in an attempt"
    FAILED = "in its failure policy after an attempt"
    """The failure policy is carried out; the record holds no slot."""
    BACKOFF = "waiting for another attempt"
    CANCELLED = "cancelled"
    """A stop or a rebalance has given the record up: it ends undone, even if its handler goes on to its end."""
    ENDED = "ended"
    """The record is finished, or will be delivered again. Its task goes on if the handler swallows its cancellation."""


# An attribute of an Enum class is looked up slowly before Python 3.12, and these are used for every record.
QUEUED, READY, RUNNING, FAILED, BACKOFF, CANCELLED, ENDED = State

TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        # The records before it have ended; or it is cancelled or passed over.
        QUEUED: frozenset({READY, ENDED}),
        # It gets a slot; or it is passed over, or its task is cancelled by other code.
        READY: frozenset({RUNNING, CANCELLED, ENDED}),
        RUNNING: frozenset({FAILED, CANCELLED, ENDED}),
        FAILED: frozenset({BACKOFF, CANCELLED, ENDED}),
        BACKOFF: frozenset({READY, CANCELLED, ENDED}),
        CANCELLED: frozenset({ENDED}),
        ENDED: frozenset(),
    }
)
