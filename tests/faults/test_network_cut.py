"""One member is cut off from the broker for longer than the session timeout, another one is not (I3, I11)."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from faststream_concurrent_kafka import get_kafka_handler_report, is_kafka_handler_healthy
from testkit.brokers import group_members, wait_until
from tests.faults.network import Proxy
from tests.faults.scene import IMPATIENT, Member, broker_at, topic_at, until_all_committed
from tests.integration.helpers import Cluster, Gated, serving


SETTINGS = {"commit_batch_timeout_sec": 0.1, "commit_failure_timeout_sec": 5, "rebalance_flush_timeout_sec": 1.0}
CUTS = pytest.mark.parametrize("cut", [Proxy.drop, Proxy.swallow], ids=["dropped", "swallowed"])


class Committed:
    """The committed offsets of a topic, after each change."""

    def __init__(self):
        self.history = []

    @property
    def never_went_back(self):
        """Whether no partition's committed offset has ever gone back."""
        steps = zip(self.history, self.history[1:], strict=False)
        return all(after.get(each, -1) >= offset for before, after in steps for each, offset in before.items())

    async def _look(self, cluster, topic):
        while True:
            found = await cluster.committed(topic)
            if not self.history or found != self.history[-1]:
                self.history.append(found)
            await asyncio.sleep(0.05)

    @classmethod
    @asynccontextmanager
    async def of(cls, cluster, topic):
        """Watch the offsets until the end of the block."""
        committed = cls()
        task = asyncio.ensure_future(committed._look(cluster, topic))
        try:
            yield committed
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait({task})


@CUTS
async def test_a_member_that_is_cut_off_commits_nothing_over_its_successor(site, cut):
    """Records that it finishes meanwhile never move the next owner's offset back; reconnected, it joins the group."""
    cluster = Cluster(site.direct)
    topic = await topic_at(site.direct, f"cut-{cut.__name__}", 2)
    await cluster.send(topic, range(100))
    async with site.proxy() as proxy, Committed.of(cluster, topic) as committed:
        broker = broker_at(site.proxied)
        seen = Gated(free=40).subscribe(broker, topic, **IMPATIENT)
        async with serving(broker, **SETTINGS) as app:
            await seen.until(40)
            await seen.until_running(60)
            await wait_until(lambda: committed.history and committed.history[-1], 10, "something is committed")
            await cut(proxy)
            async with Member.of(site.direct, f"{topic}-group", topic) as successor:
                await wait_until(lambda: successor.values, 30, "the other member has taken over")
                await cluster.send(topic, range(100, 200))
                await wait_until(lambda: set(successor.values) >= set(range(100, 200)), 20, "it has got the new ones")
                await until_all_committed(cluster, topic)
                # More than the offset at which the successor began, less than what it has committed since.
                seen.gate.set()
                await seen.until(100)
                await wait_until(lambda: not is_kafka_handler_healthy(app.context), 20, "red")
                await proxy.heal()

                async def back():
                    return await group_members(site.direct, f"{topic}-group") == 2

                await wait_until(back, 30, "a member again")
                await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, "green")
                await cluster.send(topic, range(200, 300))
                await wait_until(
                    lambda: {*seen.values, *successor.values} >= set(range(300)),
                    20,
                    "everything is handled",
                )
            await cluster.send(topic, range(300, 350))
            await wait_until(lambda: set(seen.values) >= set(range(300, 350)), 20, "alone again, it gets everything")
            await until_all_committed(cluster, topic)
    assert committed.never_went_back, committed.history


@CUTS
async def test_a_cut_without_a_successor(site, cut):
    """The process goes on by itself, and runs no finished record again."""
    cluster = Cluster(site.direct)
    topic = await topic_at(site.direct, f"alone-{cut.__name__}", 2)
    await cluster.send(topic, range(100))
    async with site.proxy() as proxy:
        broker = broker_at(site.proxied)
        seen = Gated(free=40).subscribe(broker, topic, **IMPATIENT)
        async with serving(broker, **SETTINGS) as app:
            await seen.until_running(60)
            await cut(proxy)
            seen.gate.set()
            await seen.until(100)
            # By then the broker has evicted it as well.
            await wait_until(lambda: not is_kafka_handler_healthy(app.context), 20, "red")

            async def evicted():
                return not await group_members(site.direct, f"{topic}-group")

            await wait_until(evicted, 20, "evicted")
            await proxy.heal()
            await cluster.send(topic, range(100, 150))
            await wait_until(lambda: set(seen.values) >= set(range(150)), 30, "it goes on")
            await until_all_committed(cluster, topic)
            await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, "green")
    assert seen.counts == dict.fromkeys(range(150), 1)


async def test_a_commit_that_fails_after_we_have_given_it_up(site):
    """asyncio does not report its late error (`calm` checks that), and the next commit confirms the same offsets."""
    cluster = Cluster(site.direct)
    topic = await topic_at(site.direct, "given-up")
    await cluster.send(topic, range(20))
    async with site.proxy() as proxy:
        # With aiokafka's own request timeout, the request outlives the library's attempt.
        broker = broker_at(site.proxied, request_timeout_ms=40_000)
        seen = Gated().subscribe(broker, topic, **IMPATIENT)
        async with serving(broker, commit_batch_timeout_sec=0.1, commit_failure_timeout_sec=1) as app:
            await seen.until_running(20)
            await proxy.swallow()
            seen.gate.set()

            def given_up():
                return any("TimeoutError" in each for each in get_kafka_handler_report(app.context).problems)

            await wait_until(given_up, 15, "given up")
            await proxy.heal()
            await until_all_committed(cluster, topic)
            await wait_until(lambda: is_kafka_handler_healthy(app.context), 20, "green")
    assert seen.counts == dict.fromkeys(range(20), 1)
