"""Dead letters that can't be published hold back the offset of their record until they are published."""

import asyncio
import os

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    is_kafka_handler_healthy,
)
from testkit.brokers import create_topic, wait_until
from tests.integration.helpers import Cluster, Seen, consuming, serving
from tests.integration.letters import failing, read, to, unhandled, until_red
from tests.integration.test_rebalance import QUICK, another_member


@pytest.fixture(autouse=True)
def nothing_unhandled(caplog):
    """No exception was left unretrieved, and nothing of aiokafka's open."""
    yield
    assert unhandled(caplog) == []


async def test_an_impossible_topic_holds_the_partition(cluster, new_broker, new_topic):
    """A callable fails, or names no topic: health is red, no commit passes the record, other partitions go on."""
    topic, letters, broker, asked = await new_topic(2), await new_topic(), new_broker(), []

    def name(record):
        asked.append(record.offset)
        if len(asked) == 1:
            raise LookupError("no idea")
        return ["not a topic!", letters][min(len(asked) - 2, 1)]

    seen, handle = failing(3)
    consuming(broker, topic)(handle)
    await cluster.send(topic, range(10), partition=0)
    await cluster.send(topic, range(10, 20), partition=1)
    async with serving(broker, concurrency_limit=1, **to(name)) as app:
        await until_red(app, f"{topic}[0]@3", "LookupError: no idea")
        await cluster.until_committed(topic, {0: 3, 1: 10})
        await until_red(app, f"{topic}[0]@3", "not a topic!")
        assert await cluster.committed(topic) == {0: 3, 1: 10}
        await cluster.until_committed(topic, {0: 10, 1: 10})
        assert is_kafka_handler_healthy(app.context)
    (letter,) = await read(cluster, letters, 1)
    assert letter.value == b"3"
    assert asked == [3, 3, 3]
    assert seen.counts == dict.fromkeys(range(20), 1) | {3: 2}


async def test_a_stop_does_not_wait_for_a_dead_letter_for_ever(cluster, new_broker, new_topic):
    """At the deadline it is given up; after the restart the record is delivered again, and nothing is lost."""
    topic, letters = await new_topic(), await new_topic()
    seen, handle = failing(3)
    await cluster.send(topic, range(6))

    def nowhere(_record):
        raise LookupError("no idea")

    for where in (nowhere, letters):
        broker = new_broker()
        consuming(broker, topic)(handle)
        loop = asyncio.get_running_loop()
        async with serving(broker, shutdown_timeout_sec=0.5, **to(where)) as app:
            if where is nowhere:
                await until_red(app, "no idea")
            else:
                await cluster.until_committed(topic, {0: 6})
            stopping_at = loop.time()
        assert loop.time() - stopping_at < 3
        assert await cluster.committed(topic) == {0: 3 if where is nowhere else 6}
    (letter,) = await read(cluster, letters, 1)
    assert letter.value == b"3"
    assert seen.counts[3] == 4


async def test_a_held_record_keeps_its_key_and_leaves_with_its_partition(cluster, new_broker, new_topic):
    """Its key waits for its dead letter; at a rebalance it is given up, and the next owner gets the record."""
    topic, broker, elsewhere, started = await new_topic(2), new_broker(), [], []

    def nowhere(_record):
        raise LookupError("no idea")

    async def handle(number: int):
        started.append(number)
        if number % 100 == 3:
            raise ValueError

    consuming(broker, topic, **QUICK)(handle)
    for first in (0, 100):
        await cluster.send(topic, range(first, first + 10), first // 100)
    async with serving(broker, rebalance_flush_timeout_sec=0.2, ordering="partition", **to(nowhere)) as app:
        await until_red(app, f"{topic}[0]@3")
        await until_red(app, f"{topic}[1]@3")
        await cluster.until_committed(topic, {0: 3, 1: 3})
        assert max(number % 100 for number in started) == 3
        async with another_member(cluster, topic, elsewhere):
            await wait_until(lambda: len(elsewhere) == 7, 20, lambda: f"the other member's share: {elsewhere}")
            kept = 100 - elsewhere[0] // 100 * 100
            await until_red(app, f"{topic}[{kept // 100}]@3")
            assert len(get_kafka_handler_report(app.context).problems) == 1
            assert started.count(kept + 3) == 4
        assert max(number % 100 for number in started) == 3


@pytest.mark.apache
async def test_what_is_too_large_is_held_until_the_topic_takes_it(cluster, new_broker, new_topic):
    """Health is red and no commit passes the record; when the topic's size limit is raised, it is published."""
    topic, letters = await new_topic(), await new_topic(config={"max.message.bytes": "10000"})
    broker, sizes, large = new_broker(), [], os.urandom(30_000)

    async def handle(body: bytes):
        sizes.append(len(body))
        if len(body) > 10:
            raise ValueError

    consuming(broker, topic)(handle)
    await cluster.send(topic, [b"small", large, b"small"])
    async with serving(broker, **to(letters)) as app:
        await until_red(app, f"{topic}[0]@1", "MessageSizeTooLarge")
        await cluster.until_committed(topic, {0: 1})
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        await admin.start()
        try:
            wanted = ConfigResource(ConfigResourceType.TOPIC, letters, {"max.message.bytes": "100000"})
            await admin.alter_configs([wanted])
        finally:
            await admin.close()
        await cluster.until_committed(topic, {0: 3})
        assert is_kafka_handler_healthy(app.context)
    (letter,) = await read(cluster, letters, 1)
    assert letter.value == large
    assert sorted(sizes) == [5, 5, len(large), len(large)]


def own_broker(server):
    """Return a KafkaBroker with short timeouts."""
    servers = server.bootstrap_servers
    return KafkaBroker(servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None, request_timeout_ms=2000)


@pytest.mark.cluster
async def test_a_missing_topic_is_waited_for(own_kafka, new_topic):
    """Without the topic the record is held and health red, and the other partition goes on, until the topic exists."""
    server = own_kafka(settings={"auto.create.topics.enable": "false"})
    cluster, broker = Cluster(server.bootstrap_servers), own_broker(server)
    topic = await new_topic(2, bootstrap=server.bootstrap_servers)
    seen, handle = failing(3)
    consuming(broker, topic)(handle)
    await cluster.send(topic, range(10), partition=0)
    await cluster.send(topic, range(10, 20), partition=1)
    async with serving(broker, **to(f"{topic}.dlt")) as app:
        await until_red(app, f"{topic}[0]@3", "UnknownTopicOrPartition")
        await cluster.until_committed(topic, {0: 3, 1: 10})
        await create_topic(server.bootstrap_servers, f"{topic}.dlt")
        await cluster.until_committed(topic, {0: 10, 1: 10}, timeout_sec=30)
        assert is_kafka_handler_healthy(app.context)
    (letter,) = await read(cluster, f"{topic}.dlt", 1)
    assert letter.value == b"3"
    assert seen.counts == dict.fromkeys(range(20), 1) | {3: 2}


@pytest.mark.cluster
async def test_a_broker_that_is_down_is_waited_for(own_kafka, new_topic):
    """The broker is killed before the publish: after its return the dead letters are published, then committed."""
    server = own_kafka()
    cluster, broker, gate, handled = Cluster(server.bootstrap_servers), own_broker(server), asyncio.Event(), Seen()
    topic, letters = [await new_topic(bootstrap=server.bootstrap_servers) for _ in range(2)]

    async def handle(number: int):
        with handled.handling(number):
            await gate.wait()
            if number % 2:
                raise ValueError(number)

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(10))
    async with serving(broker, **to(letters)) as app:
        await handled.until_running(10)
        server.kill(0)
        gate.set()
        await until_red(app, "can't be published as a dead letter")
        assert get_kafka_handler_report(app.context).in_flight == 5
        await asyncio.to_thread(server.restart, 0)
        await cluster.until_committed(topic, {0: 10}, timeout_sec=60)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, "green")
    assert {letter.value for letter in await read(cluster, letters, 5)} == {
        b"%d" % number for number in range(1, 10, 2)
    }
    assert set(handled.values) == set(range(10))
