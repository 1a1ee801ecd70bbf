"""One worker of the group: `python -m chaos.worker JSON`."""

import asyncio
import dataclasses
import json
import logging
import sys
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Any, Self

from aiokafka import ConsumerRebalanceListener, TopicPartition
from faststream import AckPolicy, ContextRepo, FastStream
from faststream.kafka import KafkaBroker
from typing_extensions import override

from chaos.ledger import Writer
from chaos.load import Load
from chaos.plan import SESSION_TIMEOUT_SEC
from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What the run asks of a worker, or of the producer."""

    bootstrap_servers: list[str]
    topic: str
    group: str
    ledger: str
    load: Load
    seconds: float = 0.0
    """In which the producer is to produce all; workers go on until they are stopped."""

    def to_json(self) -> str:
        """Write it down."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it back."""
        read = json.loads(text)
        return cls(**read | {"load": Load(*read["load"])})


class Listener(ConsumerRebalanceListener):
    """Writes down what the library lets go of, and what is given."""

    def __init__(self, ledger: Writer) -> None:
        self._ledger = ledger

    @override
    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._ledger.revoked()

    @override
    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._ledger.assigned([each.partition for each in assigned])


class Warnings(logging.Handler):
    """Writes down what is logged as a warning or worse."""

    def __init__(self, ledger: Writer) -> None:
        super().__init__(logging.WARNING)
        self._ledger = ledger

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._ledger.says(f"{record.levelname} {record.name}: {record.getMessage()}")


def new_app(task: Task, ledger: Writer) -> FastStream:
    """Return the application: one subscriber, order by key, everything else as it comes."""
    load = task.load
    broker = KafkaBroker(task.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    subscriber: Any = broker.subscriber(
        task.topic,
        group_id=task.group,
        ack_policy=AckPolicy.MANUAL,
        auto_offset_reset="earliest",
        listener=Listener(ledger),
        session_timeout_ms=int(SESSION_TIMEOUT_SEC * 1_000),
        heartbeat_interval_ms=500,
        # Small, so that a fetch brings some of each partition: with large ones they are taken one after the other.
        max_partition_fetch_bytes=32_000,
    )

    async def handle(number: int) -> None:
        ledger.starts(number)
        await asyncio.sleep(load.seconds(number))  # the work
        ledger.ends(number)

    subscriber(handle)

    @asynccontextmanager
    async def lifespan(context: ContextRepo) -> AsyncGenerator[None]:
        await initialize_concurrent_processing(context, ordering="key")
        try:
            yield
        finally:
            await stop_concurrent_processing(context)

    return FastStream(broker, lifespan=lifespan, logger=None)


def main(text: str) -> None:
    """Run the application until it is told to stop."""
    task = Task.from_json(text)
    ledger = Writer(task.ledger)
    logging.getLogger().addHandler(Warnings(ledger))
    asyncio.run(new_app(task, ledger).run())
    ledger.leaves()


if __name__ == "__main__":
    main(sys.argv[1])
