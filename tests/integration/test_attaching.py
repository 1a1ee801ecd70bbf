"""Which subscribers become concurrent: any position of the middleware, and any kind of subscriber."""

import asyncio
from uuid import uuid4

import pytest
from faststream import BaseMiddleware
from faststream.kafka import KafkaRouter, TopicPartition
from faststream.middlewares import AckPolicy

from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware as Ours
from testkit.brokers import create_topic, wait_until
from tests.integration.helpers import Gated, Seen, both_loops, consuming, manual, serving, warnings_of


class Theirs(BaseMiddleware):
    """Another middleware."""


@pytest.mark.parametrize("position", ["only", "first", "last", "added", "inserted"])
async def test_the_middleware_works_in_any_position(cluster, new_broker, new_topic, position):
    """Alone, before or behind other middlewares, added or inserted later: records are handled at once and committed."""
    topic = await new_topic()
    at_once = {"only": [Ours], "first": [Ours, Theirs, Theirs], "last": [Theirs, Theirs, Ours]}
    broker = new_broker(*at_once.get(position, [Theirs]))
    seen = Gated().subscribe(broker, topic)
    if position == "added":
        broker.add_middleware(Ours)
    if position == "inserted":
        broker.insert_middleware(Ours)
    await cluster.send(topic, range(10))
    async with serving(broker):
        await seen.together(10)
    assert await cluster.committed(topic) == {0: 10}


async def test_a_routers_middleware_leaves_other_subscribers_untouched(cluster, new_broker, new_topic, caplog):
    """Only the router's subscribers are concurrent; the broker's own go on one at a time, without a warning."""
    inside, outside = await new_topic(), await new_topic()
    broker, router, seen = new_broker(Theirs), KafkaRouter(middlewares=[Ours]), Seen()
    gated = Gated().subscribe(router, inside)
    broker.include_router(router)

    @consuming(broker, outside, ack_policy=AckPolicy.ACK_FIRST)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0.01)  # handler

    await cluster.send(outside, range(20))
    await cluster.send(inside, range(10))
    async with serving(broker):
        await gated.together(10)
        await seen.until(20)
    assert seen.peak == 1
    assert seen.values == list(range(20))
    assert await cluster.committed(inside) == {0: 10}
    assert warnings_of(caplog) == []


async def test_nested_routers_are_found(cluster, new_broker, new_topic):
    """A router in a router, with prefixes, is concurrent by the inner router's middleware."""
    topic = await new_topic()
    broker, outer, inner = (
        new_broker(Theirs),
        KafkaRouter(prefix=topic[:3]),
        KafkaRouter(prefix=topic[3:6], middlewares=[Ours]),
    )
    seen = Gated().subscribe(inner, topic[6:])
    outer.include_router(inner)
    broker.include_router(outer)
    await cluster.send(topic, range(10))
    async with serving(broker):
        await seen.together(10)
    assert await cluster.committed(topic, f"{topic[6:]}-group") == {0: 10}


async def test_two_brokers_of_one_application_share_the_limit(cluster, new_broker, new_topic):
    """The subscribers of both are attached, and share one limit."""
    topics, brokers, seen = [await new_topic(), await new_topic()], [new_broker(), new_broker()], Gated()
    for broker, topic in zip(brokers, topics, strict=True):
        seen.subscribe(broker, topic)
        await cluster.send(topic, range(10))
    async with serving(*brokers, concurrency_limit=16):
        await wait_until(lambda: seen.peak >= 10, 20, "both handle")
        seen.gate.set()
        await seen.until(20)
    for topic in topics:
        assert await cluster.committed(topic) == {0: 10}


async def test_two_groups_on_one_topic_commit_each_for_itself(cluster, new_broker, new_topic):
    """Each group handles every record; a stuck record of one holds back only that group's offset."""
    topic, broker = await new_topic(), new_broker()
    free, stuck = Gated(free=10).subscribe(broker, topic, group=f"{topic}-1"), Gated(free=4)
    stuck.subscribe(broker, topic, group=f"{topic}-2")
    await cluster.send(topic, range(10))
    async with serving(broker, commit_batch_timeout_sec=0.1):
        await free.until(10)
        await cluster.until_committed(topic, {0: 10}, f"{topic}-1")
        await cluster.until_committed(topic, {0: 4}, f"{topic}-2")
        stuck.gate.set()
        await cluster.until_committed(topic, {0: 10}, f"{topic}-2")


@pytest.mark.asyncio(**both_loops)
async def test_batches_are_concurrent_and_done_as_a_whole(cluster, new_broker, new_topic):
    """Several batches at once, over several partitions; the offsets of a batch are committed together."""
    topic, broker, seen, gate = await new_topic(3), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic, batch=True, max_records=10)
    async def handle(numbers: list[int]):
        with seen.handling(tuple(numbers)):
            if 15 in numbers:
                await gate.wait()

    for partition in range(3):
        await cluster.send(topic, range(partition * 10, partition * 10 + 10), partition)
    async with serving(broker, commit_batch_timeout_sec=0.1):
        await wait_until(lambda: sum(map(len, seen.values)) + sum(map(len, seen.running)) == 30, 20, "all begun")
        (stuck,) = seen.running
        below = {part: min((n % 10 for n in stuck if n // 10 == part), default=10) for part in range(3)}
        await cluster.until_committed(topic, {part: offset for part, offset in below.items() if offset})
        gate.set()
        await cluster.until_committed(topic, {0: 10, 1: 10, 2: 10})
    assert sorted(number for batch in seen.values for number in batch) == list(range(30))


async def test_a_pattern_subscribes_to_several_topics(cluster, new_broker, kafka):
    """`pattern=`: records of all matching topics are handled together, each topic has its own offsets."""
    name, broker, seen = f"pattern-{uuid4().hex}", new_broker(), Gated()
    topics = [f"{name}.one", f"{name}.two"]
    for topic in topics:
        await create_topic(kafka.bootstrap_servers, topic)
        await cluster.send(topic, range(10))
    broker.subscriber(pattern=f"{name}.*", **manual(name))(seen.handle)
    async with serving(broker):
        await wait_until(lambda: seen.peak >= 10, 20, "records of both topics")
        seen.gate.set()
        await seen.until(20)
    for topic in topics:
        assert await cluster.committed(topic, f"{name}-group") == {0: 10}


async def test_manually_assigned_partitions_are_handled_and_committed(cluster, new_broker, new_topic):
    """`partitions=`: concurrent, and committed for the group although there is no rebalance."""
    topic, broker, seen = await new_topic(3), new_broker(), Gated()
    chosen = [TopicPartition(topic, 0), TopicPartition(topic, 2)]
    broker.subscriber(partitions=chosen, **manual(topic))(seen.handle)
    for partition in range(3):
        await cluster.send(topic, range(partition * 10, partition * 10 + 5), partition)
    async with serving(broker, commit_batch_timeout_sec=0.1):
        await seen.together(10)
        await cluster.until_committed(topic, {0: 5, 2: 5})
    assert sorted(seen.values) == [*range(5), *range(20, 25)]


async def test_without_a_group_records_are_concurrent_and_nothing_is_committed(cluster, new_broker, new_topic):
    """A subscriber without `group_id` has no offsets to commit, and is concurrent all the same."""
    topic, broker, seen = await new_topic(), new_broker(), Gated()
    broker.subscriber(topic, **manual(topic) | {"group_id": None})(seen.handle)
    await cluster.send(topic, range(10))
    async with serving(broker):
        await seen.together(10)
    assert await cluster.committed(topic) == {}


@pytest.mark.parametrize(("flush_sec", "more"), [(10, {}), (5.5, {"session_timeout_ms": 6_000})])
async def test_a_flush_that_outlasts_the_groups_patience_is_named(new_broker, new_topic, caplog, flush_sec, more):
    """The warning comes at the start of the subscriber, and says what follows."""
    topic, broker = await new_topic(), new_broker()
    broker.subscriber(topic, **manual(topic), **more)(Gated().handle)
    async with serving(broker, rebalance_flush_timeout_sec=flush_sec):
        pass
    (warning,) = warnings_of(caplog)
    assert topic in warning
    assert "lower rebalance_flush_timeout_sec" in warning


async def test_a_flush_of_any_length_is_fine_where_no_group_waits_so_long(new_broker, new_topic, caplog):
    """No warning if the group waits long enough, or with manual assignment."""
    patient, alone, broker = await new_topic(), await new_topic(), new_broker()
    broker.subscriber(patient, **manual(patient), rebalance_timeout_ms=60_000)(Gated().handle)
    broker.subscriber(partitions=[TopicPartition(alone, 0)], **manual(alone))(Gated().handle)
    async with serving(broker, rebalance_flush_timeout_sec=10):
        pass
    assert warnings_of(caplog) == []
