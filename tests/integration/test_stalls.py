"""No record arrives: when this is a stall, and when there simply are no records (I30)."""

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    FailurePolicy,
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_alive,
    is_kafka_handler_healthy,
)
from testkit.brokers import create_topic, wait_until
from tests.integration.helpers import PATIENCE_SEC, Cluster, Gated, Seen, consuming, manual, serving
from tests.integration.rebalancing import delete_topic


LIMIT_SEC = 2.0
SETTINGS = {"stall_timeout_sec": LIMIT_SEC, "commit_batch_timeout_sec": 0.05}
# The observer takes a sample per second.
LONG_ENOUGH_SEC = LIMIT_SEC + 2.5


async def until_red(app, *words, timeout_sec=PATIENCE_SEC):
    """Wait until health is red with these words; check that the process stays alive."""

    def problems():
        return get_kafka_handler_report(app.context).problems

    def is_said():
        return any(all(word in problem for word in words) for problem in problems())

    await wait_until(is_said, timeout_sec, lambda: f"{words} in {problems()}")
    assert not is_kafka_handler_healthy(app.context)
    assert is_kafka_handler_alive(app.context)


async def assert_green(app):
    """Check that health stays green for longer than the limit."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LONG_ENOUGH_SEC
    while loop.time() < deadline:
        assert get_kafka_handler_report(app.context).problems == ()
        await asyncio.sleep(0.1)


class Counting(Seen):
    """A handler that notes its records."""

    subscriber: Any

    async def handle(self, number: int):
        """Handle a record."""
        with self.handling(number):
            pass


def counting(broker, *topics, **more):
    """Subscribe one."""
    seen = Counting()
    seen.subscriber = broker.subscriber(*topics, **manual(topics[0], **more))
    seen.subscriber(seen.handle)
    return seen


@pytest.mark.cluster
async def test_a_broker_that_falls_silent_is_noticed_although_nothing_is_to_be_committed(own_kafka, new_topic):
    """Health is red after the limit, with the reason, and green when the broker answers again; records arrive."""
    server = own_kafka()
    cluster = Cluster(server.bootstrap_servers)
    topic = await new_topic(bootstrap=server.bootstrap_servers)
    broker = KafkaBroker(server.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    seen = counting(broker, topic)
    await cluster.send(topic, range(10))
    async with serving(broker, **SETTINGS) as app:
        await seen.until(10)
        await cluster.until_committed(topic, {0: 10})
        assert is_kafka_handler_healthy(app.context)
        server.pause(0)
        try:
            await until_red(app, f"{topic}[0]", "does not answer")
        finally:
            server.resume(0)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), PATIENCE_SEC, "green again")
        await cluster.send(topic, range(10, 20))
        await seen.until(20)
    assert seen.counts == dict.fromkeys(range(20), 1)


async def test_a_consumer_that_is_not_asked_for_records_is_noticed(cluster, new_broker, new_topic):
    """FastStream's loop is alive but stuck: there is lag, and no record is delivered."""
    topic = await new_topic()
    broker = new_broker()
    seen = counting(broker, topic)
    await cluster.send(topic, range(5))
    async with serving(broker, **SETTINGS) as app:
        await seen.until(5)
        stuck = asyncio.Event()
        get_msg = seen.subscriber.get_msg

        async def get_stuck(consumer):
            await stuck.wait()
            return await get_msg(consumer)

        seen.subscriber.get_msg = get_stuck
        # The pending call fetches some of them.
        await cluster.send(topic, range(5, 205))
        await until_red(app, f"{topic}[0]", "before the end")
        stuck.set()
        await seen.until(205)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), PATIENCE_SEC, "green again")
        seen.subscriber.get_msg = get_msg


@pytest.mark.apache
async def test_without_an_offset_to_begin_at_it_says_that_it_cannot(cluster, new_broker, new_topic, caplog):
    """With `auto_offset_reset="none"` and no committed offset, health is red with the reason, logged once."""
    topic = await new_topic()
    await cluster.send(topic, range(5))
    broker = new_broker()
    seen = counting(broker, topic, auto_offset_reset="none")
    async with serving(broker, **SETTINGS) as app:
        await until_red(app, "not been able to fetch", "NoOffsetForPartition")
        assert not seen.values
    said = [each for each in caplog.records if "can't fetch" in each.getMessage()]
    assert len(said) == 1


@pytest.mark.apache
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
async def test_an_idle_topic_that_ends_in_an_aborted_transaction_is_green(cluster, new_broker, new_topic, isolation):
    """At the end of the log health stays green."""
    topic = await new_topic()
    broker = new_broker()
    seen = counting(broker, topic, isolation_level=isolation)
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap_servers, transactional_id=topic)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"1")
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"2")
        await producer.abort_transaction()
    finally:
        await producer.stop()
    async with serving(broker, **SETTINGS) as app:
        await seen.until(1 if isolation == "read_committed" else 2)
        await assert_green(app)


async def test_a_subscriber_that_is_never_started_is_noticed(cluster, new_broker, new_topic):
    """An application may go on without its broker after a failed start; a late start turns health green."""
    topic, broker = await new_topic(), new_broker()
    seen = counting(broker, topic)
    handler = await initialize_concurrent_processing(broker.context, broker=broker, stall_timeout_sec=1.0)
    assert is_kafka_handler_healthy(broker.context)
    await wait_until(lambda: not is_kafka_handler_healthy(broker.context), PATIENCE_SEC, "red")
    (problem,) = get_kafka_handler_report(broker.context).problems
    assert topic in problem
    assert "has not been started for" in problem
    await broker.start()
    await cluster.send(topic, range(5))
    await seen.until(5)
    assert is_kafka_handler_healthy(broker.context)
    await broker.stop()
    assert is_kafka_handler_healthy(broker.context)
    await handler.stop()


async def test_who_is_busy_or_paused_is_green(cluster, new_broker, new_topic):
    """Health stays green while all slots are taken, or the user has paused a partition, for longer than the limit."""
    busy, paused = await new_topic(), await new_topic()
    broker = new_broker()
    gated = Gated().subscribe(broker, busy)
    seen = counting(broker, paused)
    await cluster.send(paused, range(3))
    async with serving(broker, **SETTINGS, concurrency_limit=4) as app:
        await seen.until(3)
        seen.subscriber.consumer.pause(TopicPartition(paused, 0))
        await cluster.send(paused, range(3, 5))
        await cluster.send(busy, range(20))
        await gated.until_running(4)
        await assert_green(app)
        seen.subscriber.consumer.resume(TopicPartition(paused, 0))
        gated.gate.set()
        await gated.until(20)
        await seen.until(5)


async def test_a_partition_that_waits_behind_a_stuck_record_is_red_and_names_it(cluster, new_broker, new_topic):
    """Health names the record behind which the window is full, its place and age; not while the user has paused."""
    topic = await new_topic(2)
    broker, seen, stuck, go_on = new_broker(), Seen(), 6, asyncio.Event()
    subscriber = broker.subscriber(topic, **manual(topic))

    async def handle(number: int):
        with seen.handling(number):
            if number == stuck:
                await go_on.wait()

    subscriber(handle)
    await cluster.send(topic, range(100), partition=0)
    async with serving(broker, **SETTINGS, max_uncommitted_tasks=20) as app:
        await until_red(app, f"{topic}[0]", "window is full", "record at 6,", "in attempt 1", "test_stalls.py")
        assert max(seen.values) < 30
        await cluster.send(topic, range(100, 200), partition=1)
        await wait_until(lambda: set(range(100, 200)) <= set(seen.values), PATIENCE_SEC, "the other one goes on")
        assert len(get_kafka_handler_report(app.context).problems) == 1
        subscriber.consumer.pause(TopicPartition(topic, 0))
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 5, "paused on purpose")
        subscriber.consumer.resume(TopicPartition(topic, 0))
        await until_red(app, "record at 6,")
        go_on.set()
        await seen.until(200)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), PATIENCE_SEC, "green again")
    assert seen.counts == dict.fromkeys(range(200), 1)


async def test_a_record_that_fails_and_fails_is_named_by_its_next_attempt(cluster, new_broker, new_topic):
    """Its window is full behind a record that is retried, and no task hangs."""
    topic = await new_topic()
    broker, is_mended = new_broker(), asyncio.Event()
    policy = FailurePolicy(max_attempts=0, first_backoff_sec=0.2, max_backoff_sec=0.2)

    @consuming(broker, topic)
    async def handle(number: int):
        if number == 3 and not is_mended.is_set():
            raise ConnectionError

    await cluster.send(topic, range(100))
    async with serving(broker, **SETTINGS, max_uncommitted_tasks=20, on_failure=policy) as app:
        await until_red(app, f"{topic}[0]", "window is full", "record at 3,", "waiting for attempt")
        is_mended.set()
        await cluster.until_committed(topic, {0: 100})
        await wait_until(lambda: is_kafka_handler_healthy(app.context), PATIENCE_SEC, "green again")


@pytest.mark.apache
async def test_members_that_evict_each_other_are_named(cluster, new_broker, new_topic):
    """Two processes with one `group_instance_id` fence each other, for ever."""
    topic = await new_topic(2)
    twins = {"group_instance_id": "twin", "session_timeout_ms": 6000, "heartbeat_interval_ms": 200}
    broker = new_broker()
    seen = counting(broker, topic, **twins)
    async with serving(broker, **SETTINGS) as app:
        await cluster.send(topic, range(10))
        await seen.until(10)
        servers, group = cluster.bootstrap_servers, f"{topic}-group"
        twin = AIOKafkaConsumer(topic, bootstrap_servers=servers, group_id=group, enable_auto_commit=False, **twins)
        await twin.start()
        try:
            await until_red(app, topic, "evicted from its group 3 times", "another group_instance_id=twin")
        finally:
            await twin.stop()


@pytest.mark.cluster
async def test_a_topic_that_is_deleted_is_named_and_found_when_it_is_back(own_kafka, new_topic):
    """The consumer requests metadata every few seconds, not only after five minutes; its other topic goes on."""
    server = own_kafka(settings={"auto.create.topics.enable": "false"})
    cluster = Cluster(server.bootstrap_servers)
    kept, deleted = [await new_topic(bootstrap=server.bootstrap_servers) for _ in range(2)]
    broker = KafkaBroker(server.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    seen = counting(broker, kept, deleted)
    async with serving(broker, **SETTINGS) as app:
        await cluster.send(kept, range(3))
        await cluster.send(deleted, range(3, 6))
        await seen.until(6)
        await delete_topic(cluster, deleted)
        await until_red(app, "no topic", deleted)
        await cluster.send(kept, range(6, 9))
        await seen.until(9)
        await cluster.until_committed(kept, {0: 6})
        await create_topic(server.bootstrap_servers, deleted)
        await cluster.send(deleted, range(9, 12))
        await seen.until(12)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), PATIENCE_SEC, "green again")
