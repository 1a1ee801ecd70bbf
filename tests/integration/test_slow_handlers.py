"""Handlers that take five times `max_poll_interval_ms`, before and after a rebalance, in any order (I22)."""

import asyncio
from typing import Any

import pytest

from testkit.brokers import wait_until
from tests.integration.helpers import Rebalances, Seen, consuming, serving
from tests.integration.test_rebalance import another_member
from tests.stop.driver import bystander


POLL_SEC = 1.0


@pytest.mark.parametrize("ordering", ["unordered", "key"])
async def test_slow_handlers_are_not_evicted_also_after_a_rebalance(cluster, new_broker, new_topic, ordering):
    """They fill the limit twice: the only rebalances are those of a member that joins and leaves; each runs once."""
    topic, broker, seen, rebalances, elsewhere = await new_topic(4), new_broker(), Seen(), Rebalances(), []
    poll: dict[str, Any] = {"max_poll_interval_ms": int(POLL_SEC * 1000), "heartbeat_interval_ms": 300}

    @consuming(broker, topic, listener=rebalances, **poll)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(5 * POLL_SEC)  # handler

    async with serving(
        broker, concurrency_limit=4, ordering=ordering, commit_batch_timeout_sec=0.1, rebalance_flush_timeout_sec=0.2
    ):
        for partition in range(4):
            await cluster.send(topic, [partition], partition=partition)
        await seen.until(4)
        await cluster.until_committed(topic, dict.fromkeys(range(4), 1))
        async with another_member(cluster, topic, elsewhere):
            await wait_until(
                lambda: [len(each) for each in rebalances.assigned] == [4, 2], 20, lambda: f"{rebalances.assigned}"
            )
        await wait_until(
            lambda: [len(each) for each in rebalances.assigned] == [4, 2, 4], 20, lambda: f"{rebalances.assigned}"
        )
        for partition in range(4):
            await cluster.send(topic, [4 + partition, 8 + partition], partition=partition)
        await seen.until(12)
        await cluster.until_committed(topic, dict.fromkeys(range(4), 3))
    assert len(rebalances.assigned) == 3
    assert elsewhere == []
    assert set(seen.counts.values()) == {1}


@pytest.mark.parametrize("what", ["stop", "rebalance"])
async def test_who_waits_for_slow_handlers_counts_as_polling(cluster, new_broker, new_topic, what):
    """During the drain of a stop or a rebalance: the member is not evicted, so finished records are committed."""
    topic, other, broker, seen, elsewhere = await new_topic(2), await new_topic(), new_broker(), Seen(), []
    poll: dict[str, Any] = {"max_poll_interval_ms": int(POLL_SEC * 1000), "heartbeat_interval_ms": 100}

    @consuming(broker, topic, **poll)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(3 * POLL_SEC)  # handler

    # A bystander, because an empty group accepts commits of any client.
    async with (
        bystander(cluster.bootstrap_servers, f"{topic}-group", other),
        serving(broker, concurrency_limit=2, commit_batch_timeout_sec=100, rebalance_flush_timeout_sec=5),
    ):
        for partition in range(2):
            await cluster.send(topic, [partition], partition=partition)
        await seen.until_running(2)
        if what == "rebalance":
            async with another_member(cluster, topic, elsewhere):
                await cluster.until_committed(topic, {0: 1, 1: 1})
    assert await cluster.committed(topic) == {0: 1, 1: 1}
    assert set(seen.counts.values()) == {1}
    assert elsewhere == []
