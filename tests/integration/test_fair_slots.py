"""A slow subscriber and a fast one on a real broker: the longest wait of the fast one's records."""

import asyncio
import statistics
import time

import pytest
from faststream.kafka import KafkaRouter

from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware
from faststream_concurrent_kafka.settings import Ordering
from testkit.brokers import wait_until
from tests.integration.helpers import Seen, consuming, serving


SLOW_SEC = 2.0
LIMIT = 6
Ours = KafkaConcurrentProcessingMiddleware


@pytest.mark.parametrize("slow_limit", [None, LIMIT - 1])
async def test_a_fast_subscriber_waits_for_one_release_at_most(cluster, new_broker, new_topic, slow_limit):
    """It waits for one slow record at most; if the slow one has its own limit, the fast one never waits."""
    ordering: Ordering = "key" if slow_limit else "unordered"
    topic, other, broker, slow, waits = await new_topic(), await new_topic(), new_broker(), Seen(), []
    router = KafkaRouter(middlewares=[Ours if slow_limit is None else Ours.configured(concurrency_limit=slow_limit)])

    @consuming(router, topic)
    async def handle_slowly(number: int):
        with slow.handling(number):
            await asyncio.sleep(SLOW_SEC)  # handler

    @consuming(broker, other)
    async def handle(sent_at: float):
        waits.append(time.time() - sent_at)

    broker.include_router(router)
    await cluster.send(topic, range(LIMIT * 3))
    async with serving(broker, concurrency_limit=LIMIT, ordering=ordering, shutdown_timeout_sec=SLOW_SEC * 2):
        await slow.until_running(slow_limit or LIMIT)
        for _ in range(30):
            await cluster.send(other, [time.time()])
            await asyncio.sleep(0.1)  # the times at which the records arrive
        await wait_until(lambda: len(waits) == 30, 20, lambda: f"{len(waits)} were handled")
        assert slow.peak == (slow_limit or LIMIT)
        assert statistics.quantiles(waits, n=100)[98] < (1 if slow_limit else SLOW_SEC + 1)
        await cluster.until_committed(topic, {0: LIMIT * 3})
    assert set(slow.counts.values()) == {1}
