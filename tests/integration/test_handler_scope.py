"""FastStream's per-record state stays with its record while many are in flight."""

import asyncio
import logging
import time

import pytest
from faststream import BaseMiddleware, Context, ContextRepo, Depends
from faststream.kafka.annotations import KafkaMessage
from typing_extensions import override

from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware
from tests.integration.helpers import Seen, both_loops, consuming, serving


HANDLER_SEC = 0.2


@pytest.mark.asyncio(**both_loops)
async def test_context_values_belong_to_their_record(cluster, new_broker, new_topic):
    """With forty records in one handler at once, each gets its own message, log context and scoped values."""
    topic = await new_topic()
    all_in, seen, found = asyncio.Barrier(40), Seen(), []

    class Tenant(BaseMiddleware):
        @override
        async def consume_scope(self, call_next, msg):
            with self.context.scope("tenant", f"tenant {msg.body.decode()}"):
                return await call_next(msg)

    broker = new_broker(Tenant, KafkaConcurrentProcessingMiddleware)

    @consuming(broker, topic)
    async def handle(number: int, context: ContextRepo, message: KafkaMessage, tenant: str = Context()):
        with seen.handling(number):
            await all_in.wait()
            now = {key: context.get_local(key) for key in ("message", "tenant", "log_context")}
            whose = int(message.body), int(now["message"].body), tenant, now["tenant"]
            found.append((number, *whose, now["log_context"]["message_id"] == message.message_id))

    await cluster.send(topic, range(40))
    async with serving(broker):
        await seen.until(40)
    tenants = {number: f"tenant {number}" for number in range(40)}
    assert sorted(found) == [(i, i, i, tenants[i], tenants[i], True) for i in range(40)]


async def test_yield_dependencies_close_after_their_handler(cluster, new_broker, new_topic):
    """A dependency with `yield` is open while its handler runs, and is closed after it."""
    topic = await new_topic()
    broker, steps, seen = new_broker(), {}, Seen()

    async def opened(message: KafkaMessage):
        mine = steps.setdefault(int(message.body), [])
        mine.append("opened")
        yield mine
        mine.append("closed")

    @consuming(broker, topic)
    async def handle(number: int, mine: list[str] = Depends(opened, cast=False)):  # noqa: B008
        with seen.handling(number):
            mine.append("begun")
            await asyncio.sleep(0.05 * (number % 3))  # handler
            mine.append("handled")

    await cluster.send(topic, range(20))
    async with serving(broker):
        await seen.until(20)
    assert steps == {number: ["opened", "begun", "handled", "closed"] for number in range(20)}
    assert seen.peak > 1


@pytest.mark.parametrize("ours_is", ["first", "last"])
async def test_another_middleware_sees_the_real_exception_and_duration(cluster, new_broker, new_topic, ours_is):
    """`after_processed` of another middleware is called after the handler, with its exception, in either order."""
    topic, ends, seen = await new_topic(), {}, Seen()

    class Observer(BaseMiddleware):
        @override
        async def on_receive(self):
            self.began_at = time.monotonic()
            await super().on_receive()

        @override
        async def after_processed(self, exc_type=None, exc_val=None, exc_tb=None):
            ends[int(self.msg.value if self.msg else -1)] = exc_type, str(exc_val), time.monotonic() - self.began_at
            return await super().after_processed(exc_type, exc_val, exc_tb)

    order = [KafkaConcurrentProcessingMiddleware, Observer]
    broker = new_broker(*(order if ours_is == "first" else order[::-1]))

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(HANDLER_SEC)  # handler
            if number % 2:
                raise ValueError(number)

    await cluster.send(topic, range(10))
    async with serving(broker):
        await seen.until(10)
    assert seen.peak > 1
    for number in range(10):
        kind, text, duration_sec = ends[number]
        assert (kind, text) == ((ValueError, str(number)) if number % 2 else (None, "None"))
        assert duration_sec >= HANDLER_SEC * 0.95


async def test_processed_is_logged_after_the_handler_has_run(cluster, new_broker, new_topic, caplog):
    """FastStream logs one line before and one after the handler of a record."""
    topic, seen = await new_topic(), Seen()
    log = logging.getLogger("test.scope")
    broker = new_broker(logger=log)

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            await asyncio.sleep(0.02 * (number % 4))  # handler
            log.info("handled", extra={"message_id": message.message_id})

    await cluster.send(topic, range(12))
    with caplog.at_level(logging.INFO, log.name):
        async with serving(broker):
            await seen.until(12)
    lines = {}
    for record in caplog.records:
        if record.name == log.name and (message_id := getattr(record, "message_id", "")):
            lines.setdefault(message_id, []).append(record.getMessage().rsplit("- ", 1)[-1])
    assert list(lines.values()) == [["Received", "handled", "Processed"]] * 12


async def test_a_handlers_exception_is_logged_once_with_its_traceback(cluster, new_broker, new_topic, caplog):
    """FastStream logs one line for each failure, with the place where the handler raised."""
    topic, seen = await new_topic(), Seen()
    broker = new_broker(logger=logging.getLogger("test.scope"))

    @consuming(broker, topic)
    async def handle_badly(number: int):
        with seen.handling(number):
            raise ValueError(f"number {number}")

    await cluster.send(topic, range(5))
    with caplog.at_level(logging.WARNING):
        async with serving(broker):
            await seen.until(5)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert sorted(str(record.exc_info[1]) for record in errors) == [f"number {number}" for number in range(5)]
    for record in errors:
        assert "handle_badly" in logging.Formatter().formatException(record.exc_info)
