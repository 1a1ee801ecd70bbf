"""A real FastStream broker with fake consumers: subscribers are attached as in production, in virtual time."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import TopicPartition
from fast_depends import Provider
from faststream.kafka import KafkaBroker
from typing_extensions import override

from faststream_concurrent_kafka import (
    KafkaConcurrentHandler,
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer, run_virtual
from tests.integration.helpers import manual


TOPIC = "orders"
GROUP = f"{TOPIC}-group"
T0 = TopicPartition(TOPIC, 0)


class Consumer(FakeKafkaConsumer):
    """A fake consumer with the constructor that FastStream calls."""

    def __init__(self, kafka: FakeKafka, **options: Any) -> None:
        super().__init__(kafka=kafka, group_id=options["group_id"], auto_offset_reset=options["auto_offset_reset"])

    @override
    def subscribe(self, topics, listener=None, pattern=None):
        """Subscribe as aiokafka does."""
        super().subscribe(topics, listener)


class Attached:
    """One process: a broker, its subscribers, and concurrent processing."""

    def __init__(self, partitions: int = 1, **topics: int) -> None:
        self.kafka = FakeKafka({TOPIC: partitions, **topics})
        self.consumers: list[Consumer] = []
        self.others: list[FakeKafkaConsumer] = []
        self._values = itertools.count()
        self._settings: dict[str, Any]
        self.broker: KafkaBroker
        self.handler: KafkaConcurrentHandler

    def _make_consumer(self, **options: Any) -> Consumer:
        self.consumers.append(Consumer(self.kafka, **options))
        return self.consumers[-1]

    async def connect(self, **settings: Any) -> None:
        """Make a broker and initialise concurrent processing; subscribers are declared and started later."""
        self.broker = KafkaBroker(
            ["none"],
            consumer_only=True,
            middlewares=[KafkaConcurrentProcessingMiddleware],
            logger=None,
            provider=Provider(),
        )
        await self.broker.connect()
        config: Any = self.broker.config.broker_config
        config.builder = self._make_consumer
        self._settings = {"commit_batch_timeout_sec": 0.1} | settings
        self.handler = await initialize_concurrent_processing(self.broker.context, broker=self.broker, **self._settings)

    async def subscriber(
        self, handle: Callable[..., Awaitable[Any]], topic: str = TOPIC, *, start: bool = True, **options: Any
    ) -> Any:
        """Declare and start a subscriber."""
        made = self.broker.subscriber(topic, **manual(topic, **options))
        made(handle)
        await self.reinitialize()
        if start:
            await made.start()
        return made

    async def reinitialize(self) -> None:
        """Initialise again with the same settings, which finds subscribers that were declared since."""
        await initialize_concurrent_processing(self.broker.context, broker=self.broker, **self._settings)

    async def other_member(self) -> FakeKafkaConsumer:
        """Let another member join the group, which handles no record."""
        other = FakeKafkaConsumer(TOPIC, kafka=self.kafka, group_id=GROUP)
        await other.start()
        self.others.append(other)
        return other

    def send(self, count: int, topic: str = TOPIC, partition: int = 0) -> None:
        """Append records, with ascending numbers as values."""
        for _ in range(count):
            self.kafka.append(topic, partition, str(next(self._values)).encode())

    def committed(self, topic: str = TOPIC, partition: int = 0) -> int | None:
        """Return the committed offsets."""
        entry = self.kafka.groups[f"{topic}-group"].committed.get(TopicPartition(topic, partition))
        return None if entry is None else entry.offset

    def members(self, topic: str = TOPIC) -> int:
        """Return the number of members of the group."""
        return len(self.kafka.groups[f"{topic}-group"].members)

    async def until(self, condition: Callable[[], Any], within_sec: float = 60.0) -> None:
        """Wait until a condition holds."""
        deadline = self.handler.now() + within_sec
        while not condition():
            assert self.handler.now() < deadline, "it never came"
            await asyncio.sleep(0.01)


def play(scenario: Callable[[Attached], Awaitable[None]], *, partitions: int = 1, topics=(), **settings: Any) -> None:
    """Run a scenario in virtual time, and stop everything."""

    async def main() -> None:
        world = Attached(partitions, **dict.fromkeys(topics, 1))
        await world.connect(**settings)
        try:
            await scenario(world)
        finally:
            for other in world.others:
                await other.stop()
            await world.broker.stop()
            await stop_concurrent_processing(world.broker.context)

    run_virtual(main())
