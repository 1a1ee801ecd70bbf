"""What the integration tests share: subscribers, an application around them, and a record of what was handled."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar, cast

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from faststream import FastStream
from faststream.middlewares import AckPolicy
from typing_extensions import override

from faststream_concurrent_kafka import initialize_concurrent_processing, stop_concurrent_processing
from testkit.brokers import Record, committed, produce, wait_until


F = TypeVar("F")
PATIENCE_SEC = 20
both_loops = {"loop_factories": ["asyncio", "uvloop"]}


class Decorator(Protocol):
    """The decorators of FastStream, typed so that a type checker understands them."""

    def __call__(self, handler: F, /) -> F:
        """Return the handler, as far as its type goes."""
        ...


def manual(topic: str, group: str | None = None, **more: Any) -> dict[str, Any]:
    """Return keywords of a subscriber with its own group, for which the library commits."""
    policy = {"ack_policy": AckPolicy.MANUAL, "auto_offset_reset": "earliest"}
    return {"group_id": group or f"{topic}-group"} | policy | more


def consuming(broker, *topics: str, group: str | None = None, **more: Any) -> Decorator:
    """Subscribe a handler with the keywords of `manual`."""
    return cast("Decorator", broker.subscriber(*topics, **manual(topics[0], group, **more)))


def publishing(broker, topic: str) -> Decorator:
    """Publish the results of a handler."""
    return cast("Decorator", broker.publisher(topic))


class Rebalances(ConsumerRebalanceListener):
    """A user's rebalance listener, which records its calls."""

    def __init__(self):
        self.revoked = []
        self.assigned = []

    @override
    def on_partitions_revoked(self, revoked):
        # The first join revokes nothing.
        self.revoked += [sorted(revoked)] if revoked else []

    @override
    def on_partitions_assigned(self, assigned):
        self.assigned.append(sorted(assigned))


class AsyncRebalances(Rebalances):
    """The same with coroutines."""

    @override
    async def on_partitions_revoked(self, revoked):
        await asyncio.sleep(0)
        super().on_partitions_revoked(revoked)

    @override
    async def on_partitions_assigned(self, assigned):
        await asyncio.sleep(0)
        super().on_partitions_assigned(assigned)


class Seen:
    """Records the handled values, how many were handled at once, and which are being handled now."""

    def __init__(self):
        self.values = []
        self.running = set()
        self.peak = 0

    @contextmanager
    def handling(self, value):
        """Note the beginning and the end of the work on one record."""
        self.running.add(value)
        self.peak = max(self.peak, len(self.running))
        try:
            yield
        finally:
            self.running.discard(value)
            self.values.append(value)

    @property
    def counts(self):
        """How often each value was handled."""
        return Counter(self.values)

    async def until(self, count, timeout_sec=PATIENCE_SEC):
        """Wait until so many records were handled."""
        await wait_until(lambda: len(self.values) >= count, timeout_sec, lambda: f"{count} handled: {self.values}")

    async def until_running(self, count, timeout_sec=PATIENCE_SEC):
        """Wait until so many records are being handled."""
        await wait_until(lambda: len(self.running) >= count, timeout_sec, lambda: f"{count} running: {self.running}")


class Gated(Seen):
    """A handler that waits until the gate is opened; records below `free` do not wait."""

    def __init__(self, free=0):
        super().__init__()
        self.free = free
        self.gate = asyncio.Event()

    def subscribe(self, broker, *topics, **more):
        """Subscribe the handler."""
        consuming(broker, *topics, **more)(self.handle)
        return self

    async def handle(self, number: int):
        """Handle a record: wait for the gate."""
        with self.handling(number):
            if number >= self.free:
                await self.gate.wait()

    async def together(self, count):
        """Wait until so many records wait at the gate, and open it."""
        await self.until_running(count)
        self.gate.set()
        await self.until(self.free + count)


class Cluster:
    """The broker of a test, with values in place of bytes."""

    def __init__(self, bootstrap_servers):
        self.bootstrap_servers = bootstrap_servers

    async def send(self, topic, values, partition=None, headers=None):
        """Produce values as text, and bytes unchanged."""
        bodies = (value if isinstance(value, bytes) else str(value).encode() for value in values)
        return await produce(self.bootstrap_servers, topic, [Record(body, None, headers, partition) for body in bodies])

    async def committed(self, topic, group=None):
        """Return the committed offsets of the topic's partitions."""
        return await committed(self.bootstrap_servers, group or f"{topic}-group", topic)

    async def until(self, condition, timeout_sec=PATIENCE_SEC):
        """Wait until a condition, which may be a coroutine function, holds."""
        await wait_until(condition, timeout_sec, "the condition holds")

    async def delete_records(self, topic, partition, before):
        """Delete the records below an offset, as retention does."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=before)})
        finally:
            await admin.close()

    async def until_committed(self, topic, expected, group=None, timeout_sec=PATIENCE_SEC):
        """Wait until exactly these offsets are committed."""
        found = None

        async def reached():
            nonlocal found
            found = await self.committed(topic, group)
            return found == expected

        await wait_until(reached, timeout_sec, lambda: f"committed {expected}, but {found}")


@asynccontextmanager
async def serving(*brokers, **settings):
    """Run an application with these brokers, and stop it as FastStream does: the broker first, then the library."""
    app = FastStream(*brokers, logger=None)
    await initialize_concurrent_processing(app.context, **settings)
    try:
        await app.start()
        yield app
    finally:
        await app.stop()
        await stop_concurrent_processing(app.context)


@asynccontextmanager
async def serving_plainly(broker, *, name_it=False, **settings):
    """Run a broker without an application; unless it is named, its subscribers are found at their first record."""
    await initialize_concurrent_processing(broker.context, broker=broker if name_it else None, **settings)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.stop()
        await stop_concurrent_processing(broker.context)


def warnings_of(caplog):
    """Return the library's log lines."""
    return [each.getMessage() for each in caplog.records if each.name == "faststream_concurrent_kafka"]
