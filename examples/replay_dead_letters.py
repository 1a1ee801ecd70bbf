"""Publish dead letters to their original topics: `python examples/replay_dead_letters.py localhost:9092 orders.dead`.

Ends when it has replayed the records that existed when it began. After an interruption it goes on where it stopped. A
record without a header for its original topic is skipped with a message.
"""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord


OURS = "kafka_dlt-"
ORIGIN = "kafka_dlt-original-topic"


async def replay(servers: str, topic: str) -> int:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers.split(","),
        group_id=f"replay-{topic}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    # No limit of its own: the broker decides which records are too large.
    producer = AIOKafkaProducer(
        bootstrap_servers=servers.split(","), acks="all", compression_type="gzip", max_request_size=2**31 - 1
    )
    replayed = 0
    async with consumer, producer:
        ends = await consumer.end_offsets(consumer.assignment())
        for partition, end in ends.items():
            while await consumer.position(partition) < end:
                dead = await consumer.getone(partition)
                # A record that has died twice has these headers twice; the last one counts.
                origins = [value for name, value in dead.headers if name == ORIGIN and value and value.isascii()]
                if origins:
                    await publish(producer, origins[-1].decode(), dead)
                    replayed += 1
                else:
                    print(f"{topic}[{partition.partition}]@{dead.offset} has no {ORIGIN}: passed over")
                await consumer.commit({partition: dead.offset + 1})
    return replayed


async def publish(producer: AIOKafkaProducer, topic: str, dead: ConsumerRecord[bytes, bytes]) -> None:
    headers = [header for header in dead.headers if not header[0].startswith(OURS)]
    if dead.key is not None or dead.value is not None:
        await producer.send_and_wait(topic, dead.value, key=dead.key, headers=headers)
        return
    # A record of neither is refused by `send`, but not by Kafka.
    batch = producer.create_batch()
    batch.append(key=None, value=None, timestamp=None, headers=headers)
    partition = min(await producer.partitions_for(topic))
    await (await producer.send_batch(batch, topic, partition=partition))


if __name__ == "__main__":
    print(f"replayed {asyncio.run(replay(sys.argv[1], sys.argv[2]))}")
