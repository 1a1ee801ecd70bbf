"""`handler_timeout_sec` on a real broker (I27)."""

import asyncio
import threading
from typing import Any

import pytest
from faststream import BaseMiddleware
from faststream.kafka import KafkaRouter
from faststream.kafka.opentelemetry import KafkaTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from typing_extensions import override

from faststream_concurrent_kafka import (
    Attempt,
    DeadLetter,
    FailurePolicy,
    HandlerTimeoutError,
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
    is_kafka_handler_healthy,
)
from testkit.brokers import wait_until
from tests.integration.helpers import (
    Seen,
    both_loops,
    consuming,
    publishing,
    serving,
    serving_plainly,
    warnings_of,
)
from tests.integration.letters import read, reasons


LIMIT_SEC = 0.5
LIMITED: dict[str, Any] = {"handler_timeout_sec": LIMIT_SEC, "commit_batch_timeout_sec": 0.05}


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("plainly", [False, True])
async def test_over_its_limit_it_is_cancelled_and_has_failed(cluster, new_broker, new_topic, plainly):
    """The failure policy decides, here a dead letter with the place where it was waiting; other records go on."""
    topic, letters, out, broker = await new_topic(), await new_topic(), await new_topic(), new_broker()
    seen, cleaned_up = Seen(), []

    async def wait_for_ever():
        await asyncio.Event().wait()

    async def handle(number: int) -> int:
        with seen.handling(number):
            if number in {0, 3}:
                try:
                    await wait_for_ever()
                finally:
                    cleaned_up.append(number)
            await asyncio.sleep(LIMIT_SEC / 10)  # handler
        return number

    consuming(broker, topic)(publishing(broker, out)(handle))
    await cluster.send(topic, range(6))
    policy = FailurePolicy(max_attempts=2, first_backoff_sec=0.01, then=DeadLetter(letters))
    run = serving_plainly if plainly else serving
    async with run(broker, on_failure=policy, **LIMITED):
        await cluster.until_committed(topic, {0: 6})
    assert seen.counts == {0: 2, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
    assert sorted(cleaned_up) == [0, 0, 3, 3]
    assert sorted(int(each.value or b"") for each in await read(cluster, out, 4)) == [1, 2, 4, 5]
    found = await read(cluster, letters, 2)
    assert sorted(int(letter.value or b"") for letter in found) == [0, 3]
    for why in map(reasons, found):
        assert why["exception-fqcn"] == "faststream_concurrent_kafka.errors.HandlerTimeoutError"
        assert f"was cancelled after {LIMIT_SEC} s" in why["exception-message"]
        assert "in wait_for_ever" in why["exception-message"]
        assert why["attempts"] == "2"


async def raise_timeout_error():
    """Raise a TimeoutError, as a database client does."""
    raise TimeoutError("of the database")


async def have_a_limit_of_ones_own():
    """Exceed a timeout that the handler itself has set."""
    async with asyncio.timeout(0.01):
        await asyncio.Event().wait()


async def wait_for_something():
    """Exceed a timeout of `asyncio.wait_for`."""
    await asyncio.wait_for(asyncio.Event().wait(), 0.01)


async def raise_cancelled_error():
    """Raise a CancelledError without being cancelled."""
    raise asyncio.CancelledError


OWN = {
    raise_timeout_error: "builtins.TimeoutError",
    have_a_limit_of_ones_own: "builtins.TimeoutError",
    wait_for_something: "builtins.TimeoutError",
    raise_cancelled_error: "asyncio.exceptions.CancelledError",
}


@pytest.mark.parametrize("raise_it", OWN)
async def test_its_own_timeouts_are_its_own(cluster, new_broker, new_topic, raise_it):
    """A TimeoutError that the handler raises in time is never taken for the limit."""
    topic, letters, broker = await new_topic(), await new_topic(), new_broker()

    async def handle(number: int):
        if number == 1:
            await raise_it()

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    policy = FailurePolicy(then=DeadLetter(letters))
    async with serving(broker, on_failure=policy, handler_timeout_sec=30, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 3})
    (letter,) = await read(cluster, letters, 1)
    assert reasons(letter)["exception-fqcn"] == OWN[raise_it]


@pytest.mark.parametrize("ordering", ["unordered", "key"])
async def test_a_swallower_is_named_and_keeps_one_slot(cluster, new_broker, new_topic, caplog, ordering):
    """It keeps its only slot; log and health say where it is; its end counts as the failure."""
    topic, broker, seen, gate, attempts = await new_topic(), new_broker(), Seen(), asyncio.Event(), []

    async def swallow():
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await gate.wait()

    async def handle(number: int, attempt: Attempt):
        with seen.handling(number):
            attempts.append((number, attempt))
            if number == 0 and attempt == 1:
                await swallow()

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    policy = FailurePolicy(max_attempts=2, first_backoff_sec=0.01)
    async with serving(broker, concurrency_limit=1, ordering=ordering, on_failure=policy, **LIMITED) as app:
        (problem,) = await wait_until(lambda: get_kafka_handler_report(app.context).problems, 10, "red")
        assert f"{topic}[0]@0" in problem
        assert "in its slot" in problem
        assert "in swallow" in problem
        assert (seen.running, attempts) == ({0}, [(0, 1)])
        await wait_until(lambda: any("must not swallow" in text for text in warnings_of(caplog)), 5, "it is logged")
        gate.set()
        await cluster.until_committed(topic, {0: 3})
        assert is_kafka_handler_healthy(app.context)
    assert seen.peak == 1
    assert sorted(attempts) == [(0, 1), (0, 2), (1, 1), (2, 1)]
    assert any("HandlerTimeoutError" in text and "attempt 1 of 2" in text for text in warnings_of(caplog))


async def test_a_thread_can_not_be_cancelled_and_keeps_one_slot(cluster, new_broker, new_topic):
    """A synchronous handler over its limit is named, and keeps its slot until its thread ends."""
    topic, broker, gate, running, peaks = await new_topic(), new_broker(), threading.Event(), set(), []

    def handle(number: int):
        running.add(number)
        peaks.append(len(running))
        if number == 0:
            gate.wait(30)
        running.discard(number)

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    try:
        async with serving(broker, concurrency_limit=1, **LIMITED) as app:
            (problem,) = await wait_until(lambda: get_kafka_handler_report(app.context).problems, 10, "red")
            assert f"{topic}[0]@0" in problem
            assert (running, peaks) == ({0}, [1])
            gate.set()
            await cluster.until_committed(topic, {0: 3})
            assert is_kafka_handler_healthy(app.context)
    finally:
        gate.set()
    assert peaks == [1, 1, 1]


async def test_one_router_has_a_limit_and_another_has_none(cluster, new_broker, new_topic):
    """The limit applies to the subscribers of its router."""
    topic, other, broker, seen = await new_topic(), await new_topic(), new_broker(), Seen()
    router = KafkaRouter(middlewares=[KafkaConcurrentProcessingMiddleware.configured(handler_timeout_sec=LIMIT_SEC)])
    errors = []

    async def handle(number: int):
        try:
            await asyncio.sleep(LIMIT_SEC * 4)  # handler
        except asyncio.CancelledError:
            errors.append(number)
            raise
        with seen.handling(number):
            pass

    consuming(router, topic)(handle)
    consuming(broker, other)(handle)
    broker.include_router(router)
    await cluster.send(topic, range(5))
    await cluster.send(other, range(10, 15))
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 5})
        await cluster.until_committed(other, {0: 5})
    assert sorted(errors) == list(range(5))
    assert sorted(seen.values) == list(range(10, 15))


@pytest.mark.parametrize("order", ["ours first", "ours last"])
async def test_others_are_told_what_has_happened(cluster, new_broker, new_topic, order):
    """Middlewares on either side get the error at the end of the pass, and the span has an error status."""
    topic, seen_errors, spans, provider = await new_topic(), [], InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))

    class Watching(BaseMiddleware):
        @override
        async def after_processed(self, exc_type=None, exc_val=None, exc_tb=None):
            seen_errors.append(exc_type)
            return False

    chain = [KafkaConcurrentProcessingMiddleware, Watching, KafkaTelemetryMiddleware(tracer_provider=provider)]
    broker = new_broker(*(chain if order == "ours first" else chain[::-1]))

    async def handle(number: int):
        if number == 1:
            await asyncio.Event().wait()

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    async with serving(broker, **LIMITED):
        await cluster.until_committed(topic, {0: 3})
    assert sorted(map(str, seen_errors)) == sorted(map(str, [None, None, HandlerTimeoutError]))
    processed = [span for span in spans.get_finished_spans() if span.name.endswith("process")]
    assert sorted(span.status.status_code is StatusCode.ERROR for span in processed) == [False, False, True]
