"""What a handler can say about its record: acknowledged, rejected, again, skipped, stop, or cancelled."""

import asyncio
import logging
from itertools import pairwise

import pytest
from faststream.exceptions import AckMessage, NackMessage, RejectMessage, SkipMessage, StopConsume
from faststream.kafka.annotations import KafkaMessage

from tests.brokers import wait_until
from tests.integration.helpers import Seen, both_loops, consuming, manual, serving


DONE = {
    "ack": lambda message: message.ack(),
    "reject": lambda message: message.reject(),
    "AckMessage": AckMessage,
    "RejectMessage": RejectMessage,
    "SkipMessage": SkipMessage,
}
AGAIN = {"nack": lambda message: message.nack(), "NackMessage": NackMessage}


async def say(how, message):
    """Call the message's method, or raise the exception."""
    if isinstance(how, type):
        raise how
    await how(message)


@pytest.mark.parametrize("how", DONE)
async def test_done_is_done_and_commits_nothing_of_others(cluster, new_broker, new_topic, how):
    """One record says it is done while an earlier one is in its handler: the offset does not pass that one."""
    topic, broker, seen, gate = await new_topic(2), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            if number == 2:
                await gate.wait()
            if number == 4:
                await say(DONE[how], message)

    await cluster.send(topic, range(8), partition=0)
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await seen.until(7)
        await cluster.send(topic, range(10, 13), partition=1)
        await cluster.until_committed(topic, {0: 2, 1: 3})
        gate.set()
        await cluster.until_committed(topic, {0: 8, 1: 3})
    assert set(seen.counts.values()) == {1}


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("how", AGAIN)
async def test_again_is_soon_and_touches_no_other_record(cluster, new_broker, new_topic, how):
    """It is handled again after a short delay, its slot free meanwhile; no other record runs twice."""
    topic, broker, seen, attempts = await new_topic(), new_broker(), Seen(), []

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            if number == 4:
                attempts.append(asyncio.get_running_loop().time())
                if len(attempts) < 3:
                    await say(AGAIN[how], message)

    await cluster.send(topic, range(10))
    async with serving(broker, concurrency_limit=1, commit_batch_timeout_sec=0.05):
        await seen.until(10)
        await cluster.until_committed(topic, {0: 4})
        await cluster.until_committed(topic, {0: 10})
    assert seen.counts == dict.fromkeys(range(10), 1) | {4: 3}
    assert seen.values[-2:] == [4, 4]
    delays = [later - earlier for earlier, later in pairwise(attempts)]
    assert all(0.1 < delay < 3 for delay in delays)


async def test_a_batch_that_is_not_acknowledged_is_handled_again_as_a_whole(cluster, new_broker, new_topic):
    """The same records come once more, and other batches do not."""
    topic, broker, batches = await new_topic(2), new_broker(), []

    @consuming(broker, topic, batch=True, max_records=5)
    async def handle(numbers: list[int]):
        batches.append(sorted(numbers))
        if 3 in numbers and batches.count(sorted(numbers)) == 1:
            raise NackMessage

    await cluster.send(topic, range(10), partition=0)
    await cluster.send(topic, range(10, 20), partition=1)
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 10, 1: 10})
    first, again = (batch for batch in batches if 3 in batch)
    assert first == again
    handled = sorted(number for batch in batches for number in batch)
    assert handled == sorted([*range(20), *again])


async def test_not_acknowledged_at_a_stop_is_left_for_the_next(cluster, new_broker, new_topic):
    """A record that goes on asking for another turn does not hold up the stop, and stays uncommitted."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 3:
                raise NackMessage

    await cluster.send(topic, range(6))
    async with serving(broker):
        await wait_until(lambda: seen.counts[3] >= 2, 10, "handled again")
        loop = asyncio.get_running_loop()
        stopping_at = loop.time()
    assert loop.time() - stopping_at < 5
    assert await cluster.committed(topic) == {0: 3}


async def leak_from_a_cancelled_task():
    """Await a task that somebody has cancelled."""
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


async def raise_it():
    """Raise it as any other error."""
    raise asyncio.CancelledError("by the handler")


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("cancelled", [raise_it, leak_from_a_cancelled_task])
async def test_a_handler_that_raises_cancelled_error_has_failed(cluster, new_broker, new_topic, caplog, cancelled):
    """Its record is done, and the subscriber's loop lives: what comes later is handled."""
    topic, seen = await new_topic(), Seen()
    broker = new_broker(logger=logging.getLogger("test.outcomes"))

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 2:
                await cancelled()

    await cluster.send(topic, range(5))
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 5})
        await cluster.send(topic, range(5, 10))
        await cluster.until_committed(topic, {0: 10})
    assert seen.counts == dict.fromkeys(range(10), 1)
    assert ["CancelledError" in each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == [True]


async def test_stop_consume_stops_its_subscriber_after_a_drain(cluster, new_broker, new_topic):
    """What that subscriber has in flight is finished and committed; the others go on."""
    topic, other = await new_topic(), await new_topic()
    broker, seen, handled = new_broker(), Seen(), Seen()
    subscriber = broker.subscriber(topic, **manual(topic))

    async def handle(number: int):
        with seen.handling(number):
            if number == 9:
                raise StopConsume
            await asyncio.sleep(0.3)  # handler

    subscriber(handle)

    @consuming(broker, other)
    async def handle_other(number: int):
        with handled.handling(number):
            pass

    await cluster.send(topic, range(10))
    async with serving(broker):
        await wait_until(lambda: subscriber.consumer is None, 10, "stopped")
        await wait_until(lambda: len(seen.values) >= 10, 5, "started")
        assert seen.counts == dict.fromkeys(range(10), 1)
        assert await cluster.committed(topic) == {0: 10}
        await cluster.send(other, range(20))
        await handled.until(20)
        await cluster.send(topic, range(10, 12))
    assert len(seen.values) == 10
