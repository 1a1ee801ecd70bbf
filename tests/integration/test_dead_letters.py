"""Dead letters on a real broker: their contents, and that the offset waits for the publish (I26)."""

import pytest
from aiokafka import AIOKafkaProducer
from faststream.exceptions import NackMessage
from typing_extensions import override

from faststream_concurrent_kafka import SetupError
from testkit.brokers import Record, produce
from tests.integration.helpers import Seen, both_loops, consuming, serving, serving_plainly
from tests.integration.letters import failing, read, reasons, to, unhandled


@pytest.fixture(autouse=True)
def nothing_unhandled(caplog):
    """Check that no exception is unretrieved, and no client of aiokafka open."""
    yield
    assert unhandled(caplog) == []


@pytest.mark.apache  # Tansu refuses some of these records
@pytest.mark.parametrize("consumer_only", [False, True])
async def test_the_raw_record_is_unchanged_but_for_the_reasons(cluster, new_broker, new_topic, consumer_only):
    """Key, value and headers are unchanged, whatever they contain, and more headers describe the failure."""
    topic, letters, broker = await new_topic(), await new_topic(), new_broker(consumer_only=consumer_only)
    _, handle = failing(13)
    consuming(broker, topic)(handle)
    originals = [
        Record(b"13", b"\xffkey", [("note", b"one"), ("note", b"two"), ("empty", b"")]),
        Record(b"13", None, [("note", b"\xff\xfe")]),
        Record(b"13", b"key", [("topic_group", b"\xff"), ("note", b"after")]),
        Record(b"\xff\xfe\x00", b"key"),
        Record(None, b"key"),
        Record(None, None),
        Record(None, None, [("note", b"\xff")]),
    ]
    await produce(cluster.bootstrap_servers, topic, originals[:5])
    await send_nothing(cluster, topic, [each.headers or [] for each in originals[5:]])
    raws = await read(cluster, topic, 7)
    assert [(each.key, each.value, list(each.headers)) for each in raws] == [
        (each.key, each.value, list(each.headers or [])) for each in originals
    ]
    async with serving(broker, **to(letters, retry_on=lambda error, _: str(error) == "number 13")):
        await cluster.until_committed(topic, {0: 7})
    found = {int(reasons(letter)["original-offset"]): letter for letter in await read(cluster, letters, 7)}
    assert sorted(found) == list(range(7))
    for raw in raws:
        letter = found[raw.offset]
        assert (letter.key, letter.value) == (raw.key, raw.value)
        assert letter.headers[: len(raw.headers)] == raw.headers
        assert len(letter.headers) == len(raw.headers) + 8
        why = reasons(letter)
        assert (why["original-topic"], why["original-partition"]) == (topic, "0")
        assert why["original-timestamp"] == str(raw.timestamp)
        assert why["original-consumer-group"] == f"{topic}-group"
        assert why["attempts"] == ("2" if raw.offset in {0, 2} else "1")
    assert {offset: reasons(letter)["exception-fqcn"].rpartition(".")[2] for offset, letter in found.items()} == {
        0: "ValueError",
        1: "UnicodeDecodeError",
        2: "ValueError",
        **dict.fromkeys(range(3, 6), "ValidationError"),
        6: "UnicodeDecodeError",
    }
    assert reasons(found[0])["exception-fqcn"] == "builtins.ValueError"
    assert reasons(found[0])["exception-message"] == "number 13"


async def send_nothing(cluster, topic, all_headers):
    """Produce records of neither key nor value, which aiokafka refuses one by one."""
    async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap_servers) as producer:
        for headers in all_headers:
            batch = producer.create_batch()
            batch.append(key=None, value=None, timestamp=None, headers=headers)
            await (await producer.send_batch(batch, topic, partition=0))


class UnreadableError(Exception):
    """An error without a readable text."""

    @override
    def __str__(self):
        raise RuntimeError("no text")


async def test_the_reason_is_bounded_and_never_a_reason_to_fail(cluster, new_broker, new_topic):
    """A long text is cut at 1 kB between characters; one that can't be read is replaced."""
    topic, letters, broker = await new_topic(), await new_topic(), new_broker()

    async def handle(number: int):
        raise UnreadableError if number else ValueError("é" * 5000)

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(2))
    async with serving(broker, **to(letters)):
        await cluster.until_committed(topic, {0: 2})
    found = {int(letter.value or b""): reasons(letter) for letter in await read(cluster, letters, 2)}
    assert found[0]["exception-message"] == "é" * 512
    # FastStream has tried to log it, and the pass has ended with the error of that attempt.
    assert (found[1]["exception-fqcn"], found[1]["exception-message"]) == ("builtins.RuntimeError", "no text")


@pytest.mark.asyncio(**both_loops)
async def test_each_record_of_a_failed_batch(cluster, new_broker, new_topic):
    """All records of a failed batch become dead letters, no others; a callable may name a topic for each record."""
    topic, letters, broker, batches = await new_topic(), await new_topic(), new_broker(), []

    async def handle(numbers: list[int]):
        batches.append(numbers)
        if 7 in numbers:
            raise NackMessage(delay=0.01)

    consuming(broker, topic, batch=True, max_records=5)(handle)
    await cluster.send(topic, range(20))
    async with serving(broker, **to(lambda record: letters if record.topic == topic else "")):
        await cluster.until_committed(topic, {0: 20})
    failed = next(batch for batch in batches if 7 in batch)
    assert batches.count(failed) == 2
    found = await read(cluster, letters, len(failed))
    assert [int(letter.value or b"") for letter in found] == failed
    assert [reasons(letter)["original-offset"] for letter in found] == [str(number) for number in failed]
    assert {reasons(letter)["exception-fqcn"] for letter in found} == {"faststream.exceptions.NackMessage"}


async def test_the_same_topic_is_refused(new_broker, new_topic):
    """The dead letters would come back for ever."""
    topic, broker = await new_topic(), new_broker()
    consuming(broker, topic)(failing()[1])
    with pytest.raises(SetupError, match="give DeadLetter another topic"):
        async with serving(broker, **to(topic)):
            pass


@pytest.mark.parametrize("first", ["a failing one", "one that can't be parsed"])
async def test_the_first_record_of_a_plain_broker(cluster, new_broker, new_topic, first):
    """It becomes a dead letter like any other."""
    topic, letters, broker = await new_topic(), await new_topic(), new_broker()
    seen, handle = failing(13)
    consuming(broker, topic)(handle)
    await cluster.send(topic, [13], headers=None if first == "a failing one" else [("note", b"\xff")])
    await cluster.send(topic, range(5))
    async with serving_plainly(broker, **to(letters)):
        await cluster.until_committed(topic, {0: 6})
        (letter,) = await read(cluster, letters, 1)
    assert reasons(letter)["original-offset"] == "0"
    assert seen.counts == dict.fromkeys(range(5), 1) | ({13: 2} if first == "a failing one" else {})


async def test_a_dead_letter_can_be_replayed(cluster, new_broker, new_topic):
    """Published to its original topic unchanged, it is handled."""
    topic, letters, poison, seen = await new_topic(), await new_topic(), {3}, Seen()
    broker = new_broker()

    async def handle(number: int):
        with seen.handling(number):
            if number in poison:
                raise ValueError

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(5))
    async with serving(broker, **to(letters)):
        (letter,) = await read(cluster, letters, 1)
        poison.clear()
        again = Record(letter.value, letter.key, list(letter.headers))
        await produce(cluster.bootstrap_servers, reasons(letter)["original-topic"], [again])
        await cluster.until_committed(topic, {0: 6})
    assert seen.counts == {0: 1, 1: 1, 2: 1, 3: 3, 4: 1}
