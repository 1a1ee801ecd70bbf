"""The window of a partition limits its uncommitted records; only a partition with a full window is paused (I24)."""

import asyncio

import pytest

from faststream_concurrent_kafka import get_kafka_handler_report
from testkit.brokers import wait_until
from tests.integration.helpers import Gated, Seen, both_loops, consuming, serving


WINDOW = 10


def window_of(app, partition):
    """Return the number of fetched and uncommitted records of a partition, from the report."""
    partitions = get_kafka_handler_report(app.context).partitions
    return next((each.uncommitted for each in partitions if each.partition == partition), None)


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("limit", [0, 50])
async def test_a_full_window_pauses_its_own_partition_alone(cluster, new_broker, new_topic, limit):
    """Behind a stuck record a partition is paused at its window, others go on; an acknowledgement resumes it."""
    topic, broker, seen, gate = await new_topic(2), new_broker(), Seen(), asyncio.Event()
    windows = []

    # A resumed partition waits for the pending fetch: by default half a second each time.
    @consuming(broker, topic, fetch_max_wait_ms=20)
    async def handle(number: int):
        with seen.handling(number):
            windows.append(window_of(app, 0) or 0)
            if number == 0:
                await gate.wait()

    await cluster.send(topic, range(300), partition=0)
    await cluster.send(topic, range(1000, 1300), partition=1)
    async with serving(
        broker, concurrency_limit=limit, max_uncommitted_tasks=WINDOW, commit_batch_timeout_sec=0.05
    ) as app:
        await seen.until(300 + WINDOW - 1)
        await cluster.until_committed(topic, {1: 300})
        assert sorted(value for value in seen.values if value < 1000) == list(range(1, WINDOW))
        assert window_of(app, 0) == WINDOW
        gate.set()
        await cluster.until_committed(topic, {0: 300, 1: 300})
    assert max(windows) == WINDOW
    assert set(seen.counts.values()) == {1}


async def test_a_full_window_does_not_wait_for_batch_or_timer(cluster, new_broker, new_topic):
    """When the record behind which it is full has ended, it is committed at once, and the partition goes on."""
    topic, broker, seen, gate = await new_topic(), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic, fetch_max_wait_ms=20)
    async def handle(number: int):
        with seen.handling(number):
            if number == 0:
                await gate.wait()

    await cluster.send(topic, range(3 * WINDOW))
    async with serving(broker, max_uncommitted_tasks=WINDOW, commit_batch_timeout_sec=3600):
        await seen.until(WINDOW - 1)
        assert await cluster.committed(topic) in ({}, {0: 0})
        gate.set()
        await seen.until(3 * WINDOW)
    assert set(seen.counts.values()) == {1}


async def test_what_room_a_stuck_record_leaves_is_used(cluster, new_broker, new_topic):
    """A partition with a full window is resumed, although more than half of the window stays uncommitted."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()
    slow, stuck = asyncio.Event(), asyncio.Event()

    @consuming(broker, topic, fetch_max_wait_ms=20)
    async def handle(number: int):
        with seen.handling(number):
            if number < WINDOW:
                await slow.wait()
            if number == 3:
                await stuck.wait()

    await cluster.send(topic, range(5 * WINDOW))
    async with serving(broker, max_uncommitted_tasks=WINDOW) as app:
        await seen.until_running(WINDOW)
        slow.set()
        await seen.until(WINDOW + 3 - 1)
        assert (seen.running, window_of(app, 0)) == ({3}, WINDOW)
        stuck.set()
        await seen.until(5 * WINDOW)


async def test_memory_is_bounded_without_a_limit_and_without_commits(cluster, new_broker, new_topic):
    """`concurrency_limit=0, enable_batch_commit=False`: no more than `max_uncommitted_tasks` are in flight."""
    topic, broker = await new_topic(2), new_broker()
    seen = Gated().subscribe(broker, topic)
    await cluster.send(topic, range(100))
    async with serving(broker, concurrency_limit=0, enable_batch_commit=False, max_uncommitted_tasks=WINDOW) as app:
        await seen.until_running(WINDOW)
        assert get_kafka_handler_report(app.context).in_flight == WINDOW
        seen.gate.set()
        await seen.until(100)
    assert seen.peak == WINDOW


async def test_the_smallest_window_still_makes_progress(cluster, new_broker, new_topic):
    """With a window of one record, each is committed before the next is fetched, and no task hangs."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            pass

    await cluster.send(topic, range(20))
    async with serving(broker, concurrency_limit=0, max_uncommitted_tasks=1):
        await cluster.until_committed(topic, {0: 20})
    assert seen.peak == 1
    assert seen.values == list(range(20))


async def test_a_batch_may_overrun_its_window_once(cluster, new_broker, new_topic):
    """All records of a `getmany` are admitted; then the partition is paused until its batches are acknowledged."""
    topic, broker, seen, gate = await new_topic(), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic, batch=True, max_records=8)
    async def handle(numbers: list[int]):
        with seen.handling(tuple(numbers)):
            await gate.wait()

    await cluster.send(topic, range(100))
    async with serving(broker, concurrency_limit=0, max_uncommitted_tasks=WINDOW) as app:
        await wait_until(lambda: (window_of(app, 0) or 0) >= WINDOW, 20, "the window is full")
        assert window_of(app, 0) < WINDOW + 8
        gate.set()
        await cluster.until_committed(topic, {0: 100})
    assert sorted(number for batch in seen.values for number in batch) == list(range(100))
