"""A record in flight, where it comes from, and what a pass over it means."""

import asyncio
import contextvars
import enum
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from typing import Any, Protocol

from faststream.exceptions import AckMessage, NackMessage, RejectMessage, SkipMessage, StopConsume
from faststream.kafka.message import KafkaAckableMessage
from faststream.message import AckStatus, StreamMessage
from typing_extensions import override

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._record.slots import Share
from faststream_concurrent_kafka._record.state import BACKOFF, CANCELLED, ENDED, FAILED, QUEUED, READY, RUNNING, State
from faststream_concurrent_kafka._runtime.stack import suspended_at
from faststream_concurrent_kafka.settings import Settings


class Stop(Protocol):
    """A stop of a source that its callers share, as far as this layer has to know it."""

    @property
    def callers(self) -> Iterable[asyncio.Task[Any]]:
        """Those who wait for it."""
        ...

    def has_let_go(self, record: "Record") -> bool:
        """Whether a record has waited for it: what that needs to go on with may be closed by now."""
        ...


class RecordSource(Protocol):
    """Where records come from: an attached subscriber, as far as this layer has to know it."""

    settings: Settings
    """The handler's, with what this subscriber has of its own."""

    commits: bool
    """Whether the library commits for it."""

    in_flight: int
    """How many of its records are in flight; counted by the handler."""

    context: contextvars.Context | None
    """What the tasks of its records get a copy of; None = what the handler was started with."""

    share: Share
    """Its part in the slots."""

    @property
    def stopping(self) -> Stop | None:
        """Its stop, from its begin until the source starts again."""
        ...

    @property
    def name(self) -> str:
        """How logs and reports call it."""
        ...

    def problems(self) -> list[str]:
        """Say why records may not be arriving; empty when all is well."""
        ...

    def deaths(self) -> list[str]:
        """Name what has ended, and begins again only with the process; asked from any thread."""
        ...

    def look(self) -> None:
        """Note how far its consumer has come; called about once a second."""
        ...

    @property
    def process(self) -> Callable[[Any], Coroutine[Any, Any, Any]]:
        """What makes one whole FastStream pass over a record."""
        ...

    async def stop(self, *, to_the_end: bool = False) -> bool:
        """Drain, commit and stop it; False if a call from inside of a record was let go before the end."""
        ...

    def detach(self) -> None:
        """Leave it as it was found."""
        ...

    def stop_application(self) -> None:
        """Ask the application, if there is one, to end."""
        ...

    def has_logged(self, error: BaseException) -> bool:
        """Whether FastStream has logged the failure of a pass, with its traceback."""
        ...

    def halt(self, record: "Record", reason: str, error: BaseException | None = None) -> None:
        """Take nothing more from the record's partitions, and log why, with an error that nobody has logged."""
        ...

    async def dead_letter(self, record: "Record", error: BaseException) -> None:
        """Publish the record to the dead letter topic of its settings; returns when that is acknowledged."""
        ...


class TimeLimit(Protocol):
    """The time limit of a handler that runs, as far as this layer has to know it."""

    task: asyncio.Task[Any]
    """The one that is cancelled at the limit."""

    def pause(self) -> None:
        """Let no time pass."""
        ...

    def resume(self) -> None:
        """Let time pass again."""
        ...


class Outcome(enum.Enum):
    """What one pass means for its record, and what its policy makes of that."""

    DONE = enum.auto()
    NOT_DONE = enum.auto()
    FAILED = enum.auto()
    NACKED = enum.auto()
    # Of these two the policy may make another pass.
    AGAIN = enum.auto()


UP_TO_POLICY = frozenset({Outcome.FAILED, Outcome.NACKED})

# An attribute of an Enum class is looked up slowly before Python 3.12, and this one is used for every record.
NACKED = AckStatus.NACKED

# For `Record.retry_until`.
NEVER, FOREVER = float("-inf"), float("inf")


class Record:
    """A record (or a batch) in flight: what its task works on."""

    __slots__ = (
        "__weakref__",
        "admissions",
        "attempt",
        "context",
        "delivered",
        "driver",
        "limit",
        "message",
        "order_keys",
        "process",
        "raw",
        "retry_until",
        "share",
        "source",
        "state",
        "task",
        "waits",
        "wakes_at",
    )

    def __init__(  # noqa: PLR0913 - what a task works on
        self,
        raw: Any,
        process: Callable[[Any], Coroutine[Any, Any, Any]],
        *,
        source: RecordSource | None = None,
        admissions: Sequence[Admission] = (),
        order_keys: Sequence[Hashable] = (),
        delivered: Any = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self.raw: Any = raw
        # As the broker delivered it, where FastStream could not have read it like that.
        self.delivered: Any = raw if delivered is None else delivered
        self.process: Callable[[Any], Coroutine[Any, Any, Any]] = process
        self.source: RecordSource | None = source
        self.admissions: Sequence[Admission] = admissions
        # What its task gets a copy of; None = what the handler was started with.
        self.context: contextvars.Context | None = context if source is None else source.context
        self.order_keys: Sequence[Hashable] = order_keys
        self.message: StreamMessage[Any] | None = None
        self.attempt: int = 0
        self.state: State = QUEUED
        # When the next attempt begins, in state BACKOFF.
        self.wakes_at: float
        # After a failure another attempt may begin before that. FOREVER: the failure policy alone decides.
        self.retry_until: float = FOREVER
        # While its handler runs under a time limit.
        self.limit: TimeLimit | None = None
        # How many things keep its pass waiting that are none of its own: a free thread, a turn of the event loop.
        self.waits: int = 0
        # None in state QUEUED; with it comes its part in the slots.
        self.task: asyncio.Task[None] | None = None
        self.share: Share
        # The task that its pass runs in, where that is not its own.
        self.driver: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        """Note that an attempt begins."""
        self.attempt += 1
        self.state = RUNNING
        self.message = None

    def fail(self) -> None:
        """Note that an attempt has failed: its failure policy decides."""
        self.state = FAILED

    def back_off(self, wakes_at: float) -> None:
        """Note when its next attempt begins."""
        self.wakes_at = wakes_at
        self.state = BACKOFF

    def get_ready(self) -> None:
        """Note that it waits for a slot."""
        self.state = READY

    def cancel(self) -> None:
        """Give it up: it ends undone."""
        if self.state is not ENDED:
            self.state = CANCELLED

    def end_by(self, deadline: float) -> None:
        """Let no further attempt begin at the deadline or later; none at all where it could not be committed."""
        self.retry_until = NEVER if self.is_fenced else deadline

    def readmit(self, earlier: Admission, admission: Admission) -> None:
        """Let its end count for its new delivery, in place of an earlier one that was revoked while it ran."""
        admission.admitted_at = earlier.admitted_at
        self.admissions = [admission if each is earlier else each for each in self.admissions]
        self.retry_until = FOREVER

    def begin_to_wait(self) -> None:
        """Note that its pass is kept from going on: its time limit stands still."""
        self.waits += 1
        if self.limit is not None and self.waits == 1:
            self.limit.pause()

    def go_on(self) -> None:
        """Note that its pass goes on."""
        self.waits -= 1
        if self.limit is not None and not self.waits:
            self.limit.resume()

    @property
    def runner(self) -> asyncio.Task[Any] | None:
        """The task that its pass runs in."""
        return self.driver or self.task

    @property
    def is_passed_over(self) -> bool:
        """Whether an earlier record of its partition was left undone, so that it will be delivered again anyway."""
        for admission in self.admissions:  # noqa: SIM110 - once per record, and half the cost of any()
            if admission.is_passed_over:
                return True
        return False

    @property
    def is_cancelled_by_others(self) -> bool:
        """Whether other code than this library has cancelled its task."""
        if self.state is CANCELLED or self.is_ending:
            return False
        return self.task is not None and self.task.cancelling() > 0

    @property
    def is_ending(self) -> bool:
        """Whether a stop, a rebalance or a direct caller waits for its end."""
        return self.retry_until < FOREVER

    @property
    def is_idle(self) -> bool:
        """Whether no pass over it is going on."""
        return self.state not in (RUNNING, CANCELLED)

    @property
    def is_fenced(self) -> bool:
        """Whether nothing that it does can be committed any more."""
        return bool(self.admissions) and all(admission.is_fenced for admission in self.admissions)

    def whereabouts(self) -> str:
        """Say how far it has come, for people."""
        if self.state is BACKOFF:
            return f"waiting for attempt {self.attempt + 1}"
        if self.state is FAILED:
            return f"being dealt with after attempt {self.attempt}"
        if not self.is_idle:
            return f"in attempt {self.attempt}, at {(self.task and suspended_at(self.task)) or 'no await'}"
        return self.state.value

    @override
    def __repr__(self) -> str:
        return ", ".join(map(repr, self.admissions)) or f"a record of {self.source.name if self.source else '?'}"


def records_in(raw: Any) -> Sequence[Any]:
    """Return the raw records of a batch, or the one; TestKafkaBroker's batches are lists."""
    return raw if isinstance(raw, tuple | list) else (raw,)


# Two that stop something (or the restart would stop at the same record), and three that a handler raises to say so.
_MEANS_DONE = (StopConsume, SystemExit, AckMessage, RejectMessage, SkipMessage)

# The record whose task the running code belongs to. Tasks that a handler starts inherit it.
current_record: contextvars.ContextVar[Record | None] = contextvars.ContextVar("current_record", default=None)


def is_interrupt(error: BaseException) -> bool:
    """Whether somebody has pressed Ctrl-C while a record was handled: that says nothing about the record."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def outcome_of(record: Record, error: BaseException | None) -> Outcome:
    """Decide what a finished pass means for its record, whatever has ended it: any exception is a failure."""
    if record.state is not RUNNING:
        # It was given up. Whatever it made of its cancellation, nobody can tell that its work was done.
        return Outcome.NOT_DONE
    if isinstance(error, asyncio.CancelledError) and record.task is not None and record.task.cancelling():
        # A handler may raise it by itself, or leak it from a task that it awaited: a failure like any other.
        # Only a cancellation of this task leaves its record undone.
        return Outcome.NOT_DONE
    # Under other ack policies FastStream acknowledges by itself, and nack() moves the consumer back.
    acknowledged = record.message.committed if isinstance(record.message, KafkaAckableMessage) else None
    if acknowledged is NACKED:
        return Outcome.NACKED if record.source is None or record.source.commits else Outcome.DONE
    if isinstance(error, NackMessage):
        return Outcome.NACKED
    if error is None or acknowledged is not None or isinstance(error, _MEANS_DONE):
        return Outcome.DONE
    return Outcome.FAILED
