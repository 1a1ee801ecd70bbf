"""Put dead letters back where they came from: `python examples/replay_dead_letters.py localhost:9092 orders.dead`.

Ends when it has replayed what was there when it began. Stopped half way, it goes on from there the next time.
"""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


OURS = "kafka_dlt-"


async def replay(servers: str, topic: str) -> int:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=servers.split(","),
        group_id=f"replay-{topic}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(bootstrap_servers=servers.split(","), acks="all")
    replayed = 0
    async with consumer, producer:
        ends = await consumer.end_offsets(consumer.assignment())
        for partition, end in ends.items():
            while await consumer.position(partition) < end:
                dead = await consumer.getone(partition)
                # A record that has died twice has these headers twice; the last one counts.
                origin = {name: value.decode() for name, value in dead.headers if name.startswith(OURS)}
                await producer.send_and_wait(
                    origin["kafka_dlt-original-topic"],
                    dead.value,
                    key=dead.key,
                    headers=[header for header in dead.headers if not header[0].startswith(OURS)],
                )
                await consumer.commit({partition: dead.offset + 1})
                replayed += 1
    return replayed


if __name__ == "__main__":
    print(f"replayed {asyncio.run(replay(sys.argv[1], sys.argv[2]))}")
