"""A dead letter that its own subscriber would read again is refused at start, or when it is published."""

from collections.abc import Callable
from typing import Any

import pytest
from faststream.kafka import KafkaRouter, TopicPartition

from faststream_concurrent_kafka import (
    DeadLetter,
    FailurePolicy,
    KafkaConcurrentProcessingMiddleware,
    SetupError,
    is_kafka_handler_healthy,
)
from testkit.brokers import end_offsets
from tests.integration.helpers import consuming, manual, serving
from tests.integration.letters import until_red


async def handle(body: str):
    raise ValueError(body)


READS: dict[str, Callable[[str], dict[str, Any]]] = {
    "its topic": lambda topic: {"topics": ["other", f"{topic}.dead"]},
    "a partition": lambda topic: {"partitions": [TopicPartition(topic, 0), TopicPartition(f"{topic}.dead", 1)]},
    "a pattern": lambda topic: {"pattern": rf"{topic}.*"},
    "a pattern that ends earlier": lambda topic: {"pattern": f"{topic}[.]de"},
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("prefix", ["", "shop."])
async def test_a_topic_that_its_subscriber_reads_is_refused_at_start(new_broker, how, prefix):
    """By topic, partition or pattern, with its router's prefix: the record would fail and come back for ever."""
    options = READS[how]("orders")
    router = KafkaRouter(prefix=prefix)
    router.subscriber(*options.pop("topics", ()), **manual("orders", **options))(handle)
    broker = new_broker()
    broker.include_router(router)
    policy = FailurePolicy(then=DeadLetter(f"{prefix}orders.dead"))
    with pytest.raises(SetupError, match=r"which it reads itself, and never end"):
        async with serving(broker, on_failure=policy):
            pass


async def test_chains_and_what_a_pattern_leaves_out_are_taken(cluster, new_broker, new_topic):
    """A subscriber of the dead letter topic, with another one for its failures; a pattern that does not match it."""
    topic = await new_topic()
    router = KafkaRouter(
        middlewares=[
            KafkaConcurrentProcessingMiddleware.configured(on_failure=FailurePolicy(then=DeadLetter(f"{topic}.buried")))
        ]
    )
    broker = new_broker()
    broker.subscriber(pattern=f"{topic}(?![.]dead|[.]buried)", **manual(topic))(handle)
    router.subscriber(f"{topic}.dead", **manual(f"{topic}.dead"))(handle)
    broker.include_router(router)
    await cluster.send(topic, ["m"])
    async with serving(
        broker, on_failure=FailurePolicy(then=DeadLetter(f"{topic}.dead")), commit_batch_timeout_sec=0.05
    ):
        await cluster.until_committed(topic, {0: 1})
        await cluster.until_committed(f"{topic}.dead", {0: 1})
    assert await end_offsets(cluster.bootstrap_servers, f"{topic}.buried") == {0: 1}


@pytest.mark.parametrize("batch", [False, True], ids=["one by one", "batch"])
@pytest.mark.parametrize("how", ["a pattern", "topics", "its own topic"])
async def test_a_callable_that_names_such_a_topic_halts_its_partition(cluster, new_broker, new_topic, how, batch):
    """It halts at the first such dead letter, with the reason; nothing is published, also of a batch."""
    topic, elsewhere = await new_topic(), await new_topic()
    broker = new_broker()
    options: dict[str, Any] = {"batch": batch}
    if how == "a pattern":
        broker.subscriber(pattern=rf"{topic}.*", **manual(topic, **options))(handle_any)
    else:
        consuming(broker, topic, *([f"{topic}.dead"] if how == "topics" else []), **options)(handle_any)

    def name(record):
        if record.offset == 0 and batch:
            return elsewhere
        return record.topic if how == "its own topic" else f"{record.topic}.dead"

    await cluster.send(topic, range(2))
    async with serving(broker, on_failure=FailurePolicy(then=DeadLetter(name)), commit_batch_timeout_sec=0.05) as app:
        await until_red(app, f"{topic}[0]@0 has halted its partition", "reads itself, and never end")
        assert not is_kafka_handler_healthy(app.context)
        assert await cluster.committed(topic) == {}
    assert await end_offsets(cluster.bootstrap_servers, topic) == {0: 2}
    assert await end_offsets(cluster.bootstrap_servers, elsewhere) == {0: 0}


async def handle_any(body: object):
    raise ValueError(body)
