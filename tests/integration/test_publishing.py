"""The result of a handler is published by publishers and replies; if that fails, the record has failed."""

import asyncio
import logging

import pytest
from faststream.kafka import TestKafkaBroker
from faststream.kafka.annotations import KafkaMessage

from testkit.brokers import wait_until
from tests.integration.helpers import Seen, both_loops, consuming, publishing, serving


@pytest.mark.asyncio(**both_loops)
async def test_stacked_publishers_get_each_handlers_own_result(cluster, new_broker, new_topic):
    """Two publishers on one handler publish the real result of every record, once."""
    topic, first, second = await new_topic(2), await new_topic(), await new_topic()
    broker, results = new_broker(), {first: [], second: []}

    @consuming(broker, topic)
    @publishing(broker, second)
    @publishing(broker, first)
    async def double(number: int) -> int:
        await asyncio.sleep(0.05 * (number % 3))  # handler
        return number * 2

    @consuming(broker, first)
    async def of_first(number: int):
        results[first].append(number)

    @consuming(broker, second)
    async def of_second(number: int):
        results[second].append(number)

    await cluster.send(topic, range(30))
    async with serving(broker):
        await wait_until(lambda: all(len(got) >= 30 for got in results.values()), 20, lambda: str(results))
    assert {name: sorted(got) for name, got in results.items()} == {key: [2 * i for i in range(30)] for key in results}


async def test_reply_to_gets_the_handlers_result(cluster, new_broker, new_topic):
    """The topic of `reply_to` gets each handler's result, with the correlation id of its request."""
    topic, replies = await new_topic(), await new_topic()
    broker, got = new_broker(), {}

    @consuming(broker, topic)
    async def answer(number: int) -> str:
        await asyncio.sleep(0.05)  # handler
        return f"answer {number}"

    @consuming(broker, replies)
    async def collect(text: str, message: KafkaMessage):
        got[message.correlation_id] = text

    async with serving(broker):
        for number in range(10):
            await broker.publish(number, topic, reply_to=replies, correlation_id=f"id {number}")
        await wait_until(lambda: len(got) >= 10, 20, lambda: str(got))
    assert got == {f"id {number}": f"answer {number}" for number in range(10)}
    assert await cluster.committed(topic) == {0: 10}


async def test_request_gets_the_handlers_result_under_the_test_broker(new_broker):
    """`broker.request` under TestKafkaBroker returns what the handler returned."""
    broker = new_broker()

    @consuming(broker, "requests")
    async def answer(number: int) -> int:
        return number + 1

    async with TestKafkaBroker(broker):
        response = await broker.request(41, "requests")
    assert await response.decode() == 42


async def test_a_publish_that_fails_is_a_failure_of_its_record(cluster, new_broker, new_topic, caplog):
    """A result that Kafka refuses is logged once with its traceback, its record is done, and the others go on."""
    topic, out = await new_topic(), await new_topic()
    broker, seen = new_broker(logger=logging.getLogger("test.publishing"), log_level=logging.DEBUG), Seen()

    @consuming(broker, topic)
    @publishing(broker, out)
    async def grow(number: int) -> str:
        with seen.handling(number):
            return "x" * (2_000_000 if number == 3 else 10)

    results = []

    @consuming(broker, out)
    async def collect(text: str):
        results.append(text)

    await cluster.send(topic, range(8))
    with caplog.at_level(logging.WARNING):
        async with serving(broker, commit_batch_timeout_sec=0.1):
            await cluster.until_committed(topic, {0: 8})
            await wait_until(lambda: len(results) >= 7, 20, lambda: str(results))
    failures = [each for each in caplog.records if each.exc_info]
    assert ["MessageSizeTooLargeError" in each.getMessage() for each in failures] == [True]
    assert seen.counts == dict.fromkeys(range(8), 1)
    assert results == ["x" * 10] * 7
