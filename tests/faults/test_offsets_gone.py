"""The committed offset is out of range because records were deleted, or it has expired (I13)."""

import logging

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from faststream_concurrent_kafka import get_kafka_handler_report, is_kafka_handler_healthy
from testkit.brokers import wait_until
from tests.faults.scene import Busy, Busyness, admin_at, broker_at, delete_group, topic_at, until_all_committed
from tests.integration.helpers import Cluster, Gated, serving


SETTINGS = {"commit_batch_timeout_sec": 0.1, "commit_failure_timeout_sec": 5}


async def _delete_below(server, topic, offset):
    async with admin_at(server.bootstrap_servers) as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(offset)})


async def _begun(cluster, label, count):
    """Return a topic of which a process has handled and committed this many records before it stopped."""
    topic = await topic_at(cluster.bootstrap_servers, label)
    broker = broker_at(cluster.bootstrap_servers)
    seen = Busy().subscribe(broker, topic)
    await cluster.send(topic, range(count))
    async with serving(broker, **SETTINGS):
        await seen.until(count)
    assert await cluster.committed(topic) == {0: count}
    return topic


async def test_records_are_deleted_while_no_member_runs(strict):
    """With auto_offset_reset="earliest", handling goes on at the first record that still exists."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await _begun(cluster, "deleted-while-stopped", 50)
    await cluster.send(topic, range(50, 200))
    await _delete_below(strict, topic, 120)
    broker = broker_at(strict.bootstrap_servers)
    seen = Busy().subscribe(broker, topic)
    async with serving(broker, **SETTINGS) as app:
        await seen.until_all_of(range(120, 200))
        await until_all_committed(cluster, topic)
        assert is_kafka_handler_healthy(app.context)
    assert seen.counts == dict.fromkeys(range(120, 200), 1)


async def test_records_are_deleted_under_a_running_consumer(strict):
    """Fetched records are handled to the end; then handling goes on at the first record that still exists."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await topic_at(strict.bootstrap_servers, "deleted-while-running")
    broker = broker_at(strict.bootstrap_servers)
    # Little is fetched at once, and each batch holds one record: most are still at the broker when they are deleted.
    seen = Gated().subscribe(broker, topic, max_partition_fetch_bytes=1024)
    for first in range(0, 2000, 20):
        await cluster.send(topic, range(first, first + 20))
    async with serving(broker, max_uncommitted_tasks=50, **SETTINGS) as app:
        await seen.until_running(50)
        await _delete_below(strict, topic, 1500)
        seen.gate.set()
        await wait_until(lambda: set(seen.values) >= set(range(1500, 2000)), 30, lambda: f"handled: {seen.values}")
        await until_all_committed(cluster, topic)
        assert is_kafka_handler_healthy(app.context)
    assert set(seen.values) >= set(range(50))
    assert len(seen.values) < 1500, "most of the deleted ones were never fetched"
    assert set(seen.counts.values()) == {1}


async def test_the_commit_has_expired(strict):
    """With auto_offset_reset="earliest", all existing records are handled again, and none is skipped."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await _begun(cluster, "forgotten", 50)
    await cluster.send(topic, range(50, 100))
    await delete_group(strict.bootstrap_servers, f"{topic}-group")
    assert await cluster.committed(topic) == {}
    broker = broker_at(strict.bootstrap_servers)
    seen = Busy().subscribe(broker, topic)
    async with serving(broker, **SETTINGS):
        await seen.until_all_of(range(100))
        await until_all_committed(cluster, topic)
    assert seen.counts == dict.fromkeys(range(100), 1)


@pytest.mark.parametrize("gone", ["records", "commit"])
async def test_without_a_policy_it_says_that_it_cannot_go_on(strict, gone, caplog):
    """With auto_offset_reset="none", log or health give the reason, there is no busy loop, and no record is skipped."""
    cluster = Cluster(strict.bootstrap_servers)
    topic = await _begun(cluster, f"no-reset-{gone}", 50)
    await cluster.send(topic, range(50, 100))
    if gone == "records":
        await _delete_below(strict, topic, 80)
    else:
        await delete_group(strict.bootstrap_servers, f"{topic}-group")
    before = await cluster.committed(topic)
    logger = logging.getLogger("tests.faults")
    broker = broker_at(strict.bootstrap_servers, logger=logger)
    seen = Busy().subscribe(broker, topic, auto_offset_reset="none")

    def reported():
        said = [repr(each.exc_info[1]) for each in caplog.records if each.name == logger.name and each.exc_info]
        return [*said, *get_kafka_handler_report(app.context).problems]

    async with serving(broker, **SETTINGS) as app:
        idle = Busyness()
        wanted = "OffsetOutOfRangeError" if gone == "records" else "NoOffsetForPartitionError"
        await wait_until(lambda: sum(wanted in each for each in reported()) >= 2, 20, lambda: f"reported: {reported()}")
        assert idle.share < 0.5
        # An operator who knows where to go on commits that offset.
        for subscriber in broker.subscribers:
            await subscriber.consumer.seek_to_beginning()
        await seen.until_all_of(range(80 if gone == "records" else 0, 100))
        await until_all_committed(cluster, topic)
    assert before == ({0: 50} if gone == "records" else {})
    assert not seen.repeated
