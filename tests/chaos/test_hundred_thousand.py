"""100,000 records, with failures and restarts: none is lost, order holds, and each ends as the load says.

`SCALE_SEED` is the seed of the load.
"""

import os
import secrets
from contextlib import asynccontextmanager

import pytest

from testkit.load import Load
from tests.chaos.scripted import DEAD_PARTITIONS, ScriptedGroup, feed


SETTINGS = {"concurrency_limit": 100, "commit_batch_timeout_sec": 0.5, "shutdown_timeout_sec": 20.0}


@pytest.fixture
def gathered(kafka, new_topic, tmp_path):
    """`async with gathered(settings, count=..., keys=..., partitions=..., ordering=...) as group` makes a group."""

    @asynccontextmanager
    async def gather(settings, **about):
        load = Load(seed=int(os.environ.get("SCALE_SEED", "0")) or secrets.randbits(32), storms=True, **about)
        where = kafka.bootstrap_servers
        topics = await new_topic(load.partitions), await new_topic(DEAD_PARTITIONS)
        group = ScriptedGroup(
            load, bootstrap_servers=where, topics=topics, folder=tmp_path, settings=SETTINGS | settings
        )
        try:
            await feed(where, group.topic, load)
            yield group
        finally:
            group.end()

    return gather


@pytest.mark.slow("100,000 records go through seven processes")
@pytest.mark.timeout(900)
async def test_a_hundred_thousand_records_of_a_thousand_keys_end_as_the_load_says_and_in_order(gathered):
    """Stops, a member that joins and leaves, a kill -9: 0 inversions, 0 overlaps, 0 lost, each dead letter is right."""
    async with gathered({}, count=100_000, keys=1_000, partitions=8, ordering="key") as group:
        for share in (0.12, 0.28):
            member = group.join()
            await group.until(share, member)
            await group.stop(member)
        killed = group.join()
        await group.until(0.4, killed)
        second = group.join()
        await group.has_begun(second)
        await group.until(0.6, killed, second)
        await group.stop(second)
        await group.until(0.75, killed)
        await group.kill(killed)
        heir = group.join()
        await group.until(0.9, heir)
        await group.stop(heir)
        last = group.join()
        await group.until(1, last)
        await group.until_committed()
        await group.stop(last)
        await group.assert_all_is_as_the_load_says()
        interrupted = [run for run in killed.journal.runs if run.end_ns is None]
        assert interrupted, "the kill came too early or too late to interrupt anything"


@pytest.mark.slow("one record at a time per partition, and a killed process has to miss its session")
@pytest.mark.timeout(600)
async def test_partition_order_holds_through_failures_a_rebalance_a_stop_and_a_kill(gathered):
    """Every owner handles a partition's records one at a time; without metadata it begins at the committed offset."""
    settings = {"max_uncommitted_tasks": 200, "commit_metadata": False}
    async with gathered(settings, count=4_000, keys=100, partitions=4, ordering="partition") as group:
        first = group.join()
        await group.until(0.2, first)
        await group.stop(first)
        killed = group.join()
        await group.until(0.4, killed)
        heir = group.join()
        await group.has_begun(heir)
        await group.until(0.6, killed, heir)
        await group.kill(killed)
        await group.until(0.8, heir)
        await group.stop(heir)
        last = group.join()
        await group.until(1, last)
        await group.until_committed()
        await group.stop(last)
        await group.assert_all_is_as_the_load_says()
