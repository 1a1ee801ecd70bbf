"""A topic is deleted under a running consumer, and in most cases created again (I9)."""

import pytest
from faststream.kafka import TopicPartition

from faststream_concurrent_kafka import get_kafka_handler_report, is_kafka_handler_healthy
from testkit.brokers import create_topic, wait_until
from tests.faults.scene import Busy, Watch, admin_at, broker_at, named, topic_at, until_all_committed
from tests.integration.helpers import Cluster, Gated, manual, serving


SETTINGS = {"commit_batch_timeout_sec": 0.1, "commit_failure_timeout_sec": 5}
# A consumer that has nothing left to consume looks for new topics this often.
ATTENTIVE = {"metadata_max_age_ms": 1000}


async def _delete(server, topic):
    """Delete a topic, and return when it is gone."""
    async with admin_at(server.bootstrap_servers) as admin:
        await admin.delete_topics([topic])

        async def gone():
            return topic not in await admin.list_topics()

        await wait_until(gone, 20, f"{topic} is gone")


async def _until_noticed(broker):
    """Wait until the consumer knows that its topic is gone: recreated earlier, it could look like the old one."""
    (subscriber,) = broker.subscribers
    await wait_until(lambda: not subscriber.consumer.assignment(), 20, "nothing is assigned")


async def test_a_topic_is_deleted_and_created_again(strict):
    """The records of the new topic are run, also at offsets that were handled before, without a restart."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await topic_at(strict.bootstrap_servers, "made-anew")
    broker = broker_at(strict.bootstrap_servers, **ATTENTIVE)
    seen = Busy().subscribe(broker, topic)
    await cluster.send(topic, range(100))
    async with serving(broker, **SETTINGS) as app:
        await seen.until(100)
        await until_all_committed(cluster, topic)
        await _delete(strict, topic)
        await _until_noticed(broker)
        await create_topic(strict.bootstrap_servers, topic)
        await cluster.send(topic, range(100, 200))
        await seen.until_all_of(range(200))
        await cluster.send(topic, range(200, 250))
        await seen.until_all_of(range(250))
        await until_all_committed(cluster, topic)
        assert is_kafka_handler_healthy(app.context)
    assert not seen.repeated


async def test_a_topic_is_created_again_before_its_consumer_has_noticed(strict):
    """The position is out of range in the new topic: its records are run from the beginning."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await topic_at(strict.bootstrap_servers, "made-anew-at-once")
    broker = broker_at(strict.bootstrap_servers, **ATTENTIVE)
    seen = Busy().subscribe(broker, topic)
    await cluster.send(topic, range(100))
    async with serving(broker, **SETTINGS):
        await seen.until(100)
        await until_all_committed(cluster, topic)
        await _delete(strict, topic)
        await create_topic(strict.bootstrap_servers, topic)
        # Fewer records than before: with as many, aiokafka's protocol versions can't distinguish the two topics.
        await cluster.send(topic, range(100, 150))
        await seen.until_all_of(range(150))
        await until_all_committed(cluster, topic)
    assert not seen.repeated


async def test_a_topic_is_created_again_while_records_of_the_old_one_are_being_handled(strict):
    """Finished records of the old topic do not count in the new one: each of its records is run."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await topic_at(strict.bootstrap_servers, "made-anew-under-handlers")
    broker = broker_at(strict.bootstrap_servers, **ATTENTIVE)
    seen = Gated().subscribe(broker, topic)
    await cluster.send(topic, range(50))
    async with serving(broker, rebalance_flush_timeout_sec=0.5, **SETTINGS):
        await seen.until_running(50)
        await _delete(strict, topic)
        await _until_noticed(broker)
        await create_topic(strict.bootstrap_servers, topic)
        await cluster.send(topic, range(100, 150))
        await wait_until(lambda: seen.running >= set(range(100, 150)), 30, lambda: f"begun: {seen.running}")
        seen.gate.set()
        await seen.until(100)
        await until_all_committed(cluster, topic)
    assert seen.counts == dict.fromkeys([*range(50), *range(100, 150)], 1)


async def test_a_topic_that_comes_back_is_not_missed_in_silence(strict):
    """With metadata_max_age_ms of five minutes, the new topic's records are run within 20 s, or health says why not."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await topic_at(strict.bootstrap_servers, "comes-back")
    broker = broker_at(strict.bootstrap_servers)
    seen = Busy().subscribe(broker, topic)
    await cluster.send(topic, range(10))
    async with serving(broker, stall_timeout_sec=5, **SETTINGS) as app:
        await seen.until(10)
        await _delete(strict, topic)
        await _until_noticed(broker)
        await create_topic(strict.bootstrap_servers, topic)
        await cluster.send(topic, range(10, 20))
        await wait_until(
            lambda: set(seen.values) >= set(range(20)) or not is_kafka_handler_healthy(app.context),
            20,
            "silently stalled: nothing is assigned or arrives, and health is green",
        )


@pytest.mark.parametrize("by_hand", [False, True], ids=["of a group", "by hand"])
async def test_one_of_two_topics_is_deleted(strict, by_hand):
    """The other topic is handled and committed, although a record of the deleted one can't be committed."""
    servers = strict.bootstrap_servers
    cluster = Cluster(servers)
    stays, goes, group = await topic_at(servers, "stays"), await topic_at(servers, "goes"), named("of-both")
    broker = broker_at(servers)
    seen = Gated(free=1000)
    if by_hand:
        assigned = [TopicPartition(stays, 0), TopicPartition(goes, 0)]
        subscribed = broker.subscriber(partitions=assigned, **manual(stays, group))
        subscribed(seen.handle)
    else:
        seen.subscribe(broker, stays, goes, group=group)
    await cluster.send(stays, range(50))
    await cluster.send(goes, [*range(50, 60), 1000])
    settings = SETTINGS | {"max_uncommitted_tasks": 100, "rebalance_flush_timeout_sec": 0.5}
    async with serving(broker, **settings) as app, Watch.over(app) as watch:
        await seen.until(60)
        await seen.until_running(1)
        await until_all_committed(cluster, stays, group=group)
        await _delete(strict, goes)
        seen.gate.set()
        await seen.until(61)
        for first in range(100, 600, 100):
            await cluster.send(stays, range(first, first + 100))
            await wait_until(lambda last=first + 99: last in seen.values, 15, lambda: f"handled: {len(seen.values)}")
        await until_all_committed(cluster, stays, group=group)

        def acked():
            return {each.topic: each.acked for each in get_kafka_handler_report(app.context).partitions}.get(stays)

        await wait_until(lambda: acked() == 550, 20, lambda: f"acked: {acked()}, {watch.problems}")
        if not by_hand:
            await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, lambda: f"green: {watch.problems}")
    assert set(seen.counts.values()) == {1}
