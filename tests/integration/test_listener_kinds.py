"""Topics, patterns and manual partitions; and the user's own listener is called, whatever it does (I23)."""

import asyncio
import logging
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import ConsumerRebalanceListener
from aiokafka import TopicPartition as Place
from faststream.kafka import TopicPartition
from typing_extensions import override

from testkit.brokers import create_topic, wait_until
from tests.integration.helpers import (
    PATIENCE_SEC,
    Gated,
    Rebalances,
    Seen,
    both_loops,
    consuming,
    manual,
    serving,
    serving_plainly,
)
from tests.integration.rebalancing import TAKES_IT, Held, until_rebalances, visit
from tests.integration.test_rebalance import QUICK


REVOKED, ASSIGNED = "revoked", "assigned"
# Batch and timer are so large that only a rebalance or a stop commits.
NO_BATCH: dict[str, Any] = {"commit_batch_timeout_sec": 600}
SOON: dict[str, Any] = {"commit_batch_timeout_sec": 0.05}
AT_ONCE: dict[str, Any] = {"rebalance_flush_timeout_sec": 0} | SOON


class Keeps(ConsumerRebalanceListener):
    """A user's listener, which records its calls, the running handlers at that time, and the partitions."""

    def __init__(self, seen):
        self.seen = seen
        self.calls = []
        self.running = []
        self.assigned = []

    def keep(self, callback, partitions):
        """Note a call."""
        self.calls.append((callback, sorted(partitions)))
        self.running.append(len(self.seen.running))

    @override
    def on_partitions_revoked(self, revoked):
        self.keep(REVOKED, revoked)

    @override
    def on_partitions_assigned(self, assigned):
        self.keep(ASSIGNED, assigned)
        self.assigned.append(sorted(assigned))


class KeepsCommitted(Keeps):
    """The same with coroutines, one of which requests the committed offsets."""

    def __init__(self, seen):
        super().__init__(seen)
        self.cluster: Any = None
        self.committed = []

    @override
    async def on_partitions_revoked(self, revoked):
        if revoked:
            (partition,) = revoked
            self.committed.append(await self.cluster.committed(partition.topic))
        super().on_partitions_revoked(revoked)

    @override
    async def on_partitions_assigned(self, assigned):
        await asyncio.sleep(0)
        super().on_partitions_assigned(assigned)


class Does(Keeps):
    """A listener that calls a function in one of its callbacks."""

    def __init__(self, seen, callback, do):
        super().__init__(seen)
        self.callback = callback
        self.do = do

    @override
    def keep(self, callback, partitions):
        super().keep(callback, partitions)
        if callback == self.callback:
            self.do(partitions)


def application(broker, *, late=False, **settings):
    """Serve a broker's subscribers, which are found before the start or by their first record."""
    return serving_plainly(broker, **settings) if late else serving(broker, **settings)


# -- subscriptions ---------------------------------------------------------------------------------------------------


async def test_a_topic_that_comes_to_match_the_pattern(cluster, new_broker, kafka):
    """A rebalance assigns it; no record of the other topics is lost or run twice."""
    name, held = f"pattern-{uuid4().hex}", Held(5)
    one, two = f"{name}.one", f"{name}.two"
    broker = new_broker(metadata_max_age_ms=300)
    broker.subscriber(pattern=f"{name}.*", **manual(name, listener=held.rebalances, **QUICK))(held.handle)
    await create_topic(kafka.bootstrap_servers, one)
    await cluster.send(one, range(10))
    async with serving(broker, **AT_ONCE):
        await held.until_ended(*range(5), *range(6, 10))
        await create_topic(kafka.bootstrap_servers, two)
        await wait_until(
            lambda: len(held.rebalances.assigned[-1]) == 2, PATIENCE_SEC, lambda: str(held.rebalances.assigned)
        )
        await cluster.send(two, range(10, 20))
        await cluster.until_committed(two, {0: 10}, f"{name}-group")
        assert await cluster.committed(one, f"{name}-group") == {0: 5}
        held.let_go()
        await cluster.until_committed(one, {0: 10}, f"{name}-group")
    assert held.rebalances.revoked[0] == [Place(one, 0)]
    assert held.runs == dict.fromkeys(range(20), 1)


@pytest.mark.parametrize("metadata", [True, False])
async def test_a_topic_that_is_subscribed_to_at_run_time(cluster, new_broker, new_topic, metadata):
    """The rebalance drains and commits first, like any other, although aiokafka has given up the assignment by then."""
    one, two, held = await new_topic(), await new_topic(), Held(5)
    held.subscribe(broker := new_broker(), one)
    await cluster.send(one, range(10))
    await cluster.send(two, range(100, 110))
    async with serving(broker, commit_metadata=metadata, **NO_BATCH):
        await held.until_ended(*range(5), *range(6, 10))
        asyncio.get_running_loop().call_later(0.3, held.let_go)
        held.subscriber.consumer.subscribe([one, two], listener=held.rebalances)
        await wait_until(
            lambda: len(held.rebalances.assigned[-1]) == 2, PATIENCE_SEC, lambda: str(held.rebalances.assigned)
        )
        assert await cluster.committed(one) == {0: 10}
        await held.until_ended(*range(100, 110))
    assert await cluster.committed(two, f"{one}-group") == {0: 10}
    assert held.runs == dict.fromkeys([*range(10), *range(100, 110)], 1)


async def test_one_of_several_topics_goes_to_another_member_and_comes_back(cluster, new_broker, new_topic):
    """The other topic stays, and each has its own offset: a running record counts for its topic, also later."""
    one, two, held = await new_topic(), await new_topic(), Held(5, 105)
    broker = new_broker()
    consuming(broker, one, two, listener=held.rebalances, **QUICK)(held.handle)
    await cluster.send(one, range(10))
    await cluster.send(two, range(100, 110))
    async with serving(broker, **AT_ONCE):
        await held.until_ended(*range(6, 10), *range(106, 110))
        await cluster.until_committed(one, {0: 5})
        async with visit(cluster, one, None, TAKES_IT):
            await wait_until(lambda: held.rebalances.assigned[-1] == [Place(two, 0)], PATIENCE_SEC, "one is gone")
            held.let_go()
            await cluster.until_committed(two, {0: 10}, f"{one}-group")
            assert await cluster.committed(one) == {0: 5}
        await cluster.until_committed(one, {0: 10})
    assert held.runs == dict.fromkeys([*range(10), *range(100, 110)], 1)


@pytest.mark.asyncio(**both_loops)
async def test_partitions_by_hand_need_no_listener(cluster, new_broker, new_topic):
    """No listener is called; a restart goes on at the committed offset, with unfinished and new records."""
    topic, rebalances = await new_topic(3), Rebalances()
    chosen = [TopicPartition(topic, 0), TopicPartition(topic, 2)]

    def subscribed(held):
        broker = new_broker()
        broker.subscriber(partitions=chosen, **manual(topic, listener=rebalances))(held.handle)
        return broker

    for partition in range(3):
        await cluster.send(topic, range(partition * 10, partition * 10 + 10), partition)
    first, second = Held(5), Held()
    async with serving(subscribed(first), shutdown_timeout_sec=0.3, commit_metadata=False, **SOON):
        await first.until_ended(*range(5), *range(6, 10), *range(20, 30))
        await cluster.until_committed(topic, {0: 5, 2: 10})
    await cluster.send(topic, [30, 31], 2)
    async with serving(subscribed(second), **SOON):
        await cluster.until_committed(topic, {0: 10, 2: 12})
    assert first.runs == dict.fromkeys([*range(10), *range(20, 30)], 1)
    assert second.runs == dict.fromkeys([*range(5, 10), 30, 31], 1)
    assert rebalances.assigned == rebalances.revoked == []


async def test_two_subscribers_share_out_partitions_by_hand(cluster, new_broker, new_topic):
    """In one process and group, each commits its own topic, and a stuck record of one does not hold back the other."""
    topic, broker, stuck, free = await new_topic(2), new_broker(), Held(4), Held()
    for partition, held in enumerate((stuck, free)):
        broker.subscriber(partitions=[TopicPartition(topic, partition)], **manual(topic))(held.handle)
        await cluster.send(topic, range(partition * 10, partition * 10 + 10), partition)
    async with serving(broker, **SOON):
        await cluster.until_committed(topic, {0: 4, 1: 10})
        stuck.let_go()
        await cluster.until_committed(topic, {0: 10, 1: 10})
    assert stuck.runs == dict.fromkeys(range(10), 1)
    assert free.runs == dict.fromkeys(range(10, 20), 1)


# -- a listener of the user's ----------------------------------------------------------------------------------------


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("listener", [Keeps, KeepsCommitted])
async def test_a_listener_is_called_once_when_all_is_drained_and_committed(
    cluster, new_broker, new_topic, *, late, listener
):
    """Each time with its partitions, also if the subscriber was found by its first record, or is started again."""
    topic, broker, seen = await new_topic(), new_broker(logger=logging.getLogger("theirs")), Gated(free=1)
    rebalances, here = listener(seen), [Place(topic, 0)]
    rebalances.cluster = cluster
    subscriber = broker.subscriber(topic, **manual(topic, listener=rebalances, **QUICK))
    subscriber(seen.handle)
    await cluster.send(topic, range(10))
    joined = [(REVOKED, []), (ASSIGNED, here)]
    async with application(broker, late=late, **NO_BATCH):
        await seen.until_running(9)
        asyncio.get_running_loop().call_later(0.5, seen.gate.set)  # in the drain
        async with visit(cluster, topic, rebalances, TAKES_IT):
            assert await cluster.committed(topic) == {0: 10}
        assert rebalances.calls == [*joined, (REVOKED, here), (ASSIGNED, []), *joined]
        assert rebalances.running[2] == 0
        if listener is KeepsCommitted:
            assert rebalances.committed == [{0: 10}]
        await subscriber.stop()
        await subscriber.start()
        await until_rebalances(rebalances, 4)
        assert rebalances.calls[6:] == joined
        await cluster.send(topic, [10])
        await seen.until(11)
    assert seen.counts == dict.fromkeys(range(11), 1)
    assert await cluster.committed(topic) == {0: 11}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("callback", [REVOKED, ASSIGNED])
async def test_a_listener_that_raises(cluster, new_broker, new_topic, caplog, *, callback, late):
    """aiokafka logs the error and goes on; the library drains, commits and begins epochs as usual."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    def fail(partitions):
        raise RuntimeError(f"with {len(partitions)}")

    rebalances = Does(seen, callback, fail)

    @consuming(broker, topic, listener=rebalances, **QUICK)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0.1)  # handler

    await cluster.send(topic, range(10))
    async with application(broker, late=late, **NO_BATCH):
        await seen.until_running(1)
        async with visit(cluster, topic, None, TAKES_IT):
            await wait_until(
                lambda: rebalances.calls[-1] == (ASSIGNED, []), PATIENCE_SEC, lambda: str(rebalances.calls)
            )
            assert await cluster.committed(topic) == {0: 10}
        await cluster.send(topic, [10, 11])
        await seen.until(12)
        async with visit(cluster, topic, None, TAKES_IT):
            await wait_until(
                lambda: rebalances.calls[-1] == (ASSIGNED, []), PATIENCE_SEC, lambda: str(rebalances.calls)
            )
            assert await cluster.committed(topic) == {0: 12}
    assert seen.counts == dict.fromkeys(range(12), 1)
    errors = [str(each.exc_info[1]) for each in caplog.records if each.exc_info and each.exc_info[1]]
    assert errors == [f"with {len(partitions)}" for name, partitions in rebalances.calls if name == callback]


async def test_a_listener_that_seeks(cluster, new_broker, new_topic):
    """It decides where to begin; the commit passes the records that it skips."""
    topic, broker, held = await new_topic(), new_broker(), Held()
    listener = Does(Seen(), ASSIGNED, lambda partitions: held.subscriber.consumer.seek(*partitions, 7))
    held.subscribe(broker, topic, listener=listener)
    await cluster.send(topic, range(10))
    async with serving(broker, **SOON):
        await cluster.until_committed(topic, {0: 10})
    assert held.runs == dict.fromkeys(range(7, 10), 1)


async def test_a_listener_that_pauses(cluster, new_broker, new_topic):
    """The partition stays paused until the user resumes it, whatever the library pauses and resumes meanwhile."""
    topic, broker, held = await new_topic(2), new_broker(), Held(3)
    paused = Place(topic, 1)
    listener = Does(Seen(), ASSIGNED, lambda _: held.subscriber.consumer.pause(paused))
    held.subscribe(broker, topic, listener=listener)
    await cluster.send(topic, range(20), 0)
    await cluster.send(topic, range(100, 120), 1)
    async with serving(broker, max_uncommitted_tasks=4, **SOON):
        await cluster.until_committed(topic, {0: 3})
        await wait_until(lambda: len(held.subscriber.consumer.paused()) == 2, PATIENCE_SEC, "the window is full")
        held.let_go()
        await cluster.until_committed(topic, {0: 20})
        assert held.subscriber.consumer.paused() == {paused}
        assert held.runs == dict.fromkeys(range(20), 1)
        held.subscriber.consumer.resume(paused)
        await cluster.until_committed(topic, {0: 20, 1: 20})
    assert held.runs == dict.fromkeys([*range(20), *range(100, 120)], 1)


async def test_a_pause_of_the_users_outlasts_the_windows(cluster, new_broker, new_topic):
    """Of a partition that the library has paused, too: the library's resume does not undo the user's pause."""
    topic, broker, held = await new_topic(), new_broker(), Held(0)
    held.subscribe(broker, topic)
    await cluster.send(topic, range(20))
    async with serving(broker, max_uncommitted_tasks=4, **SOON):
        await held.until_ended(1, 2, 3)
        consumer, partition = held.subscriber.consumer, Place(topic, 0)
        await wait_until(consumer.paused, PATIENCE_SEC, "the window is full")
        consumer.pause(partition)
        held.let_go()
        await cluster.until_committed(topic, {0: 4})
        assert consumer.paused() == {partition}
        consumer.resume(partition)
        await cluster.until_committed(topic, {0: 20})


@pytest.mark.parametrize("commit_metadata", [True, False])
@pytest.mark.parametrize("kind", ["group", "by hand"])
async def test_a_pause_right_after_the_start(cluster, new_broker, new_topic, kind, commit_metadata):
    """No record is delivered before the user resumes, whatever the library does at the assignment."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()
    partition = Place(topic, 0)
    chosen: dict[str, Any] = {} if kind == "group" else {"partitions": [TopicPartition(topic, 0)]}
    subscriber: Any = broker.subscriber(*([] if chosen else [topic]), **chosen, **manual(topic))

    async def handle(number: int):
        with seen.handling(number):
            pass

    subscriber(handle)
    await cluster.send(topic, range(20))
    async with serving(broker, commit_metadata=commit_metadata, **SOON):
        subscriber.consumer.pause(partition)
        # The records would have been delivered by now: the broker has answered a later fetch of the same consumer.
        await subscriber.consumer.end_offsets([partition])
        await cluster.until_committed(topic, {})
        assert subscriber.consumer.paused() == {partition}
        assert seen.values == []
        subscriber.consumer.resume(partition)
        await cluster.until_committed(topic, {0: 20})
