"""A record in flight, where it comes from, and what a pass over it means."""

import asyncio
import contextvars
import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from faststream.exceptions import NackMessage
from faststream.message import AckStatus, StreamMessage
from typing_extensions import override

from faststream_concurrent_kafka.batch_committer import KafkaCommitTask


class RecordSource(Protocol):
    """Where records come from: an attached subscriber, as far as this floor has to know it."""

    @property
    def name(self) -> str:
        """How logs and reports call it."""
        ...

    def problems(self) -> list[str]:
        """Say why records may not be arriving; empty when all is well."""
        ...

    @property
    def process(self) -> Callable[[Any], Awaitable[Any]]:
        """What makes one whole FastStream pass over a record."""
        ...

    async def stop(self) -> None:
        """Drain, commit and stop it."""
        ...

    def detach(self) -> None:
        """Leave it as it was found."""
        ...

    def stop_application(self) -> None:
        """Ask the application, if there is one, to end."""
        ...


class Outcome(enum.Enum):
    """What became of one pass over a record."""

    DONE = enum.auto()
    AGAIN = enum.auto()
    NOT_DONE = enum.auto()


class Record:
    """A record (or a batch) in flight: what its task works on."""

    __slots__ = (
        "commits",
        "is_cancelled",
        "is_last_pass",
        "is_running",
        "is_sleeping",
        "message",
        "process",
        "raw",
        "source",
        "task",
    )

    def __init__(
        self,
        raw: Any,
        process: Callable[[Any], Awaitable[Any]],
        *,
        source: RecordSource | None = None,
        commits: Sequence[KafkaCommitTask] = (),
    ) -> None:
        self.raw = raw
        self.process = process
        self.source = source
        self.commits = commits
        self.message: StreamMessage[Any] | None = None
        self.is_running = False
        self.is_sleeping = False
        self.is_last_pass = False
        self.is_cancelled = False
        self.task: asyncio.Task[None]

    def begin(self) -> None:
        """Note that a pass begins."""
        self.is_running = True
        self.message = None

    @override
    def __repr__(self) -> str:
        return ", ".join(map(repr, self.commits)) or f"a record of {self.source.name if self.source else '?'}"


# The record whose task the running code belongs to. Tasks that a handler starts inherit it.
current_record: contextvars.ContextVar[Record | None] = contextvars.ContextVar("current_record", default=None)


def outcome_of(record: Record, error: BaseException | None) -> Outcome:
    """Decide what a finished pass means for its record; an error was logged by FastStream already."""
    if record.is_cancelled:
        # The stop has given it up. Whatever it made of its cancellation, nobody can tell that its work was done.
        return Outcome.NOT_DONE
    if isinstance(error, NackMessage) or (record.message is not None and record.message.committed is AckStatus.NACKED):
        return Outcome.AGAIN
    return Outcome.DONE
