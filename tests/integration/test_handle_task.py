"""`handle_task` with records that a reader fetches by hand, on a real broker."""

import asyncio

from faststream_concurrent_kafka import KafkaConcurrentHandler, is_kafka_handler_healthy
from tests.integration.helpers import Gated, manual, serving


async def test_records_fetched_by_hand_are_handled_at_once_and_committed_in_order(cluster, new_broker, new_topic):
    """With another concurrent subscriber; a failing record, and one of another group, count as done."""
    topic, read = await new_topic(), await new_topic()
    broker, gate, handled = new_broker(), asyncio.Event(), []
    seen, reader = Gated().subscribe(broker, topic), broker.subscriber(read, **manual(read))

    async def handle(number):
        if number == 2:
            await gate.wait()
        if number == 3:
            raise ValueError(number)
        handled.append(number)

    async def hand_over():
        message = await reader.get_one(timeout=30)
        assert message is not None
        await KafkaConcurrentHandler().handle_task(handle(int(message.body)), message.raw_message, message)

    await cluster.send(topic, range(5))
    await cluster.send(read, range(4))
    await cluster.send(read, [4], headers=[("topic_group", b"another")])
    await cluster.send(read, range(5, 8))
    async with serving(broker, commit_batch_timeout_sec=0.05) as app:
        for _ in range(8):
            await hand_over()
        await cluster.until_committed(read, {0: 2})
        assert is_kafka_handler_healthy(app.context)
        gate.set()
        await cluster.until_committed(read, {0: 8})
        await seen.together(5)
        await cluster.send(read, [8])
        await hand_over()
        await cluster.until_committed(read, {0: 9})
    assert sorted(handled) == [0, 1, 2, 5, 6, 7, 8]
