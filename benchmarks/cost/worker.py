"""One measurement in a process of its own: `python -m benchmarks.cost.worker JSON` prints its result as JSON."""

import asyncio
import functools
import gc
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from faststream import AckPolicy, BaseMiddleware, StreamMessage
from faststream.kafka import KafkaBroker
from typing_extensions import override

from benchmarks.cost.profile import Profile
from benchmarks.cost.trial import Cost, CostTrial
from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware, initialize_concurrent_processing
from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer, run_virtual


_TOPIC, _PARTITIONS = "bench", 8
_BODIES = [b'{"i": %d, "name": "%s"}' % (number, b"x" * 40) for number in range(64)]
_KEYS = [b"key-%d" % number for number in range(1000)]
_FIRST_TIMESTAMP_MS = 1_700_000_000_000
# As often as the library lets other tasks run: a loop that never does would keep every record in memory.
_RECORDS_PER_TURN = 32


class BufferedConsumer(FakeKafkaConsumer):
    """Has all records prefetched, as after a large fetch; otherwise a consumer of an empty in-memory Kafka."""

    def __init__(self, records: int, **options: Any) -> None:
        kafka = FakeKafka({_TOPIC: _PARTITIONS})
        kafka.groups[options["group_id"]].committed = {partition: OffsetAndMetadata(0, "") for partition in kafka.logs}
        super().__init__(kafka=kafka, group_id=options["group_id"])
        self._count = records
        self._next = 0

    @override
    def subscribe(self, topics: Iterable[str], listener: Any = None, pattern: object = None) -> None:
        super().subscribe(topics, listener)

    @override
    async def getone(self, *partitions: TopicPartition) -> ConsumerRecord[bytes, bytes]:
        number = self._next
        if number == 0:
            # The library keeps partitions paused until their position is committed.
            while not self.assignment() or self.paused():  # noqa: ASYNC110 - once per run
                await asyncio.sleep(0.001)
        elif number >= self._count:
            await asyncio.Event().wait()
        self._next = number + 1
        key, body = _KEYS[number % len(_KEYS)], _BODIES[number % len(_BODIES)]
        offset, partition = divmod(number, _PARTITIONS)
        timestamp = _FIRST_TIMESTAMP_MS + number
        return ConsumerRecord(_TOPIC, partition, offset, timestamp, 0, key, body, None, len(key), len(body), ())


class Nothing(BaseMiddleware[Any]):
    """A middleware that does nothing: measures what FastStream needs for one."""

    @override
    async def consume_scope(
        self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
    ) -> Any:
        return await call_next(msg)


def give_each_record_a_task(subscriber: Any) -> None:
    """Let a subscriber handle each record in a bare task: the least that a library of this design costs."""
    loop = asyncio.get_running_loop()
    fetched, fetch = 0, subscriber.get_msg

    async def handle(raw: object) -> None:
        await subscriber.process_message(raw)

    async def consume_one(raw: object) -> None:
        loop.create_task(handle(raw))  # noqa: RUF006 - what a bare task costs; the loop or a timer refers to it

    async def get_msg(consumer: object) -> object:
        nonlocal fetched
        fetched += 1
        if fetched % _RECORDS_PER_TURN == 0:
            await asyncio.sleep(0)
        return await fetch(consumer)

    subscriber.consume_one, subscriber.get_msg = consume_one, get_msg


async def measure(trial: CostTrial) -> Cost:
    """Consume all records with the system under test."""
    middlewares = {
        "sequential": [],
        "floor": [Nothing],
        "library": [KafkaConcurrentProcessingMiddleware],
    }
    broker = KafkaBroker(["none"], consumer_only=True, middlewares=middlewares[trial.system], logger=None)
    await broker.connect()
    config: Any = broker.config.broker_config
    config.builder = functools.partial(BufferedConsumer, trial.records)
    done, handled, began = asyncio.Event(), 0, 0.0
    profile = Profile() if trial.profile else None
    sleep_sec = trial.sleep_sec

    policy = AckPolicy.ACK_FIRST if trial.system == "sequential" else AckPolicy.MANUAL
    subscriber = broker.subscriber(_TOPIC, group_id="g", auto_offset_reset="earliest", ack_policy=policy)

    @subscriber
    async def handle(msg: dict) -> None:  # noqa: ARG001 - decoded all the same  # ty: ignore[missing-type-argument]
        nonlocal handled, began
        if handled == 0:
            began = time.process_time()
            if profile is not None:
                profile.clear()
        if sleep_sec is not None:
            await asyncio.sleep(sleep_sec)
        handled += 1
        if handled == trial.records:
            done.set()

    if trial.system == "library":
        await initialize_concurrent_processing(broker.context, broker=broker, concurrency_limit=trial.concurrency_limit)
    elif trial.system == "floor":
        give_each_record_a_task(subscriber)
    if trial.collector == "tuned":
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
    if profile is not None:
        profile.begin()
    await subscriber.start()
    await done.wait()
    cpu_us = (time.process_time() - began) / trial.records * 1e6
    return Cost(cpu_us=cpu_us, functions=profile.end(trial.records) if profile is not None else ())


async def main(trial: CostTrial) -> None:
    """Measure, print, and exit without a clean stop."""
    print((await measure(trial)).to_json(), flush=True)
    os._exit(0)


def run(trial: CostTrial) -> None:
    """Measure on an event loop of its own."""
    logging.disable(logging.CRITICAL)
    if trial.collector == "off":
        gc.disable()
    if trial.is_counted:
        # Counting slows everything down: with real time, timers would fire and turns of the loop be used up too often.
        run_virtual(main(trial))
    else:
        asyncio.run(main(trial))


if __name__ == "__main__":
    run(CostTrial.from_json(sys.argv[1]))
