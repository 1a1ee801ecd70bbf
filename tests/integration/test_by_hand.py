"""Passes that the application drives by hand, and a dead committer or observer."""

import asyncio

import pytest
from aiokafka import ConsumerRecord

from faststream_concurrent_kafka import (
    SetupError,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_alive,
)
from testkit.brokers import wait_until
from tests.integration.helpers import Gated, Seen, consuming, manual, serving, serving_plainly, warnings_of


def record(topic, offset):
    """A record as aiokafka delivers it, whose value is its offset."""
    value = str(offset).encode()
    return ConsumerRecord(topic, 0, offset, 1, 0, None, value, None, 0, len(value), ())


async def test_a_pass_that_is_driven_by_hand_takes_a_slot_and_commits_nothing(cluster, new_broker, new_topic):
    """The caller gets the result; the record is not in the ledger."""
    topic, broker = await new_topic(), new_broker()
    seen = Seen()
    subscriber = broker.subscriber(topic, **manual(topic))

    async def handle(number: int) -> int:
        with seen.handling(number):
            await asyncio.sleep(0.05)  # handler
        return number * 2

    subscriber(handle)

    async with serving(broker, concurrency_limit=2):
        results = await asyncio.gather(*(subscriber.process_message(record(topic, offset)) for offset in range(6)))
        assert [result.body for result in results] == [0, 2, 4, 6, 8, 10]
        assert seen.peak == 2
    assert await cluster.committed(topic) == {}


async def test_a_handler_may_drive_a_pass_of_another_subscriber(cluster, new_broker, new_topic):
    """The call is part of the handler's own work, and takes no second slot."""
    outer, inner, broker, seen = await new_topic(), await new_topic(), new_broker(), Seen()
    within = broker.subscriber(inner, **manual(inner))

    async def handle_within(number: int) -> None:
        with seen.handling(("inner", number)):
            await asyncio.sleep(0)

    within(handle_within)

    @consuming(broker, outer)
    async def handle(number: int):
        with seen.handling(("outer", number)):
            await within.process_message(record(inner, 0))

    async with serving(broker, concurrency_limit=1):
        await cluster.send(outer, range(3))
        await seen.until(6)
    assert await cluster.committed(outer) == {0: 3}


async def test_a_hand_driven_pass_can_be_cancelled_while_it_waits_and_while_it_runs(cluster, new_broker, new_topic):
    """No slot is lost."""
    topic, broker = await new_topic(), new_broker()
    subscriber = broker.subscriber(topic, **manual(topic))
    gated = Gated()
    subscriber(gated.handle)
    async with serving(broker, concurrency_limit=1):
        running = asyncio.create_task(subscriber.process_message(record(topic, 0)))
        await gated.until_running(1)
        waiting = asyncio.create_task(subscriber.process_message(record(topic, 1)))
        await wait_until(lambda: get_kafka_handler_report(broker.context).waiting == 1, 5, "the second one waits")
        for task in (waiting, running):
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
        gated.gate.set()
        await cluster.send(topic, range(2))
        await gated.until(3)
    assert await cluster.committed(topic) == {0: 2}


async def test_a_first_record_that_outlasts_the_stop_is_delivered_again(cluster, new_broker, new_topic):
    """A plain broker whose subscriber is found by that record: cancelled at the deadline, not committed."""
    topic = await new_topic()
    await cluster.send(topic, range(1))
    for patience in ("first", "second"):
        broker = new_broker()
        gated = Gated(free=0 if patience == "first" else 1).subscribe(broker, topic)
        async with serving_plainly(broker, shutdown_timeout_sec=0.3):
            await (gated.until_running(1) if patience == "first" else gated.until(1))
        assert await cluster.committed(topic) == ({} if patience == "first" else {0: 1})


async def test_a_dead_committer_is_named_and_takes_nothing_more(cluster, new_broker, new_topic):
    """Without commits, records would be handled again: health is red, fetching stops, and a stop still ends."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()
    subscriber = broker.subscriber(topic, **manual(topic))

    async def handle(number: int) -> None:
        with seen.handling(number):
            await asyncio.sleep(0)

    subscriber(handle)

    async def broken(_offsets):
        raise TypeError("a bug")

    async with serving(broker, commit_batch_timeout_sec=0.1) as app:
        subscriber.consumer.commit = broken
        await cluster.send(topic, range(3))
        await wait_until(lambda: not get_kafka_handler_report(app.context).is_healthy, 5, "unhealthy")
        assert get_kafka_handler_report(app.context).problems == ("the committer has died: TypeError('a bug')",)
        assert not is_kafka_handler_alive(app.context)
        taken = len(seen.values)
        await cluster.send(topic, range(3, 50))
        # A `getone` was pending when the committer died; its record is not admitted either.
        await wait_until(lambda: get_kafka_handler_report(app.context).in_flight == 0, 5, "nothing in flight")
        assert len(seen.values) <= taken + 1
    assert await cluster.committed(topic) == {}


async def test_max_workers_that_is_declared_later_is_reported(new_broker, new_topic, caplog):
    """The observer reports it, and says what to do instead."""
    topic, broker = await new_topic(), new_broker()
    async with serving(broker) as app:
        late = broker.subscriber(topic, group_id="late", max_workers=3)
        late(Gated().handle)
        await wait_until(lambda: any("max_workers=3" in text for text in warnings_of(caplog)), 5, "it is reported")
        with pytest.raises(SetupError, match="remove max_workers"):
            await initialize_concurrent_processing(app.context)
