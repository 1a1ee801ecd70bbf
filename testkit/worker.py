"""One worker of a group, which handles a load and keeps a journal: `python -m testkit.worker JSON`."""

import asyncio
import dataclasses
import json
import logging
import sys
from collections.abc import AsyncGenerator, Collection, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

from aiokafka import ConsumerRebalanceListener, TopicPartition
from faststream import AckPolicy, ContextRepo, FastStream
from faststream.exceptions import NackMessage
from faststream.kafka import KafkaBroker
from typing_extensions import override

from faststream_concurrent_kafka import (
    Attempt,
    DeadLetter,
    FailurePolicy,
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from testkit.journal import CANCELLED, Place, Writer
from testkit.load import HANDLER_TIMEOUT_SEC, MAX_ATTEMPTS, Load
from testkit.member import Member


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker has to do."""

    bootstrap_servers: list[str]
    topic: str
    group: str
    journal: str
    load: Load
    dead_topic: str | None = None
    """The dead letter topic; None = failures are not expected."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of `initialize_concurrent_processing`, without the ordering, which is the load's."""
    subscriber: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keywords of the subscriber."""

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it back."""
        read = json.loads(text)
        return cls(**read | {"load": Load(**read["load"])})

    def start(self) -> Member:
        """Start a process for it."""
        return Member(("testkit.worker", self.to_json()), Path(self.journal), {})


class Actor:
    """The handler: it does what the load says, and writes its beginning and end to the journal."""

    def __init__(self, load: Load, journal: Writer, broker: KafkaBroker) -> None:
        self._load = load
        self._journal = journal
        self._broker = broker

    async def handle(self, number: int) -> None:
        """Handle a record that never fails, without the parameter of the other method, which takes time."""
        await self.handle_attempt(number, 1)

    async def handle_attempt(self, number: int, attempt: Attempt) -> None:
        """Handle a record."""
        raw = self._broker.context.get_local("message").raw_message
        run = self._journal.starts(Place(raw.topic, raw.partition, raw.offset), number, attempt)
        outcome = "beyond its load"
        try:
            does, after_sec = self._load.steps(number)[attempt - 1]
            outcome = CANCELLED
            await asyncio.sleep(after_sec)  # the work
            outcome = does
            await _do(does)
        finally:
            self._journal.ends(run, outcome)


async def _do(does: str) -> None:
    match does:
        case "raise":
            raise RuntimeError(does)
        case "time out":
            raise TimeoutError(does)
        case "refuse":
            raise PermissionError(does)
        case "nack":
            raise NackMessage(delay=0.02)
        case "nack later":
            raise NackMessage(delay=0.3)
        case "hang":
            await asyncio.Event().wait()
        case "swallow":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return


class Listener(ConsumerRebalanceListener):
    """A rebalance listener that writes revocations and assignments to the journal."""

    def __init__(self, journal: Writer) -> None:
        self._journal = journal

    @override
    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._journal.revoked()

    @override
    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._journal.assigned([each.partition for each in assigned])


class Warnings(logging.Handler):
    """A log handler that writes warnings and errors to the journal."""

    def __init__(self, journal: Writer) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._journal.says(f"{record.levelname} {record.name}: {record.getMessage()}")


@contextmanager
def warnings_kept(journal: Writer) -> Generator[None]:
    """Write the warnings of all loggers to a journal."""
    keeper = Warnings(journal)
    logging.getLogger().addHandler(keeper)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(keeper)


def new_app(task: Task, journal: Writer) -> FastStream:
    """Return an application with one subscriber, which handles the load."""
    load = task.load
    broker = KafkaBroker(task.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    keywords: dict[str, Any] = {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 200} | task.subscriber
    subscriber: Any = broker.subscriber(
        task.topic,
        group_id=task.group,
        ack_policy=AckPolicy.MANUAL,
        auto_offset_reset="earliest",
        listener=Listener(journal),
        **keywords,
    )
    actor = Actor(load, journal, broker)
    subscriber(actor.handle_attempt if load.storms else actor.handle)
    settings: dict[str, Any] = {"ordering": load.ordering} | task.settings
    if task.dead_topic is not None:
        settings["handler_timeout_sec"] = HANDLER_TIMEOUT_SEC
        settings["on_failure"] = FailurePolicy(
            max_attempts=MAX_ATTEMPTS,
            first_backoff_sec=0.05,
            max_backoff_sec=0.08,
            never_retry=PermissionError,
            then=DeadLetter(task.dead_topic),
        )

    @asynccontextmanager
    async def lifespan(context: ContextRepo) -> AsyncGenerator[None]:
        await initialize_concurrent_processing(context, **settings)
        try:
            yield
        finally:
            await stop_concurrent_processing(context)

    return FastStream(broker, lifespan=lifespan, logger=None)


def _main(task: Task) -> None:
    journal = Writer(task.journal)
    with warnings_kept(journal):
        asyncio.run(new_app(task, journal).run())
    journal.leaves()


if __name__ == "__main__":
    _main(Task.from_json(sys.argv[1]))
