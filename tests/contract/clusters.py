"""The same few actions on the fake and on a real broker."""

import asyncio
from functools import partial
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.protocol.group import LeaveGroupRequest
from typing_extensions import override

from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer
from testkit.brokers.client import Record, end_offsets, produce, wait_until


PATIENCE_SEC = 30


async def within(awaitable):
    async with asyncio.timeout(PATIENCE_SEC):
        return await awaitable


def at_once(coro):
    """Return the result of a coroutine that must not suspend."""
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value
    coro.close()
    raise AssertionError("it suspended")


async def turns(count=50):
    """Let all other ready tasks run, twice."""
    for _ in range(count):
        await asyncio.sleep(0)


async def take(consumer, count):
    return [await within(consumer.getone()) for _ in range(count)]


def values(records):
    return [record.value for record in records]


class Recorder(ConsumerRebalanceListener):
    """A listener that notes its calls, and calls a test's functions in them."""

    def __init__(self, during_revoke=None, during_assign=None):
        self.calls = []
        self.ended = asyncio.Queue()
        self.during_revoke = during_revoke
        self.during_assign = during_assign

    @override
    async def on_partitions_revoked(self, revoked):
        await self._note("revoked", revoked, self.during_revoke)

    @override
    async def on_partitions_assigned(self, assigned):
        await self._note("assigned", assigned, self.during_assign)

    async def _note(self, what, partitions, action):
        self.calls.append((what, set(partitions)))
        try:
            if action is not None:
                await action()
        finally:
            self.ended.put_nowait(what)

    async def until_assigned(self, times=1):
        for _ in range(times):
            while await within(self.ended.get()) != "assigned":
                pass


class Cluster:
    def __init__(self, make_consumer):
        self.group = f"group-{uuid4().hex[:8]}"
        self._make_consumer = make_consumer
        self._consumers = []

    async def consumer(self, topic=None, *, listener=None, started=True, **options):
        options = {"group_id": self.group, "auto_offset_reset": "earliest", "heartbeat_interval_ms": 200, **options}
        consumer = self._make_consumer(**options)
        self._consumers.append(consumer)
        if topic is not None:
            consumer.subscribe([topic], listener=listener)
        if started:
            await within(consumer.start())
        return consumer

    async def stop(self):
        for consumer in reversed(self._consumers):
            await within(consumer.stop())


class FakeCluster(Cluster):
    def __init__(self):
        super().__init__(lambda **options: FakeKafkaConsumer(kafka=self.kafka, **options))
        self.kafka = FakeKafka({})

    async def topic(self, partitions=1):
        self.kafka = FakeKafka({"topic": partitions})
        return "topic"

    async def produce(self, topic, partition, *payloads):
        for payload in payloads:
            self.kafka.append(topic, partition, payload)

    async def produce_with_gap_behind(self, topic, payload):
        record = self.kafka.append(topic, 0, payload)
        self.kafka.append(topic, 0, b"after the gap", offset=record.offset + 2)

    async def drop_from_group(self, consumer):
        consumer.lose_membership()


class RealCluster(Cluster):
    def __init__(self, servers, new_topic):
        super().__init__(partial(AIOKafkaConsumer, bootstrap_servers=servers, enable_auto_commit=False))
        self._servers = servers
        self.topic = new_topic

    async def produce(self, topic, partition, *payloads):
        await produce(self._servers, topic, [Record(payload, partition=partition) for payload in payloads])

    async def produce_with_gap_behind(self, topic, payload):
        producer = AIOKafkaProducer(bootstrap_servers=self._servers, transactional_id=f"gap-{uuid4().hex[:8]}")
        await producer.start()
        try:
            async with producer.transaction():  # its commit marker takes an offset
                sent = await producer.send_and_wait(topic, payload, partition=0)
        finally:
            await producer.stop()
        # The marker is written after the transaction has ended: 7 % of the records produced at once came before it.
        await wait_until(lambda: self._ends_at(topic, sent.offset + 2), PATIENCE_SEC, "the commit marker")
        await self.produce(topic, 0, b"after the gap")

    async def _ends_at(self, topic, offset):
        return (await end_offsets(self._servers, topic))[0] == offset

    async def drop_from_group(self, consumer):
        # A session timeout takes seconds; for the broker, a LeaveGroup request with the member's id has the same
        # effect.
        coordinator = consumer._coordinator
        await coordinator._send_req(LeaveGroupRequest(self.group, coordinator.member_id))


def partitions_of(topic, *numbers):
    return [TopicPartition(topic, number) for number in numbers]
