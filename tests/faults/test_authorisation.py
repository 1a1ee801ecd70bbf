"""An operator withdraws a right from the group, and grants it again (I14)."""

import pytest

from faststream_concurrent_kafka import get_kafka_handler_report, is_kafka_handler_healthy
from testkit.brokers import group_members, wait_until
from tests.faults.scene import (
    GROUP,
    IMPATIENT,
    TOPIC,
    Busy,
    Busyness,
    Watch,
    allow_reading,
    broker_at,
    deny_reading,
    named,
    topic_at,
    until_all_committed,
)
from tests.integration.helpers import Cluster, Gated, serving


SESSION_SEC = IMPATIENT["session_timeout_ms"] / 1000
SETTINGS = {"commit_batch_timeout_sec": 0.1, "commit_failure_timeout_sec": 3}


def _says(app, what):
    return any(what in each for each in get_kafka_handler_report(app.context).problems)


@pytest.mark.slow("it outlasts a session, and joins the group again")
async def test_commits_are_refused_to_the_group(strict):
    """Health is red with the reason and the process idle; after the grant it rejoins by itself, and nothing is lost."""
    servers = strict.bootstrap_servers
    cluster = Cluster(servers)
    topic = await topic_at(servers, "refused-to-the-group", 2)
    broker = broker_at(servers)
    seen = Gated(free=50).subscribe(broker, topic)
    await cluster.send(topic, range(100))
    async with serving(broker, **SETTINGS) as app, Watch.over(app) as watch:
        await seen.until(50)
        await seen.until_running(50)
        await deny_reading(servers, GROUP, f"{topic}-group")
        refused = Busyness()
        seen.gate.set()
        await seen.until(100)
        await wait_until(lambda: _says(app, "GroupAuthorizationFailed"), 20, lambda: f"problems: {watch.problems}")
        await cluster.send(topic, range(100, 150))
        await wait_until(lambda: refused.seconds > SESSION_SEC + 2, 20, "it is a member no more")
        assert refused.share < 0.5
        await allow_reading(servers, GROUP, f"{topic}-group")
        await wait_until(lambda: set(seen.values) >= set(range(150)), 40, lambda: f"handled: {sorted(seen.values)}")
        await until_all_committed(cluster, topic)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, lambda: f"green: {watch.problems}")
    assert not {number for number, count in seen.counts.items() if count > 1}


async def test_a_group_is_refused_for_a_moment_while_nothing_is_to_be_committed(strict):
    """Later records are handled and committed without a restart."""
    servers = strict.bootstrap_servers
    cluster = Cluster(servers)
    topic = await topic_at(servers, "refused-for-a-moment")
    broker = broker_at(servers)
    seen = Busy().subscribe(broker, topic)
    await cluster.send(topic, range(50))
    async with serving(broker, stall_timeout_sec=5, **SETTINGS) as app:
        await seen.until(50)
        await until_all_committed(cluster, topic)
        await deny_reading(servers, GROUP, f"{topic}-group")
        refused = Busyness()
        await wait_until(lambda: refused.seconds > 2, 5, "some heartbeats are refused")
        await allow_reading(servers, GROUP, f"{topic}-group")
        await cluster.send(topic, range(50, 100))
        await wait_until(
            lambda: set(seen.values) >= set(range(100)) or not is_kafka_handler_healthy(app.context),
            20,
            "silently stalled: nothing arrives, and health is green",
        )
        await seen.until_all_of(range(100))
        await until_all_committed(cluster, topic)


async def test_a_group_is_refused_while_all_slots_are_taken(strict):
    """A poll that fetches nothing finds that heartbeats have ended: the consumer rejoins before a slot is free."""
    servers = strict.bootstrap_servers
    cluster = Cluster(servers)
    topic = await topic_at(servers, "refused-while-busy")
    group = f"{topic}-group"
    broker = broker_at(servers)
    seen = Gated().subscribe(broker, topic, **IMPATIENT)

    async def has_members(count):
        return await group_members(servers, group) == count

    await cluster.send(topic, range(20))
    async with serving(broker, concurrency_limit=5, rebalance_flush_timeout_sec=0.5, **SETTINGS) as app:
        await seen.until_running(5)
        await deny_reading(servers, GROUP, group)
        await wait_until(lambda: has_members(0), 2 * SESSION_SEC, "it is evicted")
        await allow_reading(servers, GROUP, group)
        await wait_until(lambda: has_members(1), 10, "it joins again, as busy as it is")
        assert seen.values == []
        seen.gate.set()
        await seen.until(20)
        await until_all_committed(cluster, topic)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, "green again")
    assert set(seen.counts.values()) == {1}


@pytest.mark.parametrize("in_flight", [False, True], ids=["with nothing else dirty", "with records in flight"])
async def test_one_of_two_topics_is_refused(strict, in_flight):
    """The other topic is committed, health names the refused one; after the grant everything is committed."""
    servers = strict.bootstrap_servers
    cluster = Cluster(servers)
    free, refused, group = await topic_at(servers, "free"), await topic_at(servers, "refused"), named("of-both")
    broker = broker_at(servers)
    seen = Gated(free=1000).subscribe(broker, free, refused, group=group)
    await cluster.send(free, range(50))
    await cluster.send(refused, [*range(50, 60), *([1000] if in_flight else [])])
    async with serving(broker, max_uncommitted_tasks=100, **SETTINGS) as app, Watch.over(app) as watch:
        await seen.until(60)
        if in_flight:
            await seen.until_running(1)
        await until_all_committed(cluster, free, group=group)
        await deny_reading(servers, TOPIC, refused)
        seen.gate.set()
        for first in range(100, 300, 100):
            await cluster.send(free, range(first, first + 100))
            await wait_until(lambda last=first + 99: last in seen.values, 20, lambda: f"handled: {len(seen.values)}")
        await until_all_committed(cluster, free, group=group, timeout_sec=10)
        if in_flight:
            await wait_until(lambda: _says(app, "TopicAuthorizationFailed"), 20, lambda: f"problems: {watch.problems}")
        await allow_reading(servers, TOPIC, refused)
        await cluster.send(refused, range(60, 70))
        await wait_until(lambda: set(seen.values) >= set(range(50, 70)), 30, lambda: f"handled: {sorted(seen.values)}")
        for topic in (free, refused):
            await until_all_committed(cluster, topic, group=group)
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, lambda: f"green: {watch.problems}")
    assert set(seen.counts.values()) == {1}
