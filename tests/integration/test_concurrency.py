"""How many records are handled at once, and that waiting for a slot causes no eviction (I20)."""

import asyncio
import time
from typing import Any

import pytest
from faststream import BaseMiddleware

from testkit.brokers import wait_until
from tests.integration.helpers import Rebalances, Seen, both_loops, consuming, serving, serving_plainly


SHORT_POLL: dict[str, Any] = {"max_poll_interval_ms": 1500, "heartbeat_interval_ms": 300}


@pytest.mark.asyncio(**both_loops)
async def test_the_limit_is_exact_over_all_subscribers(cluster, new_broker, new_topic):
    """Three subscribers with many records reach the limit together, and never exceed it."""
    topics, broker, seen = [await new_topic(2) for _ in range(3)], new_broker(), Seen()
    for topic in topics:

        @consuming(broker, topic)
        async def handle(value: str):
            with seen.handling(value):
                await asyncio.sleep(0.02)  # handler

        await cluster.send(topic, (f"{topic} {number}" for number in range(60)))
    async with serving(broker, concurrency_limit=7):
        await seen.until(180)
    assert seen.peak == 7
    assert set(seen.counts.values()) == {1}
    for topic in topics:
        assert sum((await cluster.committed(topic)).values()) == 60


async def test_the_limit_holds_when_idle_subscribers_all_get_a_record_at_once(cluster, new_broker, new_topic):
    """Each subscriber has seen the same free slot and fetched: still only one record is handled."""
    topics, broker, seen = [await new_topic() for _ in range(4)], new_broker(), Seen()
    for topic in topics:

        @consuming(broker, topic)
        async def handle(value: str):
            with seen.handling(value):
                await asyncio.sleep(0.1)  # handler

    async with serving(broker, concurrency_limit=1):
        for turn in range(3):
            await asyncio.gather(*(cluster.send(topic, [f"{topic} {turn}"]) for topic in topics))
            await seen.until(4 * (turn + 1))
    assert seen.peak == 1
    assert set(seen.counts.values()) == {1}


@pytest.mark.parametrize("commits", [True, False])
async def test_a_limit_of_zero_is_no_limit(cluster, new_broker, new_topic, commits):
    """Hundreds of records are in their handlers together, whether the library commits or not."""
    topic, broker, seen, release = await new_topic(2), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            await release.wait()

    await cluster.send(topic, range(600))
    async with serving(broker, concurrency_limit=0, enable_batch_commit=commits):
        await seen.until_running(600)
        release.set()
        await seen.until(600)
    assert seen.peak == 600


async def test_the_next_record_starts_as_soon_as_a_slot_is_free(cluster, new_broker, new_topic):
    """With all slots but one taken, other records use that one in turn, without waiting for a polling interval."""
    topic, broker, seen, release = await new_topic(), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number < 2:
                await release.wait()

    await cluster.send(topic, range(50))
    async with serving(broker, concurrency_limit=3):
        await seen.until_running(2)
        began_at = time.monotonic()
        await seen.until(48)
        assert time.monotonic() - began_at < 3
        release.set()
        await seen.until(50)
    assert seen.peak == 3


async def test_slow_handlers_are_not_evicted_while_all_slots_are_taken(cluster, new_broker, new_topic):
    """Handlers that take three times `max_poll_interval_ms` fill the limit: no rebalance, also for waiting subscribers.

    FastStream alone is evicted here, which shows that the test can fail.
    """
    slow, other, alone = await new_topic(), await new_topic(), await new_topic()
    broker, seen, handled = new_broker(), Seen(), Seen()
    listeners = {name: Rebalances() for name in ("slow", "other", "alone")}

    @consuming(broker, slow, listener=listeners["slow"], **SHORT_POLL)
    async def handle_slowly(number: int):
        with seen.handling(number):
            await asyncio.sleep(4.5)  # handler

    @consuming(broker, other, listener=listeners["other"], **SHORT_POLL)
    async def handle_other(number: int):
        with handled.handling(number):
            pass

    plain = new_broker(BaseMiddleware)

    @consuming(plain, alone, listener=listeners["alone"], **SHORT_POLL)
    async def block(_: int):
        await asyncio.sleep(4.5)  # handler

    async with serving(broker, plain, concurrency_limit=3, commit_batch_timeout_sec=0.1):
        await cluster.send(slow, range(3))
        await cluster.send(alone, range(1))
        await seen.until_running(3)
        await cluster.send(other, range(5))
        await wait_until(lambda: listeners["alone"].revoked, 10, "FastStream alone is evicted")
        assert handled.values == []
        await seen.until(3)
        await handled.until(5)
        await cluster.until_committed(slow, {0: 3})
    assert [listeners["slow"].revoked, listeners["other"].revoked] == [[], []]
    assert seen.counts == dict.fromkeys(range(3), 1)


async def test_other_subscribers_go_on_beside_a_slow_one(cluster, new_broker, new_topic):
    """A subscriber whose handlers outlast the poll interval is not evicted, and other subscribers handle records."""
    slow, quick = await new_topic(), await new_topic()
    broker, seen, handled, listener = new_broker(), Seen(), Seen(), Rebalances()

    @consuming(broker, slow, listener=listener, **SHORT_POLL)
    async def handle_slowly(number: int):
        with seen.handling(number):
            await asyncio.sleep(4)  # handler

    @consuming(broker, quick)
    async def handle(number: int):
        with handled.handling(number):
            pass

    async with serving(broker, concurrency_limit=4):
        await cluster.send(slow, range(3))
        await cluster.send(quick, range(200))
        await seen.until_running(3)
        await handled.until(200, timeout_sec=3)
        assert seen.values == []
        await seen.until(3)
    assert listener.revoked == []


async def test_the_record_that_attaches_may_be_slow(cluster, new_broker, new_topic):
    """A plain broker's first record outlasts `max_poll_interval_ms`: no eviction, and it is handled once."""
    topic, broker, seen, listener = await new_topic(), new_broker(), Seen(), Rebalances()

    @consuming(broker, topic, listener=listener, **SHORT_POLL)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(4)  # handler

    await cluster.send(topic, range(3))
    async with serving_plainly(broker, commit_batch_timeout_sec=0.1):
        await cluster.until_committed(topic, {0: 3})
    assert listener.revoked == []
    assert seen.counts == dict.fromkeys(range(3), 1)
