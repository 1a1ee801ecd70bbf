"""Helpers of the tests with dead letters."""

import asyncio
import gc
import logging
from typing import Any

from aiokafka import AIOKafkaConsumer

from faststream_concurrent_kafka import DeadLetter, FailurePolicy, get_kafka_handler_report, is_kafka_handler_alive
from testkit.brokers import wait_until
from tests.integration.helpers import PATIENCE_SEC, Seen


def unhandled(caplog):
    """Return the complaints of asyncio and aiokafka: unretrieved exceptions, clients left open."""
    gc.collect()
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    return [each.getMessage() for each in records if each.name == "asyncio" and each.levelno >= logging.ERROR]


def to(topic, **more: Any) -> dict[str, Any]:
    """Return settings with this dead letter topic."""
    quick: dict[str, Any] = {"max_attempts": 2, "first_backoff_sec": 0.02} | more
    return {"on_failure": FailurePolicy(**quick, then=DeadLetter(topic)), "commit_batch_timeout_sec": 0.05}


async def read(cluster, topic, count):
    """Return so many records of a topic by their places in it."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=cluster.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        records = []
        async with asyncio.timeout(PATIENCE_SEC):
            while len(records) < count:
                taken = await consumer.getmany(timeout_ms=100)
                records += [each for several in taken.values() for each in several]
        return sorted(records, key=lambda each: (each.partition, each.offset))
    finally:
        await consumer.stop()


def reasons(letter):
    """Return the headers that a dead letter gets from the library, without their common prefix."""
    return {
        name.removeprefix("kafka_dlt-"): value.decode()
        for name, value in letter.headers
        if name.startswith("kafka_dlt-")
    }


def failing(*poison):
    """Make a handler that fails for these numbers."""
    seen = Seen()

    async def handle(number: int):
        with seen.handling(number):
            if number in poison:
                raise ValueError(f"number {number}")

    return seen, handle


async def until_red(app, *words):
    """Wait until a problem with these words is reported, and return it; check that the process stays alive."""

    def found():
        problems = get_kafka_handler_report(app.context).problems
        return next((each for each in problems if all(word in each for word in words)), None)

    problem = await wait_until(found, PATIENCE_SEC, lambda: str(get_kafka_handler_report(app.context).problems))
    assert is_kafka_handler_alive(app.context)
    return problem
