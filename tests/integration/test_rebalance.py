"""A second member joins and leaves while handlers run; and the user seeks (I3, I16, I17)."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from testkit.brokers import wait_until
from tests.integration.helpers import AsyncRebalances, Gated, Rebalances, Seen, both_loops, consuming, manual, serving


QUICK: dict[str, Any] = {"heartbeat_interval_ms": 200, "session_timeout_ms": 6000}


@asynccontextmanager
async def another_member(cluster, topic, values):
    """Join the group as another member, fetch records, commit them at once, and leave."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=cluster.bootstrap_servers,
        group_id=f"{topic}-group",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **QUICK,
    )
    await consumer.start()
    leaving = asyncio.Event()

    async def consume():
        while not leaving.is_set():
            taken = await consumer.getmany(timeout_ms=100)
            values.extend(int(record.value or b"") for records in taken.values() for record in records)
            if taken:
                await consumer.commit({each: records[-1].offset + 1 for each, records in taken.items()})

    task = asyncio.create_task(consume())
    try:
        yield consumer
    finally:
        leaving.set()
        await task
        await consumer.stop()


async def send_in_the_background(cluster, topic, count, done):
    """Produce ascending numbers to all partitions, one after the other."""
    for first in range(0, count, 8):
        for number in range(first, min(first + 8, count)):
            await cluster.send(topic, [number], partition=number % 4)
        if done.is_set():
            return first + 8
        await asyncio.sleep(0.02)  # the pace of the producer
    return count


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("listener", [Rebalances, AsyncRebalances])
async def test_nothing_is_lost_or_doubled_when_a_member_joins_and_leaves(cluster, new_broker, new_topic, listener):
    """Handlers that end within the drain are committed before the partitions go: each record is handled once in all."""
    topic, broker, seen, rebalances, elsewhere = await new_topic(4), new_broker(), Seen(), listener(), []

    @consuming(broker, topic, listener=rebalances, **QUICK)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0.3)  # handler

    finished = asyncio.Event()
    sending = asyncio.create_task(send_in_the_background(cluster, topic, 4000, finished))
    async with serving(broker, commit_batch_timeout_sec=0.2):
        await seen.until(20)
        async with another_member(cluster, topic, elsewhere):
            await wait_until(lambda: len(elsewhere) >= 20, 20, lambda: f"the other member's share: {elsewhere}")
            handled = len(seen.values)
            await seen.until(handled + 20)
        left_at = len(seen.values)
        await seen.until(left_at + 20)
        finished.set()
        count = await sending
        everything = set(range(count))
        await wait_until(lambda: everything <= {*seen.values, *elsewhere}, 20, "all handled")
    assert sorted([*seen.values, *elsewhere]) == sorted(everything)
    assert sum((await cluster.committed(topic)).values()) == count
    assert len(rebalances.revoked) == 2
    assert [len(each) for each in rebalances.assigned] == [4, 2, 4]


async def test_two_subscribers_of_one_group_share_its_partitions(cluster, new_broker, new_topic):
    """The second process starts while the first has records in flight; each record is handled once, by either."""
    topic, broker, seen = await new_topic(4), new_broker(), Seen()

    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0.2)  # handler

    first = broker.subscriber(topic, **manual(topic, **QUICK))
    first(handle)
    for partition in range(4):
        await cluster.send(topic, range(partition * 100, partition * 100 + 50), partition)
    async with serving(broker, concurrency_limit=20):
        await seen.until_running(20)
        second = broker.subscriber(topic, **manual(topic, **QUICK))
        second(handle)
        await second.start()
        await wait_until(second.consumer.assignment, 20, "the second one has its share")
        for partition in range(4):
            await cluster.send(topic, range(partition * 100 + 50, partition * 100 + 100), partition)
        await seen.until(400)
        assert len(first.consumer.assignment()) == len(second.consumer.assignment()) == 2
    assert seen.counts == dict.fromkeys(range(400), 1)
    assert await cluster.committed(topic) == dict.fromkeys(range(4), 100)


async def test_what_outlasts_the_drain_is_handled_by_the_next_owner(cluster, new_broker, new_topic):
    """A record that outlasts the revocation is delivered again; no commit for later ones has passed it."""
    topic, broker, elsewhere = await new_topic(2), new_broker(), []
    seen = Gated(free=0)
    seen.subscribe(broker, topic, **QUICK)
    await cluster.send(topic, range(5), partition=0)
    await cluster.send(topic, range(5, 10), partition=1)
    async with serving(broker, rebalance_flush_timeout_sec=0.2, commit_batch_timeout_sec=0.1):
        await seen.until_running(10)
        async with another_member(cluster, topic, elsewhere):
            await wait_until(lambda: len(elsewhere) == 5, 20, lambda: f"one partition's records: {elsewhere}")
            seen.gate.set()
            await wait_until(lambda: {*seen.values, *elsewhere} == set(range(10)), 20, "all handled")
            await cluster.until_committed(topic, {0: 5, 1: 5})
    assert sorted(elsewhere) in (list(range(5)), list(range(5, 10)))
    assert set(seen.values) == set(range(10))


async def test_finished_before_the_deadline_is_not_delivered_again(cluster, new_broker, new_topic):
    """At the drain's deadline, all records below the first unfinished one are committed, and are not run again."""
    topic, broker, elsewhere, seen, gate = await new_topic(), new_broker(), [], Seen(), asyncio.Event()

    @consuming(broker, topic, **QUICK)
    async def handle(number: int):
        with seen.handling(number):
            if number == 15:
                await gate.wait()

    await cluster.send(topic, range(20))
    # Batch and timer are so large that the rebalance commits.
    async with serving(broker, rebalance_flush_timeout_sec=0.3, commit_batch_timeout_sec=600):
        await seen.until(19)
        assert await cluster.committed(topic) == {}
        async with another_member(cluster, topic, elsewhere):
            await wait_until(lambda: len(elsewhere) == 5 or seen.counts[19] == 2, 20, "the rest is delivered again")
            gate.set()
            await wait_until(lambda: {*seen.values, *elsewhere} == set(range(20)), 20, "all handled")
    counts = Counter([*seen.values, *elsewhere])
    assert counts == {number: 1 if number < 15 else 2 for number in range(20)}


async def test_an_old_epoch_never_moves_the_offset_back(cluster, new_broker, new_topic):
    """A record that outlasts the revocation finishes while another member owns its partition, and commits nothing."""
    topic, broker, elsewhere, seen, rebalances = await new_topic(2), new_broker(), [], Seen(), Rebalances()
    gate = asyncio.Event()

    @consuming(broker, topic, listener=rebalances, **QUICK)
    async def handle(number: int):
        with seen.handling(number):
            if number in {5, 105}:
                await gate.wait()

    for partition in range(2):
        await cluster.send(topic, range(partition * 100, partition * 100 + 10), partition)
    async with serving(broker, rebalance_flush_timeout_sec=0.1, commit_batch_timeout_sec=0.05):
        await seen.until(18)
        async with another_member(cluster, topic, elsewhere):
            await wait_until(lambda: len(elsewhere) == 5, 20, lambda: f"the other member's share: {elsewhere}")
            theirs = min(elsewhere) // 100
            await cluster.send(topic, range(theirs * 100 + 10, theirs * 100 + 30), theirs)
            await wait_until(lambda: len(elsewhere) == 25, 20, "the other member goes on")
            gate.set()
            await cluster.until_committed(topic, {theirs: 30, 1 - theirs: 10})
        await wait_until(lambda: len(rebalances.assigned) == 3, 20, "the partition is back")
        # One request has all dirty partitions.
        await cluster.send(topic, [500], 1 - theirs)
        await cluster.until_committed(topic, {theirs: 30, 1 - theirs: 11})
    assert await cluster.committed(topic) == {theirs: 30, 1 - theirs: 11}
    assert not {number for number in seen.values if number // 100 == theirs and number % 100 >= 10}


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("in_flight", [False, True])
async def test_a_seek_back_delivers_again(cluster, new_broker, new_topic, in_flight):
    """A user's seek begins a new epoch: all records from there on are handled again, also finished ones."""
    topic, broker, seen = await new_topic(), new_broker(), Gated(free=5)
    if not in_flight:
        seen.gate.set()
    subscriber = broker.subscriber(topic, **manual(topic))
    subscriber(seen.handle)
    await cluster.send(topic, range(10))
    async with serving(broker, commit_batch_timeout_sec=0.05):
        if in_flight:
            await seen.until_running(5)
            await cluster.until_committed(topic, {0: 5})
        else:
            await cluster.until_committed(topic, {0: 10})
        subscriber.consumer.seek(TopicPartition(topic, 0), 2)
        await wait_until(lambda: seen.counts[4] == 2, 10, "delivered again")
        seen.gate.set()
        await seen.until(18)
        await cluster.send(topic, range(10, 12))
        await cluster.until_committed(topic, {0: 12})
    assert seen.counts == {number: 1 if number in {0, 1, 10, 11} else 2 for number in range(12)}


async def test_a_seek_forward_skips(cluster, new_broker, new_topic):
    """The commit passes the skipped records."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()
    subscriber = broker.subscriber(topic, **manual(topic))

    async def handle(number: int):
        with seen.handling(number):
            if number == 3:
                subscriber.consumer.seek(TopicPartition(topic, 0), 50)

    subscriber(handle)
    await cluster.send(topic, range(100))
    async with serving(broker, concurrency_limit=1):
        await wait_until(lambda: seen.counts[99], 10, lambda: str(seen.values))
    assert await cluster.committed(topic) == {0: 100}
    assert set(range(50, 100)) <= set(seen.values)
    assert len(seen.values) < 100
