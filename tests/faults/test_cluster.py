"""One of three brokers is killed (the coordinator, or the leader of a partition), or a partition is moved."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from faststream.kafka import TopicPartition as Place

from faststream_concurrent_kafka import get_kafka_handler_report, is_kafka_handler_healthy
from testkit.brokers import wait_until
from tests.faults.scene import (
    Busy,
    Traffic,
    admin_at,
    ask,
    broker_at,
    coordinator_of,
    named,
    topic_at,
    until_all_committed,
)
from tests.integration.helpers import Cluster, Gated, consuming, manual, serving
from tests.integration.letters import failing, read, to, until_red


COMMITS_GO_ON_WITHIN_SEC = 15
SETTINGS = {"commit_batch_timeout_sec": 0.1, "commit_failure_timeout_sec": 5}


@asynccontextmanager
async def _without(three, node):
    """Kill a broker, and restart it at the end of the block."""
    three.kill(node)
    try:
        yield
    finally:
        await asyncio.to_thread(three.restart, node)


def _acked(app):
    return sum(each.acked for each in get_kafka_handler_report(app.context).partitions)


async def _commits_go_on(app):
    """Wait until records that are handled from now on are confirmed as committed."""
    want = sum(each.frontier for each in get_kafka_handler_report(app.context).partitions) + 50
    await wait_until(
        lambda: _acked(app) >= want, COMMITS_GO_ON_WITHIN_SEC, lambda: f"{_acked(app)} of {want} committed"
    )


async def _topic_on(three, name, replicas, **config: str):
    """Create a topic of one partition, led by the first of these brokers."""
    async with admin_at(three.bootstrap_servers) as admin:
        topic = NewTopic(name, -1, -1, replica_assignments={0: list(replicas)}, topic_configs=config)
        await admin.create_topics([topic])
        await wait_until(lambda: _leader(three, name, admin), 20, "a leader")


async def _leader(three, name, admin=None):
    """Return the node id of the leader of the topic's partition, plus one: 0 is none."""
    if admin is None:
        async with admin_at(three.bootstrap_servers) as another:
            return await _leader(three, name, another)
    (topic,) = await admin.describe_topics([name])
    return topic["partitions"][0]["leader"] + 1 if topic["partitions"] else 0


def _move_to(topic, node):
    # aiokafka annotates the constructor's parameters with the types of the protocol's fields, not of their values.
    moves: Any = [(topic, [(0, [node], {})], {})]
    no_tags: Any = {}
    return AlterPartitionReassignmentsRequest(10_000, moves, no_tags)


@pytest.mark.slow("three brokers start, and a killed one comes back when its registration has expired")
async def test_the_coordinator_is_killed(three):
    """Commits succeed again within 15 s; no record is lost or run twice."""
    servers = three.bootstrap_servers
    cluster = Cluster(servers)
    topic = await topic_at(servers, "without-its-coordinator", 3)
    broker = broker_at(servers)
    seen = Busy().subscribe(broker, topic)
    async with serving(broker, **SETTINGS) as app:
        async with Traffic.on(servers, topic) as traffic:
            await seen.until(200)
            coordinator = await coordinator_of(servers, f"{topic}-group")
            async with _without(three, coordinator):
                await _commits_go_on(app)
                assert await coordinator_of(servers, f"{topic}-group") != coordinator
            await _commits_go_on(app)
        await seen.until_all_of(traffic.numbers)
        await until_all_committed(cluster, topic)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 10, "green")
    assert not seen.repeated


async def test_the_leader_of_a_partition_is_killed(three):
    """Another replica becomes the leader; records are handled and committed, and none is lost or run twice."""
    servers = three.bootstrap_servers
    cluster = Cluster(servers)
    topic = named("led-by-one-that-is-killed")
    coordinator = await coordinator_of(servers, f"{topic}-group")
    leader, *others = ((coordinator + step) % 3 for step in (1, 2, 0))
    await _topic_on(three, topic, [leader, *others])
    broker = broker_at(servers)
    seen = Busy().subscribe(broker, topic)
    async with serving(broker, **SETTINGS) as app:
        async with Traffic.on(servers, topic) as traffic:
            await seen.until(200)
            assert await _leader(three, topic) == leader + 1
            async with _without(three, leader):
                await _commits_go_on(app)
        await seen.until_all_of(traffic.numbers)
        await until_all_committed(cluster, topic)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 10, "green")
    assert not seen.repeated


async def test_a_partition_moves_to_another_broker(three):
    """The new leader serves records without delay, commits go on, and no record is lost or run twice."""
    servers = three.bootstrap_servers
    cluster = Cluster(servers)
    topic = named("moved-in-good-order")
    await _topic_on(three, topic, [0])
    broker = broker_at(servers)
    seen = Busy().subscribe(broker, topic)
    async with serving(broker, **SETTINGS) as app:
        async with Traffic.on(servers, topic) as traffic:
            await seen.until(200)
            await ask(servers, _move_to(topic, 1))

            async def moved():
                return await _leader(three, topic) == 2

            await wait_until(moved, 20, "the other broker leads")
            await _commits_go_on(app)
        await seen.until_all_of(traffic.numbers)
        await until_all_committed(cluster, topic)
        assert is_kafka_handler_healthy(app.context)
    assert not seen.repeated


async def test_a_position_is_looked_for_at_a_broker_that_leads_no_more(three):
    """aiokafka asks the old leader for ever: the library makes it request metadata, long before five minutes."""
    servers = three.bootstrap_servers
    topic = named("moved-unnoticed")
    place = TopicPartition(topic, 0)
    await _topic_on(three, topic, [0])
    broker = broker_at(servers)
    seen = Gated(free=5)
    subscriber: Any = broker.subscriber(partitions=[Place(topic, 0)], **manual(topic, fetch_max_wait_ms=50))
    subscriber(seen.handle)
    async with serving(broker, **SETTINGS):
        consumer: Any = subscriber.consumer
        consumer.pause(place)
        await consumer.position(place)
        await ask(servers, _move_to(topic, 1))

        async def moved():
            return await _leader(three, topic) == 2

        await wait_until(moved, 20, "the other broker leads")
        await Cluster(servers).send(topic, range(5))
        await asyncio.wait_for(consumer.seek_to_beginning(place), 20)
        consumer.resume(place)
        await seen.until(5)
    assert seen.counts == dict.fromkeys(range(5), 1)


async def test_a_dead_letter_waits_for_replicas(three):
    """While fewer than `min.insync.replicas` are in sync, the record is not done, even if the leader has it."""
    servers = three.bootstrap_servers
    cluster = Cluster(servers)
    topic = named("with-a-dead-letter")
    letters = f"{topic}.dead"
    coordinator = await coordinator_of(servers, f"{topic}-group")
    leader, follower = ((coordinator + step) % 3 for step in (1, 2))
    await _topic_on(three, topic, [leader])
    await _topic_on(three, letters, [leader, follower], **{"min.insync.replicas": "2"})
    broker = broker_at(servers)
    seen, handle = failing(3)
    consuming(broker, topic)(handle)
    await cluster.send(topic, range(6))
    async with serving(broker, **to(letters), concurrency_limit=1) as app:
        three.pause(follower)
        try:
            await until_red(app, f"{topic}[0]@3", "can't be published")
        finally:
            three.resume(follower)
        await cluster.until_committed(topic, {0: 6})
    assert {letter.value for letter in await read(cluster, letters, 1)} == {b"3"}
    assert seen.counts == dict.fromkeys(range(6), 1) | {3: 2}
