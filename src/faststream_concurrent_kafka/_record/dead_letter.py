"""Dead letters: records that could not be handled are published unchanged to another topic."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Any, Protocol

from aiokafka import ConsumerRecord
from aiokafka.errors import InvalidTimestampError

from faststream_concurrent_kafka._runtime.background import Background
from faststream_concurrent_kafka.errors import SetupError, brief, escaped, name_of, text_of
from faststream_concurrent_kafka.policies import DeadLetter, check_topic_name, ordinary


logger = logging.getLogger("faststream_concurrent_kafka")

FIRST_BACKOFF_SEC = 0.5
LONGEST_BACKOFF_SEC = 30.0
# The length of an exception's text in a header: a text may contain the whole record.
MOST_MESSAGE_BYTES = 1024
MOST_NAME = 250

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
    """The methods that are used of an `AIOKafkaProducer` that waits for all in-sync replicas."""

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
    """Publishes the dead letters of one subscriber, each again and again until the broker acknowledges it."""

    def __init__(
        self, make_producer: Callable[[], Producer], background: Background, reads: Callable[[str], bool]
    ) -> None:
        self._make_producer = make_producer
        self._reads = reads
        self._background = background
        self._producer: Producer | None = None
        self._starting = asyncio.Lock()
        self._stuck: dict[Hashable, str] = {}

    def check(self, raws: Iterable[ConsumerRecord[Any, Any]], to: DeadLetter) -> None:
        """Check that the subscriber does not read the dead letter topic of any of these records.

        Raises:
            SetupError: it reads one of these topics.

        """
        for raw in raws:
            # Other problems with a topic can be mended while `publish` goes on trying.
            self._topic_of(raw, to)

    async def publish(self, raw: ConsumerRecord[Any, Any], to: DeadLetter, more: Mapping[str, str]) -> None:
        """Publish a record with its key, value and headers, and `more` headers; return when it is acknowledged.

        Retries for ever. When cancelled, the record may or may not have been published.

        Raises:
            SetupError: the subscriber reads that topic.

        """
        place = (raw.topic, raw.partition, raw.offset)
        timestamp = raw.timestamp if to.keep_timestamp and raw.timestamp >= 0 else None
        backoff_sec = FIRST_BACKOFF_SEC
        try:
            while True:
                topic, error = self._topic_of(raw, to)
                try:
                    if topic is not None:
                        await self._publish(raw, topic, more, timestamp)
                        return
                except InvalidTimestampError as refused:
                    error = refused
                    if timestamp is not None:
                        timestamp = None
                        logger.warning("%s[%d]@%d: its time stamp is refused by %s, and replaced", *place, topic)
                        continue
                except Exception as other:  # noqa: BLE001 - whatever it is, the record must not be lost
                    error = other
                self._note(place, to, error)
                await asyncio.sleep(backoff_sec * random.uniform(0.5, 1))  # noqa: S311 - only spreads the attempts
                backoff_sec = min(backoff_sec * 2, LONGEST_BACKOFF_SEC)
        finally:
            self._stuck.pop(place, None)

    def _topic_of(self, raw: ConsumerRecord[Any, Any], to: DeadLetter) -> tuple[str | None, BaseException | None]:
        """Return the topic for a record, or the error of the callable that names it."""
        try:
            topic = check_topic_name(ordinary("topic", to.topic(raw)) if callable(to.topic) else to.topic)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the callable is the user's, and so is what it raises
            return None, error
        if topic == raw.topic or self._reads(topic):
            raise SetupError(
                f"its dead letter would go to {topic}, which its subscriber reads itself, and never end: "
                "give DeadLetter another topic, or narrow what the subscriber reads",
            )
        return topic, None

    def _note(self, place: tuple[str, int, int], to: DeadLetter, error: BaseException | None) -> None:
        why = "no answer" if error is None else brief(error)
        if place not in self._stuck:
            logger.error(
                "%s[%d]@%d can't be published as a dead letter to %s, and is tried until it can: %s",
                *place,
                escaped(text_of(to.topic), MOST_NAME),
                why,
            )
        self._stuck[place] = f"{place[0]}[{place[1]}]@{place[2]} can't be published as a dead letter: {why}"

    async def _publish(
        self, raw: ConsumerRecord[Any, Any], topic: str, more: Mapping[str, str], timestamp: int | None
    ) -> None:
        producer = await self._started()
        headers = [*raw.headers, *((name, text.encode()) for name, text in more.items())]
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
                    # In the library's context: the producer creates its background tasks now.
                    await self._background.create_task(producer.start(), name="kafka-dead-letters")
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    def problems(self) -> list[str]:
        """Name the dead letters that can't be published."""
        return list(self._stuck.values())

    async def close(self) -> None:
        """Disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()


def describe(
    raw: ConsumerRecord[Any, Any], group_id: str | None, error: BaseException, attempts: int
) -> dict[str, str]:
    """Return the headers of a dead letter: where the record was, and how it failed."""
    message = escaped(text_of(error), MOST_MESSAGE_BYTES).encode()[:MOST_MESSAGE_BYTES].decode(errors="ignore")
    return {
        TOPIC_HEADER: str(raw.topic),
        PARTITION_HEADER: str(raw.partition),
        OFFSET_HEADER: str(raw.offset),
        TIMESTAMP_HEADER: str(raw.timestamp),
        GROUP_HEADER: group_id or "",
        EXCEPTION_HEADER: escaped(name_of(error, qualified=True), MOST_NAME),
        MESSAGE_HEADER: message,
        ATTEMPTS_HEADER: str(attempts),
    }
