"""Records that still run or have finished when their partition is revoked are not run again when it comes back.

Invariants: I8, I9.
"""

import contextlib
import itertools
from typing import Any

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import TopicAlreadyExistsError
from typing_extensions import override

from faststream_concurrent_kafka import get_kafka_handler_report
from testkit.brokers import create_topic, wait_until
from tests.integration.helpers import PATIENCE_SEC, both_loops, serving
from tests.integration.rebalancing import (
    LEAVES_IT,
    TAKES_IT,
    Held,
    delete_topic,
    may_come_back,
    until_delivered,
    until_rebalances,
    visit,
    watching_offsets,
)


SOON: dict[str, Any] = {"commit_batch_timeout_sec": 0.05, "shutdown_timeout_sec": 2}
AT_ONCE: dict[str, Any] = {"rebalance_flush_timeout_sec": 0} | SOON
BEFORE, AFTER = "before it is sent", "before its answer is seen"
ONCE_EACH = dict.fromkeys(range(12), 1)


async def five_is_held(cluster, topic, held):
    """Handle ten records: those before 5 are committed, 5 still runs, those behind it have ended."""
    await held.until_ended(*range(5), *range(6, 10))
    await held.until_started(5)
    await cluster.until_committed(topic, {0: 5})


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("drain_sec", [0, 0.2])
@pytest.mark.parametrize("visitor", [LEAVES_IT, TAKES_IT])
async def test_a_handler_that_outlasts_the_drain_is_run_once(cluster, new_broker, new_topic, visitor, drain_sec):
    """The running record goes on, its end is committed, and records finished behind it are not run again either."""
    topic, held = await new_topic(), Held(5)
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, **SOON, rebalance_flush_timeout_sec=drain_sec) as app:
        await five_is_held(cluster, topic, held)
        async with visit(cluster, topic, held.rebalances, visitor):
            pass
        await until_delivered(app, 5, 1)
        (partition,) = get_kafka_handler_report(app.context).partitions
        assert (partition.frontier, partition.oldest_unfinished_offset) == (5, 5)
        await cluster.send(topic, [10, 11])
        await held.until_ended(10, 11)
        assert await cluster.committed(topic) == {0: 5}
        held.let_go()
        await cluster.until_committed(topic, {0: 12})
    assert held.runs == ONCE_EACH


async def test_a_handler_that_ends_while_its_partition_is_away_is_not_run_again(cluster, new_broker, new_topic):
    """While another member owns the partition its end commits nothing; when the partition is back, it counts."""
    topic, held = await new_topic(), Held(5)
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, **AT_ONCE):
        await five_is_held(cluster, topic, held)
        async with visit(cluster, topic, held.rebalances, TAKES_IT):
            held.let_go()
            await held.until_ended(5)
            await cluster.send(topic, [10, 11])
            assert await cluster.committed(topic) == {0: 5}
        await cluster.until_committed(topic, {0: 12})
    assert held.runs == ONCE_EACH


@pytest.mark.parametrize(("visitor", "ends"), list(itertools.product([LEAVES_IT, TAKES_IT], [BEFORE, AFTER])))
async def test_handlers_that_end_while_the_revokes_commit_is_under_way(
    cluster, new_broker, new_topic, monkeypatch, *, visitor, ends
):
    """They end too late for the commit of the revoke, and still count as finished."""
    topic, held = await new_topic(), Held(3, 4, 5)
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    # Batch and timer are so large that the first commit is the revoke's.
    async with serving(broker, rebalance_flush_timeout_sec=0, commit_batch_timeout_sec=600):
        await held.until_ended(0, 1, 2, *range(6, 10))
        await held.until_started(3, 4, 5)
        consumer, commits = held.subscriber.consumer, []
        commit = consumer.commit

        async def commit_while_they_end(offsets):
            if commits:
                return await commit(offsets)
            # Without the metadata, which lists 6 to 9.
            commits.append({key: offset for key, (offset, _) in offsets.items()})
            answer = None if ends == BEFORE else await commit(offsets)
            held.let_go()
            await held.until_ended(3, 4, 5)
            return await commit(offsets) if ends == BEFORE else answer

        monkeypatch.setattr(consumer, "commit", commit_while_they_end)
        async with visit(cluster, topic, held.rebalances, visitor):
            if visitor is TAKES_IT:
                assert await cluster.committed(topic) == {0: 3}
        # The stop commits at the latest; the records have to be delivered before it.
        await cluster.send(topic, [10, 11])
        await held.until_ended(10, 11)
    assert commits == [{TopicPartition(topic, 0): 3}]
    assert await cluster.committed(topic) == {0: 12}
    assert held.runs == ONCE_EACH


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("limit", [100, 4])
async def test_a_partition_that_leaves_and_returns_in_two_quick_rebalances(cluster, new_broker, new_topic, limit):
    """Each record is run once, even if none is delivered between two rebalances because running ones fill the limit."""
    topic, held = await new_topic(3), Held(2, 105, 209, 300)
    held.subscribe(broker := new_broker(), topic)
    numbers = [number for first in (0, 100, 200) for number in range(first, first + 10)]
    for partition in range(3):
        await cluster.send(topic, numbers[partition * 10 : partition * 10 + 10], partition)
    async with serving(broker, concurrency_limit=limit, **AT_ONCE) as app:
        await held.until_ended(*(number for number in numbers if number not in held.held))
        await cluster.send(topic, [300], 0)
        await held.until_started(*held.held)
        for visitor in (TAKES_IT, LEAVES_IT):
            for _ in range(2):
                before = len(held.rebalances.revoked)
                async with visit(cluster, topic, None, visitor):
                    # The member leaves before its partitions are assigned.
                    await wait_until(lambda seen=before: len(held.rebalances.revoked) > seen, PATIENCE_SEC, "revoked")
        await wait_until(lambda: len(held.rebalances.assigned[-1]) == 3, PATIENCE_SEC, "all of them are back")
        if limit > len(held.held):
            await until_delivered(app, 9 + 5 + 1, 4)
        held.let_go()
        await cluster.until_committed(topic, {0: 11, 1: 10, 2: 10})
    assert held.runs == dict.fromkeys([*numbers, 300], 1)


@pytest.mark.parametrize("ends", ["while away", "when back"])
@pytest.mark.parametrize("theirs", [8, 12])
async def test_what_another_owner_has_committed_is_theirs(cluster, new_broker, new_topic, theirs, ends):
    """No record below their offset is run here, those above are recognised, and the offset never goes back."""
    topic, held = await new_topic(), Held(5)
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, **AT_ONCE), watching_offsets(cluster, topic) as offsets:
        await five_is_held(cluster, topic, held)
        async with visit(cluster, topic, held.rebalances, TAKES_IT) as owner:
            await cluster.send(topic, range(10, 15))
            await owner.commit({TopicPartition(topic, 0): theirs})
            if ends == "while away":
                held.let_go()
        await held.until_ended(*range(max(theirs, 10), 15))
        await cluster.until_committed(topic, {0: 15})
        held.let_go()
        await held.until_ended(5)
        # One more goes the whole way after it.
        await cluster.send(topic, [15])
        await cluster.until_committed(topic, {0: 16})
        await wait_until(lambda: offsets[-1] == 16, PATIENCE_SEC, "it is seen")
        assert may_come_back(held) == []
    assert offsets == sorted(offsets)
    assert held.runs == dict.fromkeys([*range(10), *range(max(theirs, 10), 16)], 1)


class Seeks(ConsumerRebalanceListener):
    """A user's listener that seeks to the beginning, once."""

    def __init__(self, held, how):
        self.held = held
        self.how = how
        self.armed = False
        self.assigned = []

    @override
    def on_partitions_revoked(self, revoked):
        """Do nothing."""

    @override
    async def on_partitions_assigned(self, assigned):
        if self.armed and assigned:
            self.armed = False
            if self.how == "seek":
                self.held.subscriber.consumer.seek(*assigned, 0)
            else:
                await self.held.subscriber.consumer.seek_to_beginning(*assigned)
        self.assigned.append(sorted(assigned))


@pytest.mark.parametrize("how", ["seek", "seek_to_beginning"])
@pytest.mark.parametrize("stuck", [5, 0])
async def test_a_listener_that_seeks_to_the_beginning_gets_everything(cluster, new_broker, new_topic, stuck, how):
    """All records are run again, finished and running ones, also if nothing was committed yet."""
    topic, held = await new_topic(), Held(stuck)
    listener = Seeks(held, how)
    held.subscribe(broker := new_broker(), topic, listener=listener)
    await cluster.send(topic, range(10))
    async with serving(broker, **AT_ONCE):
        await held.until_ended(*({*range(10)} - {stuck}))
        await cluster.until_committed(topic, {0: stuck} if stuck else {})
        async with visit(cluster, topic, listener, TAKES_IT):
            listener.armed = True
        await wait_until(lambda: set(held.runs.values()) == {2}, 10, lambda: str(held.runs))
        held.let_go()
        await cluster.until_committed(topic, {0: 10})
    assert held.runs == dict.fromkeys(range(10), 2)


async def test_a_seek_back_after_a_rebalance_gets_everything(cluster, new_broker, new_topic):
    """An adopted record is run again after a seek back to it; a later rebalance causes no second run."""
    topic, held = await new_topic(), Held(5)
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, **AT_ONCE) as app:
        await five_is_held(cluster, topic, held)
        async with visit(cluster, topic, held.rebalances, LEAVES_IT):
            await until_delivered(app, 5, 1)
            held.subscriber.consumer.seek(TopicPartition(topic, 0), 5)
            await wait_until(lambda: all(held.runs[each] == 2 for each in range(5, 10)), 10, lambda: str(held.runs))
            await held.until_ended(*range(6, 10))
        await until_delivered(app, 5, 1)
        await cluster.send(topic, [10, 11])
        await held.until_ended(10, 11)
        held.let_go()
        await cluster.until_committed(topic, {0: 12})
    assert held.runs == ONCE_EACH | dict.fromkeys(range(5, 10), 2)


@pytest.mark.apache
@pytest.mark.parametrize("stuck", [0, 5])
async def test_a_topic_that_was_made_anew_has_new_records(cluster, new_broker, new_topic, stuck):
    """New records have the offsets of running and finished ones: they are run."""
    topic, held = await new_topic(), Held(stuck)
    held.subscribe(broker := new_broker(metadata_max_age_ms=300), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, **AT_ONCE):
        await held.until_ended(*({*range(10)} - {stuck}))
        await cluster.until_committed(topic, {0: stuck} if stuck else {})
        known = len(held.rebalances.assigned)
        await delete_topic(cluster, topic)
        # Without the topic, no partition is assigned; or the consumer's metadata request creates it before that.
        await wait_until(
            lambda: len(held.rebalances.assigned) > known,
            PATIENCE_SEC,
            lambda: f"no rebalance: {held.rebalances.assigned}",
        )
        with contextlib.suppress(TopicAlreadyExistsError):
            await create_topic(cluster.bootstrap_servers, topic)
        await cluster.send(topic, range(100, 110))
        await held.until_ended(*range(100, 110))
        held.let_go()
        await cluster.until_committed(topic, {0: 10})
    assert held.runs == dict.fromkeys([*range(10), *range(100, 110)], 1)


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("committed", [None, 1])
async def test_a_batch_that_comes_back_with_other_borders(cluster, new_broker, new_topic, committed):
    """No record of a running or finished batch is run again, and no new record is left out."""
    topic, held = await new_topic(), Held(0)
    held.subscribe_batches(broker := new_broker(), topic)
    async with serving(broker, **AT_ONCE) as app:
        await until_rebalances(held.rebalances, 1)
        await cluster.send(topic, [0, 1])
        await held.until_started(0, 1)
        await cluster.send(topic, [2, 3, 4])
        await held.until_ended(2, 3, 4)
        async with visit(cluster, topic, held.rebalances, TAKES_IT) as owner:
            await cluster.send(topic, range(5, 12))
            if committed is not None:
                await owner.commit({TopicPartition(topic, 0): committed})
        await held.until_ended(*range(5, 12))
        await until_delivered(app, 12 - (committed or 0), 2 - (committed or 0))
        held.let_go()
        await cluster.until_committed(topic, {0: 12})
    assert held.runs == ONCE_EACH
