"""Requests to a broker, and waiting for conditions without a fixed sleep."""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code
from aiokafka.structs import RecordMetadata


__all__ = ["Record", "committed", "create_topic", "end_offsets", "group_members", "produce", "wait_until"]

T = TypeVar("T")


class Record(NamedTuple):
    """One record to produce; without a partition its key decides, without both, records go to partitions in turn."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] | None = None
    partition: int | None = None


async def create_topic(
    bootstrap: Sequence[str],
    name: str,
    partitions: int = 1,
    *,
    replication_factor: int | None = None,
    config: Mapping[str, str] | None = None,
) -> None:
    """Create a topic and return when each of its partitions has a leader; by default on up to three brokers."""
    async with _admin(bootstrap) as admin:
        copies = replication_factor or min(3, len((await admin.describe_cluster())["brokers"]))
        answer = await admin.create_topics([NewTopic(name, partitions, copies, topic_configs=dict(config or {}))])
        for each in answer.to_object()["topic_errors"]:
            if each["error_code"]:
                raise for_code(each["error_code"])(f"topic {name!r}: {each['error_message']}")

        async def led() -> bool:
            # If records are produced earlier, aiokafka logs retries that look like faults.
            found = (await admin.describe_topics([name]))[0]["partitions"]
            return len(found) == partitions and all(each["leader"] >= 0 and not each["error_code"] for each in found)

        await wait_until(led, 20, f"a leader for each partition of {name!r}")


async def produce(
    bootstrap: Sequence[str],
    topic: str,
    records: Iterable[tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes]] | None, int | None]],
) -> list[RecordMetadata]:
    """Produce `records`; return the place of each when the broker has acknowledged all."""
    producer = AIOKafkaProducer(bootstrap_servers=list(bootstrap), acks="all")
    await producer.start()
    try:
        sent = [
            await producer.send(topic, value, key=key, headers=headers, partition=partition)
            for value, key, headers, partition in records
        ]
        await producer.flush()
        return [await each for each in sent]
    finally:
        await producer.stop()


async def committed(bootstrap: Sequence[str], group: str, topic: str) -> dict[int, int]:
    """Return the committed offset, that is the next to read, of each partition of the topic that has one.

    An offset of 0 counts as none: Tansu answers so where nothing has been committed.
    """
    async with _admin(bootstrap) as admin:
        # Partitions are named, because Tansu's answer to a request without names can't be decoded by aiokafka.
        known = (await admin.describe_topics([topic]))[0]["partitions"]
        wanted = [TopicPartition(topic, each["partition"]) for each in known]
        offsets = await _patiently(lambda: admin.list_consumer_group_offsets(group, partitions=wanted))
        return {each.partition: found.offset for each, found in sorted(offsets.items()) if found.offset > 0}


async def end_offsets(bootstrap: Sequence[str], topic: str) -> dict[int, int]:
    """Return for each partition of the topic the offset that its next record will get.

    Tansu returns the second offset of the last batch instead; `consumer.highwater()` is right there too.
    """
    async with _admin(bootstrap) as admin:
        known = (await admin.describe_topics([topic]))[0]["partitions"]
    consumer = AIOKafkaConsumer(bootstrap_servers=list(bootstrap))
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, each["partition"]) for each in known])
        return {each.partition: offset for each, offset in sorted(ends.items())}
    finally:
        await consumer.stop()


async def group_members(bootstrap: Sequence[str], group: str) -> int:
    """Return the number of members of a group; 0 if there is no such group. Tansu also counts those that have left."""
    async with _admin(bootstrap) as admin:

        async def described() -> int:
            (answer,) = await admin.describe_consumer_groups([group])
            (found,) = answer.to_object()["groups"]
            if found["error_code"]:
                raise for_code(found["error_code"])(group)
            return len(found["members"])

        return await _patiently(described)


async def wait_until(predicate: Callable[[], Any], timeout_sec: float, message: str | Callable[[], str]) -> Any:
    """Call a predicate, sync or async, until its result is true; return that result.

    Raises AssertionError with `message` after `timeout_sec` seconds; a function as `message` can describe the state
    then.
    """
    deadline = asyncio.timeout(timeout_sec)
    try:
        async with deadline:
            while True:
                answer = predicate()
                if inspect.isawaitable(answer):
                    answer = await answer
                if answer:
                    return answer
                await asyncio.sleep(0.02)
    except TimeoutError:
        if not deadline.expired():
            raise  # the predicate's own
        said = message if isinstance(message, str) else message()
        raise AssertionError(f"not within {timeout_sec} s: {said}") from None


@asynccontextmanager
async def _admin(bootstrap: Sequence[str]) -> AsyncGenerator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=list(bootstrap))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _patiently(ask: Callable[[], Awaitable[T]], timeout_sec: float = 20) -> T:
    """Repeat a request while the coordinator moves or loads, which are retriable errors."""
    async with asyncio.timeout(timeout_sec):
        while True:
            try:
                return await ask()
            except KafkaError as error:
                if not error.retriable:
                    raise
            await asyncio.sleep(0.1)
