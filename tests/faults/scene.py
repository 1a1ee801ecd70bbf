"""Shared by the faults: a stream of records, a monitor of the library, admin requests, another group member."""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DeleteGroupsRequest
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    is_kafka_handler_alive,
)
from testkit.brokers import create_topic, end_offsets, wait_until
from tests.integration.helpers import Seen, consuming


# Short, so that a fault is over and noticed within the time of a test.
IMPATIENT = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 500}


def broker_at(bootstrap, logger=None, **more):
    """Make a KafkaBroker with the library's middleware, and request timeouts shorter than the default of 40 s."""
    options: dict[str, Any] = {"request_timeout_ms": 3000} | more
    return KafkaBroker(bootstrap, middlewares=[KafkaConcurrentProcessingMiddleware], logger=logger, **options)


class Busy(Seen):
    """A handler that takes a moment for each record."""

    def __init__(self, takes_sec=0.02):
        super().__init__()
        self.takes_sec = takes_sec

    def subscribe(self, broker, *topics, **more):
        """Subscribe the handler."""
        options: dict[str, Any] = IMPATIENT | more
        consuming(broker, *topics, **options)(self.handle)
        return self

    async def handle(self, number: int):
        """Handle a record."""
        with self.handling(number):
            await asyncio.sleep(self.takes_sec)

    async def until_all_of(self, numbers, timeout_sec=30):
        """Wait until each of these records was handled at least once."""
        wanted = set(numbers)

        def missing():
            return sorted(wanted.difference(self.values))

        await wait_until(lambda: not missing(), timeout_sec, lambda: f"never handled: {missing()[:20]}")

    @property
    def repeated(self):
        """The records that were handled more than once."""
        return {number: count for number, count in Counter(self.values).items() if count > 1}


async def topic_at(bootstrap, label, partitions=1):
    """Create a topic whose name begins with the label; return its name."""
    name = named(label)
    await create_topic(bootstrap, name, partitions)
    return name


def named(label):
    """Return a name that no test has used before."""
    return f"{label}-{uuid4().hex[:8]}"


async def until_all_committed(cluster, topic, timeout_sec=30, group=None):
    """Wait until the committed offsets of a topic are its ends."""
    ends = await end_offsets(cluster.bootstrap_servers, topic)
    await cluster.until_committed(topic, {each: end for each, end in ends.items() if end}, group, timeout_sec)


class Traffic:
    """A stream of numbered records, each in the log exactly once."""

    def __init__(self, producer, topic):
        self._producer = producer
        self._topic = topic
        self._ends = False
        self._sent = []

    @property
    def numbers(self):
        """The numbers that were sent."""
        return range(len(self._sent))

    async def _flow(self):
        while not self._ends:
            self._sent.append(await self._producer.send(self._topic, str(len(self._sent)).encode()))
            await asyncio.sleep(0.005)

    @classmethod
    @asynccontextmanager
    async def on(cls, bootstrap, topic):
        """Produce records until the end of the block; then the broker has acknowledged each of them."""
        # Long enough to find a new leader.
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, request_timeout_ms=60_000)
        await producer.start()
        traffic = cls(producer, topic)
        flow = asyncio.ensure_future(traffic._flow())
        try:
            yield traffic
        finally:
            traffic._ends = True
            await asyncio.wait({flow})
            await producer.stop()
        await flow
        await asyncio.gather(*traffic._sent)


class Watch:
    """Samples of the library's health, taken every 50 ms.

    A restart mends no fault of a broker, so it is an error if the process is ever not alive.
    """

    def __init__(self, context):
        self._context = context
        self.largest_window = 0
        self.deaths = 0
        self.problems = Counter()

    async def _look(self):
        while True:
            if not is_kafka_handler_alive(self._context):
                self.deaths += 1
            report = get_kafka_handler_report(self._context)
            self.problems.update(report.problems)
            self.largest_window = max([self.largest_window, *(each.uncommitted for each in report.partitions)])
            await asyncio.sleep(0.05)

    @classmethod
    @asynccontextmanager
    async def over(cls, app):
        """Take samples until the end of the block."""
        watch = cls(app.context)
        task = asyncio.ensure_future(watch._look())
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.wait({task})
        assert not watch.deaths, "a liveness probe would have had it restarted"


class Busyness:
    """How much CPU time this process uses."""

    def __init__(self):
        self._wall, self._cpu = time.monotonic(), time.process_time()

    @property
    def seconds(self):
        """The seconds of the measurement."""
        return time.monotonic() - self._wall

    @property
    def share(self):
        """Seconds of CPU per second."""
        return (time.process_time() - self._cpu) / self.seconds


class Member:
    """Another member of the group, which commits the records that it fetches."""

    def __init__(self, consumer):
        self._consumer = consumer
        self.values = []

    async def _consume(self):
        while True:
            batch = await self._consumer.getmany(timeout_ms=200)
            if batch:
                self.values += [int(each.value) for records in batch.values() for each in records]
                try:
                    await self._consumer.commit()
                except KafkaError:
                    # A rebalance came first: the new owner gets these records.
                    continue

    @classmethod
    @asynccontextmanager
    async def of(cls, bootstrap, group, topic):
        """Join the group; leave it at the end of the block."""
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            **IMPATIENT,
        )
        await consumer.start()
        member = cls(consumer)
        task = asyncio.ensure_future(member._consume())
        try:
            yield member
        finally:
            task.cancel()
            await asyncio.wait({task})
            await consumer.stop()


@asynccontextmanager
async def admin_at(bootstrap):
    """Return aiokafka's admin client."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def ask(bootstrap, request, node=None):
    """Send a request that aiokafka's admin client has no method for; return the answer."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    try:
        return await client.send(client.get_random_node() if node is None else node, request)
    finally:
        await client.close()


async def coordinator_of(bootstrap, group):
    """Return the node id of the coordinator of a group."""
    async with admin_at(bootstrap) as admin:
        return await admin.find_coordinator(group)


async def delete_group(bootstrap, group):
    """Delete a group without members, and with it its committed offsets."""
    answer = await ask(bootstrap, DeleteGroupsRequest([group]), await coordinator_of(bootstrap, group))
    for _, code in answer.results:
        _raise_if(code)


TOPIC, GROUP = 2, 3
_LITERAL, _ALL, _READ, _DENY, _ALLOW = 3, 2, 3, 2, 3
_ANYBODY = ("User:*", "*")


async def deny_reading(bootstrap, kind, name):
    """Deny all users to read a topic or to join a group; everything else stays allowed."""
    for operation, permission in ((_ALL, _ALLOW), (_READ, _DENY)):
        answer = await ask(bootstrap, CreateAclsRequest(kind, name, _LITERAL, *_ANYBODY, operation, permission))
        for code, _ in answer.creation_responses:
            _raise_if(code)


async def allow_reading(bootstrap, kind, name):
    """Undo `deny_reading`; removes the denial first."""
    for operation, permission in ((_READ, _DENY), (_ALL, _ALLOW)):
        answer = await ask(bootstrap, DeleteAclsRequest(kind, name, _LITERAL, *_ANYBODY, operation, permission))
        for code, *_ in answer.filter_responses:
            _raise_if(code)


def _raise_if(code):
    if code:
        raise for_code(code)
