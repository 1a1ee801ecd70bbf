"""Every owned partition has a committed offset: records that arrive while no member runs are not skipped (I13)."""

from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as Place
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from faststream.kafka import TopicPartition

from tests.integration.helpers import Gated, Seen, consuming, manual, serving, serving_plainly


LATEST: dict[str, Any] = {"auto_offset_reset": "latest"}
PARTITIONS = 3


def chosen_by(kind, topic):
    """Return arguments of a subscriber to the topic's partitions."""
    if kind == "partitions":
        return (), {"partitions": [TopicPartition(topic, partition) for partition in range(PARTITIONS)]}
    if kind == "pattern":
        return (), {"pattern": topic}
    return (topic,), {}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["topic", "pattern", "partitions"])
async def test_what_comes_between_two_runs_is_handled(cluster, new_broker, new_topic, kind, late):
    """Also partitions without records, with group or manual assignment."""
    topic, seen = await new_topic(PARTITIONS), Seen()
    topics, chosen = chosen_by(kind, topic)

    async def handle(number: int):
        with seen.handling(number):
            pass

    def broker():
        made = new_broker()
        subscriber: Any = made.subscriber(*topics, **chosen, **manual(topic, **LATEST))
        subscriber(handle)
        return made

    for partition in range(PARTITIONS):
        await cluster.send(topic, [-1], partition)
    first: Any = broker()
    async with serving_plainly(first) if late else serving(first):
        if late:
            # The library finds the subscriber by its first record, of one partition.
            await first.subscribers[0].consumer.position(Place(topic, 0))
            await cluster.send(topic, [0], 0)
        await cluster.until_committed(topic, {0: 2 if late else 1, 1: 1, 2: 1})
    await cluster.send(topic, range(1, 31))
    async with serving(broker()):
        await cluster.until(lambda: {*range(1, 31)} <= set(seen.values))
    assert -1 not in seen.values


async def test_what_was_in_hand_at_a_stop_that_could_not_wait_comes_again(cluster, new_broker, new_topic):
    """No record had finished, so only the beginning was committed: 100 records of 100 are handled."""
    topic, seen = await new_topic(), Gated()
    seen.subscribe(first := new_broker(), topic, **LATEST)
    await cluster.send(topic, [-1])
    async with serving(first, concurrency_limit=20, shutdown_timeout_sec=0.1):
        await cluster.until_committed(topic, {0: 1})
        await cluster.send(topic, range(100))
        await seen.until_running(20)
    seen.gate.set()
    seen.values.clear()
    seen.subscribe(second := new_broker(), topic, **LATEST)
    async with serving(second):
        await seen.until(100)
    assert sorted(seen.values) == list(range(100))


async def test_a_partition_that_is_added_later_begins_where_it_was_found(cluster, new_broker, new_topic):
    """A new partition's offset is committed without a record, like those of the others."""
    topic, seen = await new_topic(), Seen()

    def broker():
        made = new_broker(metadata_max_age_ms=300)
        consuming(made, topic, **LATEST)(handle)
        return made

    async def handle(number: int):
        with seen.handling(number):
            pass

    async with serving(broker()):
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        await admin.start()
        try:
            await admin.create_partitions({topic: NewPartitions(2)})
        finally:
            await admin.close()

        async with AIOKafkaConsumer(bootstrap_servers=cluster.bootstrap_servers, group_id=f"{topic}-group") as other:

            async def has_both():
                return await other.committed(Place(topic, 1)) is not None

            await cluster.until(has_both)
    await cluster.send(topic, range(10), 1)
    async with serving(broker()):
        await seen.until(10)


@pytest.mark.apache
async def test_a_position_that_fell_out_of_the_log_is_committed_before_it_is_followed(cluster, new_broker, new_topic):
    """Retention deletes records of a paused consumer: the next run skips no record that came after the reset."""
    topic, seen = await new_topic(), Gated(free=5)
    place = Place(topic, 0)
    subscriber: Any = (broker := new_broker()).subscriber(topic, **manual(topic, **LATEST))
    subscriber(seen.handle)
    await cluster.send(topic, [-1])
    async with serving(broker, shutdown_timeout_sec=0.1, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 1})
        await cluster.send(topic, range(5))
        await cluster.until_committed(topic, {0: 6})
        subscriber.consumer.pause(place)
        await cluster.send(topic, range(5, 20))
        await cluster.delete_records(topic, 0, before=21)
        subscriber.consumer.resume(place)
        await cluster.until_committed(topic, {0: 21})
        await cluster.send(topic, range(100, 110))
        await seen.until_running(10)
    seen.gate.set()
    seen.values.clear()
    seen.subscribe(again := new_broker(), topic, **LATEST)
    async with serving(again):
        await seen.until(10)
    assert sorted(seen.values) == list(range(100, 110))
