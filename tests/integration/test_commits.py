"""When offsets are committed, and that no commit passes unfinished work (I2, I12)."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from tests.integration.helpers import Seen, both_loops, consuming, serving


@pytest.mark.asyncio(**both_loops)
async def test_commits_never_pass_an_unfinished_record(cluster, new_broker, new_topic):
    """The group's offset stays at a stuck record while later ones finish, and jumps when it has finished."""
    topic, broker, seen, release = await new_topic(2), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 5:
                await release.wait()

    await cluster.send(topic, range(40), partition=0)
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await seen.until(39)
        await cluster.until_committed(topic, {0: 5})
        # One request has all partitions: when partition 1 is committed, partition 0 was considered as well.
        await cluster.send(topic, range(100, 110), partition=1)
        await cluster.until_committed(topic, {0: 5, 1: 10})
        release.set()
        await cluster.until_committed(topic, {0: 40, 1: 10})
    assert set(seen.counts.values()) == {1}


async def test_a_stop_commits_what_lies_below_a_record_that_outlasts_it(cluster, new_broker, new_topic):
    """The stuck record and those that finished behind it are delivered again."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 6:
                await asyncio.Event().wait()

    await cluster.send(topic, range(12))
    async with serving(broker, shutdown_timeout_sec=0.3, commit_batch_timeout_sec=60):
        await seen.until(11)
    assert await cluster.committed(topic) == {0: 6}


async def test_a_full_batch_is_committed_before_its_time(cluster, new_broker, new_topic):
    """`commit_batch_size` finished records are committed at once, fewer are not."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            pass

    async with serving(broker, commit_batch_size=10, commit_batch_timeout_sec=600):
        await cluster.send(topic, range(10))
        await cluster.until_committed(topic, {0: 10})
        await cluster.send(topic, range(9))
        await seen.until(19)
        assert await cluster.committed(topic) == {0: 10}
        await cluster.send(topic, range(1))
        await cluster.until_committed(topic, {0: 20})


async def test_a_single_record_is_committed_when_its_time_has_passed(cluster, new_broker, new_topic):
    """`commit_batch_timeout_sec` after the first finished record, the batch is committed however small it is."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            pass

    await cluster.send(topic, range(1))
    async with serving(broker, commit_batch_size=1000, commit_batch_timeout_sec=1.5):
        loop = asyncio.get_running_loop()
        await seen.until(1)
        finished_at = loop.time()
        assert await cluster.committed(topic) == {}
        await cluster.until_committed(topic, {0: 1})
        assert 1 < loop.time() - finished_at < 5


@pytest.mark.asyncio(**both_loops)
async def test_a_second_run_finds_everything_committed(cluster, new_broker, new_topic):
    """After a clean stop with records in flight, a new consumer of the group gets exactly the unhandled records."""
    topic, seen = await new_topic(3), Seen()

    async def run(until):
        broker = new_broker()

        @consuming(broker, topic)
        async def handle(number: int):
            with seen.handling(number):
                await asyncio.sleep(0.05)  # handler

        async with serving(broker, concurrency_limit=20):
            await seen.until(until)

    await cluster.send(topic, range(300))
    await run(until=100)
    assert 100 <= len(seen.values) < 300
    await run(until=300)
    assert seen.counts == dict.fromkeys(range(300), 1)
    assert sum((await cluster.committed(topic)).values()) == 300


@pytest.mark.apache
async def test_gaps_of_transactions_are_nothing_special(cluster, new_broker, new_topic):
    """Markers and aborted records leave gaps: the readable records are handled, and the offset passes the gaps."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()
    producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap_servers, transactional_id=f"{topic}-id")
    await producer.start()
    offsets = []
    for first in range(0, 40, 4):
        await producer.begin_transaction()
        for number in range(first, first + 4):
            sent = await producer.send_and_wait(topic, str(number).encode())
            offsets += [sent.offset] if number % 8 < 4 else []
        await (producer.abort_transaction() if first % 8 == 4 else producer.commit_transaction())
    await producer.stop()

    @consuming(broker, topic, isolation_level="read_committed")
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0.01 * (number % 3))  # handler

    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: offsets[-1] + 1})
    assert seen.counts == dict.fromkeys((number for number in range(40) if number % 8 < 4), 1)
