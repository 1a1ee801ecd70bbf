"""Helpers of the rebalance tests: a member that joins and leaves, and a handler whose records end on demand."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from faststream_concurrent_kafka import KafkaConcurrentHandler, get_kafka_handler_report
from testkit.brokers import wait_until
from tests.integration.helpers import PATIENCE_SEC, Rebalances, consuming, manual
from tests.integration.test_rebalance import QUICK


# Partitions are assigned in the order of the member ids, which begin with the client ids: with one partition, a member
# with the first client id takes it away, and one with the last leaves it.
TAKES_IT = "0"
LEAVES_IT = "zzz"


class Held:
    """A handler that holds some records until they are released, and notes which records started and ended."""

    def __init__(self, *held):
        self.held = {number: asyncio.Event() for number in held}
        self.started = []
        self.ended = []
        self.rebalances = Rebalances()
        self.subscriber: Any = None

    def subscribe(self, broker, topic, **more):
        """Subscribe the handler, with a listener that records the rebalances."""
        keywords: dict[str, Any] = {"listener": self.rebalances} | QUICK | more
        self.subscriber = broker.subscriber(topic, **manual(topic, **keywords))
        self.subscriber(self.handle)
        return self

    def subscribe_batches(self, broker, topic, **more):
        """Subscribe to batches of up to four records."""
        keywords: dict[str, Any] = {"batch": True, "max_records": 4, "listener": self.rebalances} | QUICK | more
        consuming(broker, topic, **keywords)(self.handle_batch)
        return self

    async def handle(self, number: int):
        """Handle a record."""
        self.started.append(number)
        if number in self.held:
            await self.held[number].wait()
        self.ended.append(number)

    async def handle_batch(self, numbers: list[int]):
        """Handle a batch; it is held when its first record is."""
        self.started += numbers
        if numbers[0] in self.held:
            await self.held[numbers[0]].wait()
        self.ended += numbers

    def let_go(self):
        """Release all records that are held."""
        for event in self.held.values():
            event.set()

    @property
    def runs(self):
        """How often each record was started."""
        return Counter(self.started)

    async def until_ended(self, *numbers):
        """Wait until these have been handled."""
        await wait_until(lambda: set(numbers) <= set(self.ended), PATIENCE_SEC, lambda: f"{numbers}: {self.ended}")

    async def until_started(self, *numbers):
        """Wait until the handling of these has begun."""
        await wait_until(lambda: set(numbers) <= set(self.started), PATIENCE_SEC, lambda: f"{numbers}: {self.started}")


class HasAssigned(Protocol):
    """A listener that records its calls."""

    assigned: list[list[TopicPartition]]


async def until_rebalances(rebalances: HasAssigned, count):
    """Wait until partitions have been assigned so many times."""
    await wait_until(
        lambda: len(rebalances.assigned) >= count, PATIENCE_SEC, lambda: f"{count} rebalances: {rebalances.assigned}"
    )


@asynccontextmanager
async def visit(cluster, topic, rebalances: HasAssigned | None, client_id):
    """Join the group, and leave it again; returns both times when the others have their partitions, if `rebalances`."""
    before = len(rebalances.assigned) if rebalances is not None else 0
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=cluster.bootstrap_servers,
        group_id=f"{topic}-group",
        client_id=client_id,
        enable_auto_commit=False,
        **QUICK,
    )
    await consumer.start()
    try:
        if rebalances is not None:
            await until_rebalances(rebalances, before + 1)
            assert bool(rebalances.assigned[-1]) == (client_id == LEAVES_IT)
        yield consumer
    finally:
        await consumer.stop()
        if rebalances is not None:
            await until_rebalances(rebalances, before + 2)


async def until_delivered(app, uncommitted, unfinished):
    """Wait until so many records are admitted and not committed, in all partitions, and so many of them unfinished."""

    def found():
        partitions = get_kafka_handler_report(app.context).partitions
        return sum(each.uncommitted for each in partitions), sum(each.unfinished for each in partitions)

    await wait_until(lambda: found() == (uncommitted, unfinished), PATIENCE_SEC, lambda: f"not delivered: {found()}")


def may_come_back(held):
    """Count the records that `Redeliverable` holds from before a rebalance."""
    handler = KafkaConcurrentHandler.running()
    assert handler is not None
    partitions = handler.committer.watch(held.subscriber.consumer).partitions.values()
    return [len(each.redeliverable) for each in partitions if each.redeliverable is not None]


async def delete_topic(cluster, topic):
    """Delete a topic with its records and committed offsets."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()


async def add_partitions(cluster, topic, total):
    """Give a topic more partitions."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(total)})
    finally:
        await admin.close()


@asynccontextmanager
async def watching_offsets(cluster, topic):
    """Poll the committed offset of partition 0; yields the list of its values."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    found, partition = [], TopicPartition(topic, 0)

    async def watch():
        while True:
            offsets = await admin.list_consumer_group_offsets(f"{topic}-group", partitions=[partition])
            found.append(max(0, offsets[partition].offset))
            await asyncio.sleep(0.005)  # the polling interval

    await admin.start()
    watch_task = asyncio.create_task(watch())
    try:
        yield found
    finally:
        watch_task.cancel()
        await asyncio.wait({watch_task})
        await admin.close()
        if not watch_task.cancelled():
            watch_task.result()
