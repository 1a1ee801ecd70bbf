"""Commit metadata lists records that have finished behind an unfinished one; the next owner does not run them again.

Invariants: I15.
"""

import random
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from faststream.kafka import KafkaBroker
from faststream.kafka import TopicPartition as Partition
from typing_extensions import override

from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware, is_kafka_handler_healthy
from faststream_concurrent_kafka._partition.offset_map import OffsetMap
from testkit.brokers import wait_until
from testkit.load import Load
from testkit.worker import Task
from tests.integration.helpers import PATIENCE_SEC, Cluster, Rebalances, manual, serving, warnings_of
from tests.integration.rebalancing import TAKES_IT, Held, visit
from tests.integration.test_rebalance import QUICK


pytestmark = pytest.mark.apache
ROOT = Path(__file__).parents[2]
QUICKLY = {"commit_batch_timeout_sec": 0.05, "commit_metadata": True}
# Stuck records are cancelled soon, and left to the next run.
IMPATIENT = QUICKLY | {"shutdown_timeout_sec": 0.3}


@asynccontextmanager
async def admin(cluster):
    """Return the broker's answer to an OffsetFetch request."""
    client = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def stored(cluster, topic, partition=0):
    """Return the committed offset and its metadata."""
    async with admin(cluster) as client:
        offsets = await client.list_consumer_group_offsets(f"{topic}-group")
    return offsets.get(TopicPartition(topic, partition), (None, ""))


async def until_told(cluster, topic, offset, *finished):
    """Wait until an offset is committed whose metadata lists these as finished."""

    async def listed():
        committed, metadata = await stored(cluster, topic)
        return (
            committed == offset
            and metadata
            and set(finished) <= set(OffsetMap.parse(metadata, offset).finished_from(0))
        )

    await wait_until(listed, PATIENCE_SEC, f"{offset} is committed, and {len(finished)} above it are in its metadata")


async def commit_by_hand(cluster, topic, offset, metadata, partitions=1):
    """Commit as another client."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=cluster.bootstrap_servers, group_id=f"{topic}-group", enable_auto_commit=False
    )
    await consumer.start()
    try:
        places = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(places)
        await consumer.commit(dict.fromkeys(places, (offset, metadata)))
    finally:
        await consumer.stop()


async def leave_stuck(cluster, new_broker, topic, *, count=20, stuck=5, **settings):
    """Handle all but one record, commit with metadata, and stop."""
    broker = new_broker()
    held = Held(stuck).subscribe(broker, topic)
    await cluster.send(topic, range(count))
    async with serving(broker, **(IMPATIENT | settings)):
        await held.until_ended(*(number for number in range(count) if number != stuck))
        if settings.get("commit_metadata", True):
            await until_told(cluster, topic, stuck, *range(stuck + 1, count))


async def test_after_kill_9_only_the_stuck_record_is_handled_again(cluster, new_topic, tmp_path):
    """The 10,000 that had finished behind it are not handled again; all of them fit into 1,200 bytes."""
    topic, count, stuck = await new_topic(), 10_001, 7
    await cluster.send(topic, range(count))

    async def run(name, expected, stuck_at):
        task = Task(
            bootstrap_servers=cluster.bootstrap_servers,
            topic=topic,
            group=f"{topic}-group",
            journal=str(tmp_path / f"{name}.journal"),
            load=Load(seed=0, count=count, ordering="unordered", quick_sec=(0, 0), stuck=stuck_at),
            settings=QUICKLY,
        )
        member = task.start()
        try:
            await member.until(lambda: len(member.journal.ended) >= expected, 30, name)
            if stuck_at is None:
                await cluster.until_committed(topic, {0: count})
            else:
                await until_told(cluster, topic, stuck, *range(stuck + 1, count))
        finally:
            member.kill()
        return [each.number for each in member.journal.read().ended]

    before = await run("first", count - 1, stuck)
    assert sorted([*before, stuck]) == list(range(count))
    _, metadata = await stored(cluster, topic)
    assert len(metadata) < 1_200
    assert await run("second", 1, None) == [stuck]


@pytest.mark.parametrize("how", ["subscribe", "subscribe_batches"])
async def test_a_restart_handles_what_was_unfinished(cluster, new_broker, new_topic, how):
    """The stuck record and later ones are handled; then the metadata is empty."""
    topic = await new_topic()
    # In batches, the other records of the stuck one's batch are unfinished, too; it is the first of them.
    if how == "subscribe":
        await leave_stuck(cluster, new_broker, topic, stuck=4)
    else:
        await leave_batch_stuck(cluster, new_broker, topic)
    await cluster.send(topic, range(20, 25))
    broker = new_broker()
    after = getattr(Held(), how)(broker, topic)
    unfinished = {4} if how == "subscribe" else {4, 5, 6, 7}
    async with serving(broker, **QUICKLY):
        await after.until_ended(*unfinished, *range(20, 25))
        await cluster.until_committed(topic, {0: 25})
    assert set(after.started) == unfinished | set(range(20, 25))
    assert max(after.runs.values()) == 1
    assert (await stored(cluster, topic))[1] == ""


async def leave_batch_stuck(cluster, new_broker, topic):
    """The same with batches of four, which are delivered as they were sent."""
    broker = new_broker()
    held = Held(4).subscribe_batches(broker, topic)
    async with serving(broker, **IMPATIENT):
        for first in range(0, 20, 4):
            await cluster.send(topic, range(first, first + 4))
            await (held.until_started if first == 4 else held.until_ended)(*range(first, first + 4))
        await until_told(cluster, topic, 4, *range(8, 20))


async def test_a_partition_that_moves_to_another_member_takes_its_map_along(cluster, new_broker, new_topic):
    """While handlers run, each of two members learns by metadata which records the other one has finished."""
    topic = await new_topic()
    broker = new_broker()
    held = Held(5).subscribe(broker, topic)
    await cluster.send(topic, range(20))
    async with serving(broker, rebalance_flush_timeout_sec=0, **QUICKLY):
        await held.until_ended(*(number for number in range(20) if number != 5))
        async with visit(cluster, topic, held.rebalances, TAKES_IT):
            committed, metadata = await stored(cluster, topic)
            assert committed == 5
            assert set(OffsetMap.parse(metadata, 5).finished_from(0)) == set(range(6, 20))
        held.let_go()
        await cluster.until_committed(topic, {0: 20})
    assert held.runs == dict.fromkeys(range(20), 1)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("checkpoint of another tool", "not of this library"),
        ("fsck2:5:1:1:5:AAAA", "damaged"),
        ("fsck1:5:1:AAAA", "another version"),
        ("stale", "offset 4"),
    ],
)
async def test_foreign_damaged_and_stale_metadata_is_ignored_with_one_warning(
    cluster, new_broker, new_topic, caplog, *, metadata, says
):
    """All records from the committed offset on are handled, and the next commit succeeds."""
    topic = await new_topic(3)
    for partition in range(3):
        await cluster.send(topic, range(10 * partition, 10 * partition + 10), partition)
    if metadata == "stale":
        metadata = OffsetMap.of(4, 1, admitted=9, unfinished=[4]).dump()
    await commit_by_hand(cluster, topic, 5, metadata, partitions=3)
    broker = new_broker()
    held = Held().subscribe(broker, topic)
    async with serving(broker, **QUICKLY) as app:
        await held.until_ended(*range(5, 10), *range(15, 20), *range(25, 30))
        await cluster.until_committed(topic, dict.fromkeys(range(3), 10))
        assert is_kafka_handler_healthy(app.context)
    assert len(held.started) == 15
    (warning,) = [each for each in warnings_of(caplog) if "metadata" in each]
    assert says in warning


async def test_a_map_of_another_topic_of_that_name_is_not_believed(cluster, new_broker, new_topic):
    """The offset has another record now: all records are handled."""
    topic = await new_topic()
    await cluster.send(topic, range(10))
    await commit_by_hand(cluster, topic, 5, OffsetMap.of(5, 1, admitted=10, unfinished=[5]).dump())
    broker = new_broker()
    held = Held().subscribe(broker, topic)
    async with serving(broker, **QUICKLY):
        await held.until_ended(*range(5, 10))
    assert sorted(held.started) == list(range(5, 10))


@pytest.mark.parametrize("are", ["newer", "older"])
async def test_records_in_the_place_of_finished_ones_are_handled(cluster, new_broker, new_topic, are):
    """As after an unclean election, which keeps the first ten records and loses the later ones."""
    # An hour old: retention deletes by time stamps.
    topic, begin = await new_topic(), int(time.time() * 1000) - 3_600_000
    before = [(offset, begin + offset) for offset in range(5, 20)]
    then = begin + (10**6 if are == "newer" else -(10**6))
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap_servers)
    await producer.start()
    try:
        for offset in range(20):
            timestamp = (begin if offset < 10 else then) + offset
            await producer.send_and_wait(topic, str(offset).encode(), timestamp_ms=timestamp)
    finally:
        await producer.stop()
    made = OffsetMap.of(5, begin + 5, admitted=20, unfinished=[5], delivered=before, newest=begin + 19)
    await commit_by_hand(cluster, topic, 5, made.dump())
    broker = new_broker()
    held = Held().subscribe(broker, topic)
    async with serving(broker, **QUICKLY):
        await held.until_ended(5, *range(10, 20))
        await cluster.until_committed(topic, {0: 20})
    assert held.runs == dict.fromkeys([5, *range(10, 20)], 1)


@pytest.mark.cluster
async def test_a_broker_that_takes_less_metadata_gets_less(own_kafka, new_topic, caplog):
    """At once, and a last commit gets none, since there is no time to try; the offset is committed in any case."""
    server = own_kafka(settings={"offset.metadata.max.bytes": "100"})
    cluster = Cluster(server.bootstrap_servers)

    def new_broker():
        return KafkaBroker(server.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)

    # Too irregular to fit into so few bytes.
    stuck = sorted(random.Random(1).sample(range(1000), 80))  # noqa: S311 - to be repeated
    finished = sorted(set(range(1000)) - set(stuck))

    async def leave(topic, **settings):
        await cluster.send(topic, range(1000))
        broker = new_broker()
        held = Held(*stuck).subscribe(broker, topic)
        async with serving(broker, **(IMPATIENT | settings)):
            await held.until_ended(*finished)
            if not settings:
                await until_told(cluster, topic, stuck[0], stuck[0] + 1)

    topic = await new_topic(bootstrap=server.bootstrap_servers)
    await leave(topic)
    offset, metadata = await stored(cluster, topic)
    assert 0 < len(metadata) <= 100
    listed = set(OffsetMap.parse(metadata, offset).finished_from(0))
    assert listed < set(finished)
    assert sum("offset.metadata.max.bytes" in each for each in warnings_of(caplog)) == 1
    broker = new_broker()
    after = Held().subscribe(broker, topic)
    async with serving(broker, **QUICKLY):
        await cluster.until_committed(topic, {0: 1000})
    assert set(after.started) == set(range(stuck[0], 1000)) - listed

    topic = await new_topic(bootstrap=server.bootstrap_servers)
    await leave(topic, commit_batch_timeout_sec=3600)
    assert await stored(cluster, topic) == (stuck[0], "")


@pytest.mark.parametrize("to", [0, 5, 8])
async def test_a_seek_back_after_a_restart_gets_everything(cluster, new_broker, new_topic, to):
    """After a user's seek all records are handled again, also finished ones, even if the position stays the same."""
    topic = await new_topic()
    await leave_stuck(cluster, new_broker, topic)

    class Seeks(Rebalances):
        @override
        def on_partitions_assigned(self, assigned):
            super().on_partitions_assigned(assigned)
            for partition in assigned:
                subscriber.consumer.seek(partition, to)

    broker = new_broker()
    again = Held().subscribe(broker, topic, listener=Seeks())
    subscriber = again.subscriber
    async with serving(broker, **QUICKLY):
        await again.until_ended(*range(to, 20))
    assert again.runs == dict.fromkeys(range(to, 20), 1)


async def test_manually_assigned_partitions_have_a_map_too(cluster, new_broker, new_topic):
    """Although aiokafka calls no listener for them."""
    topic = await new_topic()
    await cluster.send(topic, range(20))

    def subscribed(held):
        broker = new_broker()
        held.subscriber = broker.subscriber(
            partitions=[Partition(topic, 0)],
            **manual(topic),
        )
        held.subscriber(held.handle)
        return broker

    first = Held(5)
    async with serving(subscribed(first), **IMPATIENT):
        await first.until_ended(*(number for number in range(20) if number != 5))
        await until_told(cluster, topic, 5, *range(6, 20))
    second = Held()
    async with serving(subscribed(second), **QUICKLY):
        await second.until_ended(5)
        await cluster.until_committed(topic, {0: 20})
    assert second.started == [5]


async def test_a_map_outlives_a_run_that_has_not_got_so_far(cluster, new_broker, new_topic):
    """The record is stuck again, and because of a small window most of the others are not delivered."""
    topic = await new_topic()
    await leave_stuck(cluster, new_broker, topic, count=200)
    broker = new_broker()
    held = Held(5).subscribe(broker, topic)
    async with serving(broker, **IMPATIENT, max_uncommitted_tasks=20):
        await held.until_started(5)
        await until_told(cluster, topic, 5, *range(6, 200))
    third = Held()
    broker = new_broker()
    third.subscribe(broker, topic)
    async with serving(broker, **QUICKLY):
        await third.until_ended(5)
        await cluster.until_committed(topic, {0: 200})
    assert third.started == [5]


async def test_without_it_nothing_is_written_and_nothing_read(cluster, new_broker, new_topic):
    """With the option off, records behind the stuck one are handled again."""
    topic = await new_topic()
    await leave_stuck(cluster, new_broker, topic, commit_metadata=False)
    assert await stored(cluster, topic) == (5, "")
    broker = new_broker()
    again = Held().subscribe(broker, topic, **QUICK)
    async with serving(broker, commit_metadata=False):
        await again.until_ended(*range(5, 20))
    assert sorted(again.started) == list(range(5, 20))
