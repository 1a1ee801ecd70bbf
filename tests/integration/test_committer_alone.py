"""The committer without the handler, for a plain aiokafka consumer: the offsets arrive at the broker."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from faststream.kafka import TopicPartition as FastStreamTopicPartition

from faststream_concurrent_kafka import KafkaBatchCommitter, KafkaCommitTask
from tests.integration.helpers import both_loops


def whole(topic, partition):
    return TopicPartition(topic, partition)


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("partition_of", [whole, FastStreamTopicPartition], ids=["aiokafka", "faststream"])
async def test_offsets_of_a_plain_consumer_arrive_at_the_broker(cluster, new_topic, partition_of):
    """It commits by batch and timer, never past an unfinished task, and the rest when it is closed."""
    topic, release = await new_topic(2), asyncio.Event()
    await cluster.send(topic, range(20), partition=0)
    await cluster.send(topic, range(20), partition=1)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=cluster.bootstrap_servers,
        group_id=f"{topic}-group",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    committer = KafkaBatchCommitter(commit_batch_timeout_sec=0.1, commit_batch_size=10)

    async def handle(raw):
        await asyncio.sleep(0.001 * (20 - raw.offset))
        if (raw.partition, raw.offset) == (0, 5):
            await release.wait()
        if raw.offset == 7:
            raise ValueError("a failure completes its record, too")

    committer.spawn()
    await consumer.start()
    try:
        tasks = []
        for _ in range(40):
            raw = await consumer.getone()
            tasks.append(asyncio.create_task(handle(raw)))
            await committer.send_task(
                KafkaCommitTask(
                    asyncio_task=tasks[-1],
                    topic_partition=partition_of(raw.topic, raw.partition),
                    offset=raw.offset,
                    consumer=consumer,
                )
            )
        await cluster.until_committed(topic, {0: 5, 1: 20})
        await committer.commit_all(flush_timeout_sec=0.1)
        assert await cluster.committed(topic) == {0: 5, 1: 20}
        asyncio.get_running_loop().call_later(0.2, release.set)
        await committer.close()
        assert await cluster.committed(topic) == {0: 20, 1: 20}
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await committer.close()
        await consumer.stop()
