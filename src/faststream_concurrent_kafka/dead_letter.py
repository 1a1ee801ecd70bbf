"""Dead letters: records that could not be handled, published as they came to a topic of their own."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Protocol

from aiokafka import ConsumerRecord

from faststream_concurrent_kafka.background import Background
from faststream_concurrent_kafka.errors import brief
from faststream_concurrent_kafka.retries import DeadLetter, check_topic_name


logger = logging.getLogger(__package__)

FIRST_BACKOFF_SEC = 0.5
LONGEST_BACKOFF_SEC = 30.0
# Enough to tell what has happened; a message may hold the whole record, or more.
MOST_MESSAGE_BYTES = 1024

# Spring Kafka's names, which dashboards and replay tools know. Its numbers are binary; these are text, like all header
# values that FastStream can read.
TOPIC_HEADER = "kafka_dlt-original-topic"
PARTITION_HEADER = "kafka_dlt-original-partition"
OFFSET_HEADER = "kafka_dlt-original-offset"
TIMESTAMP_HEADER = "kafka_dlt-original-timestamp"
GROUP_HEADER = "kafka_dlt-original-consumer-group"
EXCEPTION_HEADER = "kafka_dlt-exception-fqcn"
MESSAGE_HEADER = "kafka_dlt-exception-message"
ATTEMPTS_HEADER = "kafka_dlt-attempts"


class Producer(Protocol):
    """What is needed of an `AIOKafkaProducer` that waits for all in-sync replicas."""

    async def start(self) -> None:
        """Connect."""
        ...

    async def stop(self) -> None:
        """Send what is buffered, and disconnect."""
        ...

    async def partitions_for(self, topic: str) -> set[int]:
        """Return the partitions of a topic."""
        ...

    async def send_and_wait(self, topic: str, **record: Any) -> Any:
        """Publish, and return once it is acknowledged."""
        ...

    def create_batch(self) -> Any:
        """Return an empty batch."""
        ...

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Awaitable[Any]:
        """Publish a batch."""
        ...


class DeadLetterPublisher:
    """Publishes the dead letters of one subscriber, each tried again until it is acknowledged."""

    def __init__(self, make_producer: Callable[[], Producer], background: Background) -> None:
        self._make_producer = make_producer
        self._background = background
        self._producer: Producer | None = None
        self._starting = asyncio.Lock()
        self._stuck: dict[Hashable, str] = {}

    async def publish(self, raw: ConsumerRecord[Any, Any], to: DeadLetter, more: Mapping[str, str]) -> None:
        """Publish a record with its key, value, headers and timestamp, and `more` headers; return when it is safe.

        Tries for ever. When cancelled, it may or may not have been published.
        """
        place = (raw.topic, raw.partition, raw.offset)
        backoff_sec = FIRST_BACKOFF_SEC
        try:
            while True:
                try:
                    await self._publish(raw, _topic_of(raw, to), more)
                except Exception as error:  # noqa: BLE001 - whatever it is, the record must not be lost
                    self._note(place, to, error)
                else:
                    break
                await asyncio.sleep(backoff_sec * random.uniform(0.5, 1))  # noqa: S311 - only spreads the attempts
                backoff_sec = min(backoff_sec * 2, LONGEST_BACKOFF_SEC)
        finally:
            self._stuck.pop(place, None)

    def _note(self, place: tuple[str, int, int], to: DeadLetter, error: Exception) -> None:
        if place not in self._stuck:
            logger.error(
                "%s[%d]@%d can't be published as a dead letter to %s, and is tried until it can: %s",
                *place,
                to.topic,
                brief(error),
            )
        self._stuck[place] = f"{place[0]}[{place[1]}]@{place[2]} can't be published as a dead letter: {brief(error)}"

    async def _publish(self, raw: ConsumerRecord[Any, Any], topic: str, more: Mapping[str, str]) -> None:
        producer = await self._started()
        headers = [*raw.headers, *((name, text.encode("utf-8", "replace")) for name, text in more.items())]
        timestamp = raw.timestamp if raw.timestamp >= 0 else None
        if raw.key is not None or raw.value is not None:
            await producer.send_and_wait(topic, value=raw.value, key=raw.key, headers=headers, timestamp_ms=timestamp)
            return
        # A record of neither is refused there, but not by Kafka.
        batch = producer.create_batch()
        batch.append(key=None, value=None, timestamp=timestamp, headers=headers)
        partition = random.choice(sorted(await producer.partitions_for(topic)))  # noqa: S311
        await (await producer.send_batch(batch, topic, partition=partition))

    async def _started(self) -> Producer:
        async with self._starting:
            if self._producer is None:
                producer = self._make_producer()
                try:
                    # It goes on in tasks that it creates now.
                    await self._background.create_task(producer.start(), name="kafka-dead-letters")
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    def problems(self) -> list[str]:
        """Name the dead letters that could not be published so far."""
        return list(self._stuck.values())

    async def close(self) -> None:
        """Disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()


def describe(
    raw: ConsumerRecord[Any, Any], group_id: str | None, error: BaseException, attempts: int
) -> dict[str, str]:
    """Return the headers that say where a dead letter comes from, and why it is one."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - the exception is the user's
        message = "its text could not be read"
    message = message.encode("utf-8", "replace")[:MOST_MESSAGE_BYTES].decode("utf-8", "ignore")
    return {
        TOPIC_HEADER: str(raw.topic),
        PARTITION_HEADER: str(raw.partition),
        OFFSET_HEADER: str(raw.offset),
        TIMESTAMP_HEADER: str(raw.timestamp),
        GROUP_HEADER: group_id or "",
        EXCEPTION_HEADER: f"{type(error).__module__}.{type(error).__qualname__}",
        MESSAGE_HEADER: message,
        ATTEMPTS_HEADER: str(attempts),
    }


def _topic_of(raw: ConsumerRecord[Any, Any], to: DeadLetter) -> str:
    topic = check_topic_name(to.topic(raw) if callable(to.topic) else to.topic)
    if topic == raw.topic:
        raise ValueError(f"the dead letters of {topic} would go to {topic} itself, and never end")
    return topic
