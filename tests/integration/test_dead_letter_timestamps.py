"""The time stamp of a dead letter, by which Kafka's retention deletes it."""

import time

import pytest
from aiokafka import AIOKafkaProducer

from faststream_concurrent_kafka import DeadLetter, FailurePolicy
from tests.integration.helpers import consuming, serving, warnings_of
from tests.integration.letters import read, reasons


DAY_MS = 24 * 3600 * 1000
ANY_TIME = {"retention.ms": "-1", "message.timestamp.after.max.ms": str(2**63 - 1)}
STRICT = {"message.timestamp.before.max.ms": str(7 * DAY_MS), "message.timestamp.after.max.ms": str(DAY_MS)}

pytestmark = pytest.mark.apache  # the others do not know these settings


@pytest.mark.parametrize("keep", [False, True], ids=["by default", "kept"])
async def test_a_dead_letter_has_the_time_of_its_publishing(cluster, new_broker, new_topic, caplog, keep):
    """Unless `keep_timestamp` is set; an original one that the broker refuses (too old, in the future) is replaced."""
    topic, letters, broker = await new_topic(config=ANY_TIME), await new_topic(config=STRICT), new_broker()
    now_ms = int(time.time() * 1000)
    stamps = {"an hour ago": now_ms - DAY_MS // 24, "old": now_ms - 30 * DAY_MS, "in microseconds": now_ms * 1000}

    @consuming(broker, topic)
    async def handle(name: str):
        raise ValueError(name)

    async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap_servers) as producer:
        for name, stamp in stamps.items():
            await producer.send_and_wait(topic, name.encode(), timestamp_ms=stamp)
    policy = FailurePolicy(then=DeadLetter(letters, keep_timestamp=keep))
    # One after the other, because a broker refuses the whole batch.
    async with serving(broker, on_failure=policy, commit_batch_timeout_sec=0.05, ordering="partition"):
        await cluster.until_committed(topic, {0: 3})
    found = {letter.value.decode(): letter for letter in await read(cluster, letters, 3)}
    assert {name: reasons(letter)["original-timestamp"] for name, letter in found.items()} == {
        name: str(stamp) for name, stamp in stamps.items()
    }
    kept = {name for name, letter in found.items() if letter.timestamp == stamps[name]}
    assert kept == ({"an hour ago"} if keep else set())
    assert all(abs(found[name].timestamp - now_ms) < 60_000 for name in stamps.keys() - kept)
    assert sum("its time stamp is refused" in each for each in warnings_of(caplog)) == (2 if keep else 0)
