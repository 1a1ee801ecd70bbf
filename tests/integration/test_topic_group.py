"""The `topic_group` header: one topic for several groups, each record meant for one of them."""

import logging

import pytest
from faststream.kafka.annotations import KafkaMessage

from tests.brokers import Record, end_offsets, produce
from tests.integration.helpers import Seen, consuming, publishing, serving, serving_plainly, warnings_of


WANTED = {"own", "absent", "unreadable"}


async def send_all_kinds(cluster, topic, rounds=5):
    """Produce records for this group, for another one, for anybody, and with a header that is not text."""
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
    """Nothing is handled or published for them; all others are, those with an unreadable header with a warning."""
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
    """Others are taken out of the batch and done; a batch without any record left is not handled at all."""
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
    """Two subscribers of two groups on one topic share it by the header, and both commit all of it."""
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
    """The very first record of a plain broker is skipped or handled by the same rule, and committed."""
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
