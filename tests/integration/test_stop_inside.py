"""Stops that a record's handler calls, on a real broker: the producer is closed as soon as such a call returns."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer
from anyio import from_thread

from faststream_concurrent_kafka import is_kafka_handler_healthy, stop_concurrent_processing
from testkit.brokers import group_members, wait_until
from tests.integration.helpers import consuming, manual, publishing, serving, serving_plainly


async def published(cluster, topic):
    """Return the values in a topic."""
    async with AIOKafkaConsumer(topic, bootstrap_servers=cluster.bootstrap_servers, auto_offset_reset="earliest") as it:
        batches = await it.getmany(timeout_ms=3000)
    return sorted(record.value.decode() for records in batches.values() for record in records)


@pytest.mark.parametrize("what", ["broker", "processing"])
@pytest.mark.parametrize("way", ["awaited", "within a time limit", "in a task"])
async def test_the_results_of_all_others_are_published(cluster, new_broker, new_topic, way, what):
    """Committed records have a published result; so has the stopping record, if it does not await the stop."""
    topic, results, broker, begun = await new_topic(), await new_topic(), new_broker(), []

    async def stop():
        if what == "processing":
            await stop_concurrent_processing(broker.context)
        await broker.stop()

    @consuming(broker, topic)
    @publishing(broker, results)
    async def handle(number: int) -> str:
        if number == 5:
            begun.append(asyncio.create_task(stop()) if way == "in a task" else None)
            if way == "awaited":
                await stop()
            elif way == "within a time limit":
                await asyncio.wait_for(stop(), 30)
        else:
            await asyncio.sleep(1)  # handler
        return str(number)

    await cluster.send(topic, range(6))
    async with serving_plainly(broker, name_it=True):
        await wait_until(lambda: not broker.running and begun, 20, "it stops")
        await asyncio.gather(*(task for task in begun if task))
    done = 6 if way == "in a task" else 5
    assert await published(cluster, results) == [str(number) for number in range(done)]
    assert await cluster.committed(topic) == {0: done}


async def test_a_synchronous_handler_may_stop_its_broker_from_its_thread(cluster, new_broker, new_topic):
    """A stop from a thread waits for the other records, and does not take until the deadline."""
    topic, broker, ended = await new_topic(), new_broker(), []

    @consuming(broker, topic)
    def handle(number: int):
        if number == 3:
            from_thread.run(broker.stop)
            assert sorted(ended) == [0, 1, 2]
        else:
            from_thread.run(asyncio.sleep, 1)  # handler
        ended.append(number)

    await cluster.send(topic, range(4))
    async with serving_plainly(broker, name_it=True, shutdown_timeout_sec=60):
        await wait_until(lambda: len(ended) == 4, 20, lambda: f"ended: {ended}")
    assert await cluster.committed(topic) == {0: 4}


@pytest.mark.apache
@pytest.mark.parametrize("how", ["await", "task"])
async def test_a_record_restarts_its_own_subscriber(cluster, new_broker, new_topic, how):
    """One member is left in the group, health is green, and each record is handled once."""
    topic, broker, seen, tasks = await new_topic(), new_broker(), [], []
    subscriber = broker.subscriber(topic, **manual(topic))

    async def restart():
        await subscriber.stop()
        await subscriber.start()

    async def handle(number: int):
        await asyncio.sleep(0.2)  # handler
        if number == 5 and number not in seen:
            if how == "task":
                tasks.append(asyncio.create_task(restart()))
            else:
                await restart()
        seen.append(number)

    subscriber(handle)
    await cluster.send(topic, range(8))
    async with serving(broker, commit_batch_timeout_sec=0.1) as app:
        await wait_until(lambda: len(seen) == 8, 20, lambda: f"handled: {seen}")
        await asyncio.gather(*tasks)
        await cluster.send(topic, range(8, 12))
        await cluster.until_committed(topic, {0: 12})
        assert is_kafka_handler_healthy(app.context)
        assert await group_members(cluster.bootstrap_servers, f"{topic}-group") == 1
    assert sorted(seen) == list(range(12))
