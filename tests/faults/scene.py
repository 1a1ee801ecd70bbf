"""What the faults share: records that keep coming, a watch over the library, requests to a broker, another member."""

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
    """Make a KafkaBroker with our middleware alone, whose requests do not wait for the 40 s that is the default."""
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
        """Wait until each of these was handled at least once."""
        wanted = set(numbers)

        def missing():
            return sorted(wanted.difference(self.values))

        await wait_until(lambda: not missing(), timeout_sec, lambda: f"never handled: {missing()[:20]}")

    @property
    def repeated(self):
        """What was handled more than once."""
        return {number: count for number, count in Counter(self.values).items() if count > 1}


async def topic_at(bootstrap, label, partitions=1):
    """Create a topic whose name begins with the label; return its name."""
    name = named(label)
    await create_topic(bootstrap, name, partitions)
    return name


def named(label):
    """Return a name that nothing has had before."""
    return f"{label}-{uuid4().hex[:8]}"


async def until_all_committed(cluster, topic, timeout_sec=30, group=None):
    """Wait until the committed offsets of a topic are its ends."""
    ends = await end_offsets(cluster.bootstrap_servers, topic)
    await cluster.until_committed(topic, {each: end for each, end in ends.items() if end}, group, timeout_sec)


class Traffic:
    """Numbered records that keep coming, each in the log exactly once."""

    def __init__(self, producer, topic):
        self._producer = producer
        self._topic = topic
        self._ends = False
        self._sent = []

    @property
    def numbers(self):
        """What has been sent."""
        return range(len(self._sent))

    async def _flow(self):
        while not self._ends:
            self._sent.append(await self._producer.send(self._topic, str(len(self._sent)).encode()))
            await asyncio.sleep(0.005)

    @classmethod
    @asynccontextmanager
    async def on(cls, bootstrap, topic):
        """Have records come until the end of the block; then each has been acknowledged by the broker."""
        # Long enough for a leader to be found again.
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
    """What was seen of the library, looked at every 50 ms.

    A restart mends nothing that befalls a broker, so it is an error if the process is ever not alive.
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
        """Watch until the end of the block."""
        watch = cls(app.context)
        task = asyncio.ensure_future(watch._look())
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.wait({task})
        assert not watch.deaths, "a liveness probe would have had it restarted"


class Busyness:
    """How much of one core this process takes."""

    def __init__(self):
        self._wall, self._cpu = time.monotonic(), time.process_time()

    @property
    def seconds(self):
        """For how long it has been measured."""
        return time.monotonic() - self._wall

    @property
    def share(self):
        """Seconds of CPU per second."""
        return (time.process_time() - self._cpu) / self.seconds


class Member:
    """Another member of the group, which commits what it has got."""

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
                    # A rebalance came first: their owner gets them again.
                    continue

    @classmethod
    @asynccontextmanager
    async def of(cls, bootstrap, group, topic):
        """Be a member until the end of the block."""
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
    """Send a request for which aiokafka's admin client has no method; return the answer."""
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
    """Have the broker forget a group without members, and with it what it has committed."""
    answer = await ask(bootstrap, DeleteGroupsRequest([group]), await coordinator_of(bootstrap, group))
    for _, code in answer.results:
        _raise_if(code)


TOPIC, GROUP = 2, 3
_LITERAL, _ALL, _READ, _DENY, _ALLOW = 3, 2, 3, 2, 3
_ANYBODY = ("User:*", "*")


async def deny_reading(bootstrap, kind, name):
    """Deny everybody to read a topic, or to be in a group: whatever else may be done is still allowed."""
    for operation, permission in ((_ALL, _ALLOW), (_READ, _DENY)):
        answer = await ask(bootstrap, CreateAclsRequest(kind, name, _LITERAL, *_ANYBODY, operation, permission))
        for code, _ in answer.creation_responses:
            _raise_if(code)


async def allow_reading(bootstrap, kind, name):
    """Take back what `deny_reading` has done, the denial first."""
    for operation, permission in ((_READ, _DENY), (_ALL, _ALLOW)):
        answer = await ask(bootstrap, DeleteAclsRequest(kind, name, _LITERAL, *_ANYBODY, operation, permission))
        for code, *_ in answer.filter_responses:
            _raise_if(code)


def _raise_if(code):
    if code:
        raise for_code(code)
