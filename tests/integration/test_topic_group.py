"""The `topic_group` header: one topic for several groups, each record meant for one of them."""

import asyncio
import logging
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import pytest
from faststream.kafka import KafkaRouter, TestKafkaBroker
from faststream.kafka.annotations import KafkaMessage
from faststream.middlewares import AckPolicy

from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware as Ours
from testkit.brokers import Record, end_offsets, produce
from tests.integration.helpers import Seen, consuming, publishing, serving, serving_plainly, warnings_of


WANTED = {"own", "absent", "unreadable"}


async def send_all_kinds(cluster, topic, rounds=5):
    """Produce records for this group, for another one, for every group, and with a header that is not UTF-8."""
    headers = {
        "own": [("topic_group", f"{topic}-group".encode()), ("other", b"header")],
        "other": [("topic_group", b"another-group")],
        "absent": None,
        "unreadable": [("topic_group", b"\xff\xfe"), ("other", b"header")],
    }
    records = [Record(name.encode(), None, header) for name, header in headers.items()] * rounds
    await produce(cluster.bootstrap_servers, topic, records)
    return len(records)


async def test_records_of_another_group_are_skipped_and_count_as_done(cluster, new_broker, new_topic, caplog):
    """They are not handled, and have no results; all others are, those with an unreadable header with a warning."""
    topic, out = await new_topic(), await new_topic()
    broker, seen = new_broker(), Seen()

    @consuming(broker, topic)
    @publishing(broker, out)
    async def handle(name: str, message: KafkaMessage) -> str:
        with seen.handling(name):
            assert message.headers.get("other", "header") == "header"
            return name

    count = await send_all_kinds(cluster, topic)
    async with serving(broker, commit_batch_timeout_sec=0.1):
        await cluster.until_committed(topic, {0: count})
    assert seen.counts == dict.fromkeys(WANTED, 5)
    assert await end_offsets(cluster.bootstrap_servers, out) == {0: 15}
    assert ["not UTF-8" in each for each in warnings_of(caplog)] == [True] * 5


async def test_a_batch_holds_only_the_records_of_its_group(cluster, new_broker, new_topic, caplog):
    """They are removed from the batch and done; a batch without other records is not handled."""
    topic, broker, batches = await new_topic(), new_broker(), []

    @consuming(broker, topic, batch=True, max_records=4)
    async def handle(names: list[str]):
        batches.append(names)

    count = await send_all_kinds(cluster, topic)
    await cluster.send(topic, ["other"] * 8, headers=[("topic_group", b"another-group")])
    async with serving(broker, commit_batch_timeout_sec=0.1):
        await cluster.until_committed(topic, {0: count + 8})
    assert sorted(name for names in batches for name in names) == sorted([*WANTED] * 5)
    assert all(batches)
    assert len(warnings_of(caplog)) == 5


async def test_each_of_two_groups_handles_its_own_records(cluster, new_broker, new_topic):
    """Two subscribers of two groups on one topic handle records by the header, and both commit all offsets."""
    topic, broker = await new_topic(), new_broker()
    seen = {group: Seen() for group in (f"{topic}-blue", f"{topic}-green")}

    def add(group):
        @consuming(broker, topic, group=group)
        async def handle(value: str):
            with seen[group].handling(value):
                pass

    for group in seen:
        add(group)
        values = (f"{group} {number}" for number in range(10))
        await cluster.send(topic, values, headers=[("topic_group", group.encode())])
    await cluster.send(topic, ["for all"])
    async with serving(broker, commit_batch_timeout_sec=0.1):
        for group in seen:
            await cluster.until_committed(topic, {0: 21}, group)
    for group, mine in seen.items():
        assert sorted(mine.values) == sorted([f"{group} {number}" for number in range(10)] + ["for all"])


@pytest.mark.parametrize("first", ["other", "own"])
async def test_the_record_that_attaches_is_filtered_as_well(cluster, new_broker, new_topic, caplog, first):
    """The first record of a plain broker is skipped or handled by the same rule, and committed."""
    topic, out = await new_topic(), await new_topic()
    broker, seen = new_broker(logger=logging.getLogger("test.topic-group")), Seen()

    @consuming(broker, topic)
    @publishing(broker, out)
    async def handle(name: str) -> str:
        with seen.handling(name):
            return name

    group = f"{topic}-group" if first == "own" else "another-group"
    await cluster.send(topic, [first], headers=[("topic_group", group.encode())])
    await cluster.send(topic, ["second"])
    async with serving_plainly(broker, commit_batch_timeout_sec=0.1):
        await cluster.until_committed(topic, {0: 2})
    assert sorted(seen.values) == (["own", "second"] if first == "own" else ["second"])
    assert await end_offsets(cluster.bootstrap_servers, out) == {0: len(seen.values)}
    assert [each for each in caplog.records if each.exc_info] == []


@asynccontextmanager
async def not_initialised(broker):
    """Run the broker without the library."""
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


def not_committing(broker):
    """Concurrent, with the acknowledgements of the subscriber's own policy."""
    return serving(broker, enable_batch_commit=False)


OTHERS = [
    Record(b"theirs", None, [("topic_group", b"another-group")]),
    Record(b"theirs", None, [("topic_group", b"another-group"), ("topic_group", b"GROUP")]),
    Record(b"theirs", None, [("topic_group", b"\xff"), ("topic_group", b"another-group")]),
    # FastStream can't parse it, and would let it be delivered again and again.
    Record(b"theirs", None, [("topic_group", b"another-group"), ("note", b"\xff")]),
    Record(b"\xff", None, [("topic_group", b"another-group")]),
]
OWN = [
    Record(b"ours", None, [("topic_group", b"GROUP"), ("topic_group", b"another-group")]),
    Record(b"ours", None, [("topic_group", b"\xff"), ("topic_group", b"GROUP")]),
    Record(b"ours", None, [("topic_group", b"GROUP"), ("topic_group", b"\xff")]),
    Record(b"ours", None, [("topic_group", b"\xff\xfe")]),
    Record(b"ours", None, None),
]


def in_group(record, group):
    """Write the group's name into the headers."""
    headers = [(name, value.replace(b"GROUP", group.encode())) for name, value in record.headers or ()]
    return Record(record.value, record.key, headers or None)


@pytest.mark.parametrize("batch", [False, True], ids=["records", "batches"])
@pytest.mark.parametrize(
    "case",
    [
        (AckPolicy.ACK_FIRST, serving),
        (AckPolicy.ACK, serving),
        (AckPolicy.NACK_ON_ERROR, serving),
        (AckPolicy.NACK_ON_ERROR, not_committing),
        (AckPolicy.NACK_ON_ERROR, serving_plainly),
        (AckPolicy.MANUAL, not_initialised),
        (AckPolicy.NACK_ON_ERROR, not_initialised),
    ],
    ids=lambda case: f"{case[0].name} {case[1].__name__}",
)
async def test_it_is_the_same_where_records_are_not_concurrent(cluster, new_broker, new_topic, case, batch):
    """With another ack policy, or not initialised: the handler gets its group's records only, the rest is done."""
    policy, run = case
    topic, out, seen = await new_topic(), await new_topic(), Seen()
    broker, router = new_broker(), KafkaRouter(middlewares=[Ours])

    async def handle(name: str) -> str:
        with seen.handling(name):
            return name

    async def handle_batch(names: list[str], message: KafkaMessage) -> str:
        assert len(names) == len(message.batch_headers) == len(message.body)
        for name in names:
            with seen.handling(name):
                pass
        return "batch"

    more: dict[str, Any] = {"batch": True, "max_records": 4} if batch else {}
    consuming(router, topic, ack_policy=policy, **more)(publishing(router, out)(handle_batch if batch else handle))
    broker.include_router(router)
    pairs = chain.from_iterable(zip(OTHERS, OWN, strict=True))
    # Those that can't be parsed as a batch are left to the test of single records.
    sent = [each for each in pairs if not batch or (each.headers or [])[-1:] != [("note", b"\xff")]]
    await produce(cluster.bootstrap_servers, topic, [in_group(each, f"{topic}-group") for each in sent])
    async with run(broker):
        await seen.until(len(OWN))
        if policy is not AckPolicy.MANUAL:
            await cluster.until_committed(topic, {0: len(sent)})
    assert seen.counts == {"ours": len(OWN)}
    if not batch:
        assert await end_offsets(cluster.bootstrap_servers, out) == {0: len(OWN)}


@pytest.mark.parametrize("batch", [False, True], ids=["records", "batches"])
async def test_it_is_the_same_in_memory(new_broker, batch):
    """TestKafkaBroker skips records for other groups, and publishes no result for them."""
    broker, seen, published = new_broker(), [], []

    async def handle(name: str) -> str:
        seen.append(name)
        return "handled"

    async def handle_batch(names: list[str]) -> str:
        seen.extend(names)
        return "handled"

    async def receive(text: str) -> None:
        published.append(text)

    consuming(broker, "in", group="billing", batch=batch)(publishing(broker, "out")(handle_batch if batch else handle))
    consuming(broker, "out")(receive)
    async with TestKafkaBroker(broker):
        await broker.publish("for no group", "in")
        await broker.publish("billing's", "in", headers={"topic_group": "billing"})
        await broker.publish("audit's", "in", headers={"topic_group": "audit"})
    assert seen == ["for no group", "billing's"]
    assert published == ["handled", "handled"]


async def test_get_one_and_async_for_return_every_record(cluster, new_broker, new_topic):
    """`get_one` and `async for` return all records; the caller can read the header."""
    topic, broker = await new_topic(), new_broker()
    one, many = (broker.subscriber(topic, auto_offset_reset="earliest") for _ in range(2))
    await cluster.send(topic, ["theirs"], headers=[("topic_group", b"another-group")])
    async with serving(broker):
        first = await one.get_one(timeout=10)
        assert first.body == b"theirs"
        async with asyncio.timeout(10):
            async for message in many:
                assert message.headers["topic_group"] == "another-group"
                break
