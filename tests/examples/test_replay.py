"""The tool that replays dead letters, on a real broker; and the documentation shows its code."""

import sys
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage

from faststream_concurrent_kafka import DeadLetter, FailurePolicy, KafkaConcurrentProcessingMiddleware
from testkit.brokers import Record, create_topic, end_offsets, produce, wait_until
from tests.examples.programs import PATIENCE_SEC, ROOT, running
from tests.integration.helpers import Cluster, consuming, serving
from tests.integration.letters import read


async def test_dead_letters_are_handled_once_their_cause_is_mended(kafka, tmp_path):
    """Two of three records become dead letters; after a replay each is handled, with its original headers."""
    bootstrap = kafka.bootstrap_servers
    topic = f"replayed-{uuid4().hex[:8]}"
    for name in (topic, f"{topic}.dead"):
        await create_topic(bootstrap, name, 2)
    handled: list[tuple[str, dict[str, str]]] = []
    is_mended = False
    cluster = Cluster(bootstrap)
    broker = KafkaBroker(list(bootstrap), middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)

    @consuming(broker, topic)
    async def handle(body: str, message: KafkaMessage) -> None:
        if body != "good" and not is_mended:
            raise LookupError(body)
        handled.append((body, {name: message.headers[name] for name in message.headers if name != "content-type"}))

    async def replay():
        command = [sys.executable, "examples/replay_dead_letters.py", ",".join(bootstrap), f"{topic}.dead"]
        with running(command, tmp_path / "replay.log", bootstrap=bootstrap) as program:
            assert await program.ended(PATIENCE_SEC) == 0, program.story()
            return program.output.split("\n")[-2]

    async with serving(
        broker, on_failure=FailurePolicy(then=DeadLetter(f"{topic}.dead")), commit_batch_timeout_sec=0.05
    ):
        records = [Record(value, key=value, headers=[("from", b"a shop")]) for value in (b"bad", b"good", b"worse")]
        await produce(bootstrap, topic, records)
        ends = {partition: end for partition, end in (await end_offsets(bootstrap, topic)).items() if end}
        await wait_until(lambda: len(handled) == 1, PATIENCE_SEC, lambda: f"handled {handled}")
        await cluster.until_committed(topic, ends)
        is_mended = True
        assert await replay() == "replayed 2"
        await wait_until(lambda: len(handled) == 3, PATIENCE_SEC, lambda: f"handled {handled}")
        assert await replay() == "replayed 0"
    assert sorted(body for body, _ in handled) == ["bad", "good", "worse"]
    assert all(headers == {"from": "a shop"} for _, headers in handled)


@pytest.mark.apache  # Tansu refuses some of these records
async def test_odd_records_are_replayed_as_they_died_and_others_are_passed_over(kafka, tmp_path):
    """Records without key and value, with a null header, too large by default; one that is no dead letter."""
    bootstrap = kafka.bootstrap_servers
    topic = f"odd-{uuid4().hex[:8]}"
    for name in (topic, f"{topic}.dead"):
        await create_topic(bootstrap, name, 1, config={"max.message.bytes": "5000000"})
    dead = [("kafka_dlt-original-topic", b"elsewhere"), ("kafka_dlt-original-topic", topic.encode())]
    more = [("kafka_dlt-exception-message", None), ("kafka_dlt-attempts", b"\xff")]
    own = [("note", None), ("note", b"\xff"), ("note", b"")]
    good = [(None, None, own), (b"k", None, []), (None, b"v", own), (b"\xff", b"x" * 2_000_000, [])]
    foreign = [[], [("note", b"x")], [("kafka_dlt-original-topic", None)], [("kafka_dlt-original-topic", b"\xff")]]
    async with AIOKafkaProducer(bootstrap_servers=list(bootstrap), max_request_size=5_000_000) as producer:
        for key, value, headers in good:
            await send_odd(producer, f"{topic}.dead", key, value, [*headers, *dead, *more])
        for headers in foreign:
            await send_odd(producer, f"{topic}.dead", None, b"foreign", headers)
        await send_odd(producer, f"{topic}.dead", None, b"last", dead)
    command = [sys.executable, "examples/replay_dead_letters.py", ",".join(bootstrap), f"{topic}.dead"]
    with running(command, tmp_path / "replay.log", bootstrap=bootstrap) as program:
        assert await program.ended(PATIENCE_SEC) == 0, program.story()
        output = program.output
    assert "replayed 5" in output
    assert [
        f"{topic}.dead[0]@{offset} has no kafka_dlt-original-topic: passed over" in output for offset in range(9)
    ] == [4 <= offset < 8 for offset in range(9)]
    found = await read(Cluster(bootstrap), topic, 5)
    assert [(each.key, each.value, list(each.headers)) for each in found] == [*good, (None, b"last", [])]


async def send_odd(producer, topic, key, value, headers):
    """Publish a record, also one that `send` would refuse."""
    batch = producer.create_batch()
    batch.append(key=key, value=value, timestamp=None, headers=headers)
    await (await producer.send_batch(batch, topic, partition=0))


def test_the_documentation_shows_this_tool():
    """docs/dead_letters.md holds the code of the example, word for word."""
    assert (ROOT / "examples/replay_dead_letters.py").read_text() in (ROOT / "docs/dead_letters.md").read_text()
