"""`Record`, a record in flight; its source; and `outcome_of`, what a finished pass means for it."""

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
from faststream_concurrent_kafka._record.slots import Share, Slot
from faststream_concurrent_kafka._record.state import BACKOFF, CANCELLED, ENDED, FAILED, QUEUED, READY, RUNNING, State
from faststream_concurrent_kafka._runtime.stack import suspended_at
from faststream_concurrent_kafka.settings import Settings


class Stop(Protocol):
    """What this layer needs of `SharedStop`, a stop of a source that its callers share."""

    @property
    def callers(self) -> Iterable[asyncio.Task[Any]]:
        """The tasks that await the stop."""
        ...

    def has_let_go(self, record: "Record") -> bool:
        """Whether the stop has let a call of this record return: what the record uses next may be closed by now."""
        ...


class RecordSource(Protocol):
    """What this layer needs of an attached subscriber, from which records come."""

    settings: Settings
    """The handler's settings, with the overrides of this subscriber."""

    commits: bool
    """Whether the library commits for it."""

    in_flight: int
    """The number of its records in flight; the handler counts them."""

    context: contextvars.Context | None
    """The context that the tasks of its records get a copy of; None = the one that the handler was started in."""

    share: Share
    """Its share of the slots."""

    @property
    def stopping(self) -> Stop | None:
        """Its stop, from the beginning of that until the source is started again; else None."""
        ...

    @property
    def name(self) -> str:
        """Its name in logs and reports."""
        ...

    def problems(self) -> list[str]:
        """Say why its records may not arrive or not be finished; empty when there is no problem."""
        ...

    def deaths(self) -> list[str]:
        """Name the tasks that have ended and that only a restart of the process brings back; from any thread."""
        ...

    def sample(self) -> None:
        """Note how far its consumer has come; called about once a second."""
        ...

    @property
    def process(self) -> Callable[[Any], Coroutine[Any, Any, Any]]:
        """Makes one whole FastStream pass over a record."""
        ...

    async def stop(self, *, to_the_end: bool = False) -> bool:
        """Drain, commit and stop it; False if the call came from inside a record, and returned before the end."""
        ...

    def detach(self) -> None:
        """Restore the methods that were replaced."""
        ...

    def stop_application(self) -> None:
        """Ask the application, if there is one, to end."""
        ...

    def has_logged(self, error: BaseException) -> bool:
        """Whether FastStream has logged the failure of a pass, with its traceback."""
        ...

    def halt(self, record: "Record", reason: str, error: BaseException | None = None) -> None:
        """Fetch nothing more of the record's partitions, and log why; with the traceback of an error not logged yet."""
        ...

    async def dead_letter(self, record: "Record", error: BaseException) -> None:
        """Publish the record to the dead letter topic of its policy; return when the broker has acknowledged it."""
        ...


class TimeLimit(Protocol):
    """What this layer needs of the time limit of a running handler."""

    task: asyncio.Task[Any]
    """The task that is cancelled at the limit."""

    def pause(self) -> None:
        """Stop the clock of the limit."""
        ...

    def resume(self) -> None:
        """Start the clock of the limit again."""
        ...


class Outcome(enum.Enum):
    """What a pass means for its record, before and after the record's failure policy."""

    DONE = enum.auto()
    NOT_DONE = enum.auto()
    FAILED = enum.auto()
    NACKED = enum.auto()
    # For these two the failure policy decides.
    AGAIN = enum.auto()


UP_TO_POLICY = frozenset({Outcome.FAILED, Outcome.NACKED})

# An attribute of an Enum class is looked up slowly before Python 3.12, and this one is used for every record.
NACKED = AckStatus.NACKED

# For `Record.retry_until`.
NEVER, FOREVER = float("-inf"), float("inf")


class Record:
    """A record (or a batch) in flight."""

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
        "slot",
        "source",
        "state",
        "task",
        "waits",
        "wakes_at",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a task works on
        self,
        raw: Any,
        process: Callable[[Any], Coroutine[Any, Any, Any]],
        source: RecordSource | None = None,
        admissions: Sequence[Admission] = (),
        order_keys: Sequence[Hashable] = (),
        delivered: Any = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self.raw: Any = raw
        # The record as the broker delivered it; `raw` may be a copy without a header that FastStream can't read.
        self.delivered: Any = raw if delivered is None else delivered
        self.process: Callable[[Any], Coroutine[Any, Any, Any]] = process
        self.source: RecordSource | None = source
        self.admissions: Sequence[Admission] = admissions
        # The context that its task gets a copy of; None = the one that the handler was started in.
        self.context: contextvars.Context | None = context if source is None else source.context
        self.order_keys: Sequence[Hashable] = order_keys
        self.message: StreamMessage[Any] | None = None
        self.attempt: int = 0
        self.state: State = QUEUED
        # In state BACKOFF: when the next attempt begins.
        self.wakes_at: float
        # No further attempt begins at or after this time. FOREVER: the failure policy alone decides.
        self.retry_until: float = FOREVER
        # The time limit of the running handler, if it has one.
        self.limit: TimeLimit | None = None
        # For how many resources its pass waits that the handler does not control: a free thread, a turn of the event
        # loop.
        self.waits: int = 0
        # None in state QUEUED. `share` is set with the task.
        self.task: asyncio.Task[None] | None = None
        self.share: Share
        # Its slot or place in line, in state READY and until its pass has ended.
        self.slot: Slot | None = None
        # The task in which its pass runs, if other than its own.
        self.driver: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        """Begin an attempt."""
        self.attempt += 1
        self.state = RUNNING
        self.message = None

    def fail(self) -> None:
        """Note that an attempt has failed: the failure policy decides now."""
        self.state = FAILED

    def back_off(self, wakes_at: float) -> None:
        """Wait for the next attempt, which begins at `wakes_at`."""
        self.wakes_at = wakes_at
        self.state = BACKOFF

    def get_ready(self) -> None:
        """Take a slot, or a place in line for one."""
        self.share.take(self)
        self.state = READY

    def cancel(self) -> None:
        """Give the record up: it ends undone."""
        if self.state is not ENDED:
            self.state = CANCELLED

    def end_by(self, deadline: float) -> None:
        """Let no further attempt begin at or after the deadline, and none at all if the record is fenced."""
        self.retry_until = NEVER if self.is_fenced else deadline

    def readmit(self, earlier: Admission, admission: Admission) -> None:
        """Let the end of the running record count for its new delivery, in place of the revoked one."""
        admission.admitted_at = earlier.admitted_at
        self.admissions = [admission if each is earlier else each for each in self.admissions]
        self.retry_until = FOREVER

    def begin_to_wait(self) -> None:
        """Note that its pass waits for a thread or a turn: its time limit stands still."""
        self.waits += 1
        if self.limit is not None and self.waits == 1:
            self.limit.pause()

    def go_on(self) -> None:
        """Note that its pass has got that thread or turn."""
        self.waits -= 1
        if self.limit is not None and not self.waits:
            self.limit.resume()

    @property
    def pass_task(self) -> asyncio.Task[Any] | None:
        """The task in which its pass runs."""
        return self.driver or self.task

    @property
    def is_passed_over(self) -> bool:
        """Whether an earlier record of its partition was left undone, so that it will be delivered again anyway."""
        for admission in self.admissions:
            stopped_at = admission.ledger.stopped_at
            if stopped_at is not None and stopped_at < admission.offset:
                return True
        return False

    @property
    def is_cancelled_by_others(self) -> bool:
        """Whether code outside this library has cancelled its task."""
        if self.state is CANCELLED or self.is_ending:
            return False
        return self.task is not None and self.task.cancelling() > 0

    @property
    def is_ending(self) -> bool:
        """Whether a stop, a rebalance or a direct caller waits for its end, so that retries are limited."""
        return self.retry_until < FOREVER

    @property
    def is_idle(self) -> bool:
        """Whether no pass over the record is running."""
        return self.state not in (RUNNING, CANCELLED)

    @property
    def is_fenced(self) -> bool:
        """Whether none of its offsets can be committed any more."""
        return bool(self.admissions) and all(admission.is_fenced for admission in self.admissions)

    def whereabouts(self) -> str:
        """Describe what the record is doing, for logs and reports."""
        if self.state is BACKOFF:
            return f"waiting for attempt {self.attempt + 1}"
        if self.state is FAILED:
            return f"in its failure policy after attempt {self.attempt}"
        if not self.is_idle:
            return f"in attempt {self.attempt}, at {(self.task and suspended_at(self.task)) or 'no await'}"
        return self.state.value

    @override
    def __repr__(self) -> str:
        return ", ".join(map(repr, self.admissions)) or f"a record of {self.source.name if self.source else '?'}"


def records_in(raw: Any) -> Sequence[Any]:
    """Return the raw records of a batch, or the one; TestKafkaBroker's batches are lists."""
    return raw if isinstance(raw, tuple | list) else (raw,)


# The first two stop the subscriber or the application (which after a restart would stop at the same record again); by
# the other three a handler says that the record is done.
_MEANS_DONE = (StopConsume, SystemExit, AckMessage, RejectMessage, SkipMessage)

# The key of the attempt's number (from 1) in FastStream's context.
ATTEMPT_KEY = "kafka_attempt"

# The record whose task the running code belongs to. Tasks that a handler starts inherit it.
current_record: contextvars.ContextVar[Record | None] = contextvars.ContextVar("current_record", default=None)


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is a KeyboardInterrupt, or contains one: it is meant for the process, not for the record."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def outcome_of(record: Record, error: BaseException | None) -> Outcome:
    """Decide what a finished pass means for its record; any exception not named here is a failure."""
    if record.state is not RUNNING:
        # It was given up. A pass that ends in any other way after its cancellation does not prove that the work was
        # done.
        return Outcome.NOT_DONE
    if isinstance(error, asyncio.CancelledError) and record.task is not None and record.task.cancelling():
        # The record's own task was cancelled. A CancelledError that the handler raises, or that comes from a task which
        # it awaits, is a failure like any other.
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
