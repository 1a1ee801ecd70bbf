"""FastStream's OpenTelemetry and Prometheus middlewares report the same with the library and without it."""

import asyncio
import logging
from collections import Counter
from typing import Any

import pytest
from faststream.kafka.opentelemetry import KafkaTelemetryMiddleware
from faststream.kafka.prometheus import KafkaPrometheusMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware
from testkit.brokers import wait_until
from tests.integration.helpers import Seen, consuming, publishing, serving, serving_plainly


HANDLER_SEC = 0.1
NUMBERS = range(9)
FAILING = {2, 5}
ORDERS = ["ours first", "ours last"]


def in_order(order, theirs):
    """Return the middlewares, with the library's before or after the other one."""
    both = [KafkaConcurrentProcessingMiddleware, theirs]
    return both if order == "ours first" else both[::-1]


def add_handler(broker, topic, out, during=lambda: None, *, batch=False):
    """Subscribe a handler that publishes its result, and sometimes fails."""
    seen = Seen()

    async def work(number: int) -> int:
        with seen.handling(number):
            await asyncio.sleep(HANDLER_SEC)  # handler
            during()
            if number in FAILING:
                raise ValueError(number)
            return number

    async def handle(number: int) -> int:
        return await work(number)

    async def handle_batch(numbers: list[int]) -> int:
        # Each batch has one number twice: FastStream tells batches of one from others.
        (number,) = set(numbers)
        return await work(number)

    more: dict[str, Any] = {"batch": True, "max_records": 2} if batch else {}
    consuming(broker, topic, **more)(publishing(broker, out)(handle_batch if batch else handle))
    return seen


async def send_numbers(cluster, topic, *, batch=False):
    """Produce the numbers with the same correlation id, so that runs can be compared; for batches, each twice."""
    numbers = [number for number in NUMBERS for _ in range(2)] if batch else NUMBERS
    await cluster.send(topic, numbers, headers=[("correlation_id", b"one for all")])
    return len(numbers)


async def without_the_library(broker, seen):
    """Let FastStream alone handle all records, one at a time, without commits."""
    await broker.start()
    await seen.until(len(NUMBERS))
    await broker.stop()


def tracing():
    """Return a middleware and the exporter of its spans."""
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return KafkaTelemetryMiddleware(tracer_provider=provider), spans


def shape(exporter):
    """Return what can be compared of the spans: names, kinds, statuses, attributes, events and the chain of parents."""
    spans = exporter.get_finished_spans()
    by_id = {span.context.span_id: span for span in spans}
    assert len(by_id) == len(spans)

    def line(span):
        attributes = tuple(sorted((key, str(value)) for key, value in span.attributes.items()))
        events = tuple(event.name for event in span.events)
        return span.name, span.kind, span.status.status_code, span.status.description, attributes, events

    def chain(span):
        parent = by_id[span.parent.span_id] if span.parent else None
        return (line(span), *(chain(parent) if parent else ()))

    return Counter(map(chain, spans))


def processing_sec(exporter):
    """Return the durations of the spans around the handlers."""
    return [(s.end_time - s.start_time) / 1e9 for s in exporter.get_finished_spans() if s.name.endswith("process")]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [False, True])
async def test_spans_are_the_same_as_without_the_library(cluster, new_broker, new_topic, order, batch):
    """Same names, kinds, parents, attributes, statuses and numbers of spans, and no span shorter than its handler."""
    topic, out = await new_topic(), await new_topic()
    await send_numbers(cluster, topic, batch=batch)
    middleware, alone = tracing()
    broker = new_broker(middleware)
    await without_the_library(broker, add_handler(broker, topic, out, batch=batch))

    middleware, together = tracing()
    broker = new_broker(*in_order(order, middleware))
    seen = add_handler(broker, topic, out, batch=batch)
    async with serving(broker):
        await seen.until(len(NUMBERS))

    assert seen.peak > 1
    assert shape(together) == shape(alone)
    durations = processing_sec(together)
    assert len(durations) == len(NUMBERS)
    assert min(durations) >= HANDLER_SEC * 0.95


@pytest.mark.parametrize("order", ORDERS)
async def test_spans_are_the_same_when_attached_at_the_first_record(cluster, new_broker, new_topic, caplog, order):
    """Without `broker=`, the first record, which is in hand at the attachment, has the same spans as all others."""
    topic, out = await new_topic(), await new_topic()
    await send_numbers(cluster, topic)
    middleware, alone = tracing()
    broker = new_broker(middleware)
    await without_the_library(broker, add_handler(broker, topic, out))

    middleware, together = tracing()
    broker = new_broker(*in_order(order, middleware), logger=logging.getLogger("test.telemetry"))
    seen = add_handler(broker, topic, out)
    async with serving_plainly(broker):
        await seen.until(len(NUMBERS))

    assert shape(together) == shape(alone)
    assert min(processing_sec(together)) >= HANDLER_SEC * 0.95
    errors = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert sorted(errors) == [str(number) for number in sorted(FAILING)]
    assert await cluster.committed(topic) == {0: len(NUMBERS)}


def metrics_of(registry):
    """Return the samples that can be compared, and the sums of durations."""
    samples, durations = {}, {}
    for metric in registry.collect():
        for sample in metric.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            if sample.name.endswith("_duration_seconds_sum"):
                durations[sample.name] = sample.value
            elif not sample.name.endswith(("_created", "_duration_seconds_bucket")):
                samples[key] = sample.value
    return samples, durations


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [False, True])
async def test_metrics_are_the_same_as_without_the_library(cluster, new_broker, new_topic, order, batch):
    """Same counts, statuses, exceptions and sizes; real durations; `in process` rises, and ends at 0."""
    topic, out = await new_topic(), await new_topic()
    await send_numbers(cluster, topic, batch=batch)
    registry = CollectorRegistry()
    broker = new_broker(KafkaPrometheusMiddleware(registry=registry))
    await without_the_library(broker, add_handler(broker, topic, out, batch=batch))
    alone, _ = metrics_of(registry)

    registry, in_process = CollectorRegistry(), []
    broker = new_broker(*in_order(order, KafkaPrometheusMiddleware(registry=registry)))
    labels = {"app_name": "faststream", "broker": "kafka", "handler": topic}

    def gauge():
        return registry.get_sample_value("faststream_received_messages_in_process", labels)

    seen = add_handler(broker, topic, out, during=lambda: in_process.append(gauge()), batch=batch)
    async with serving(broker):
        await seen.until(len(NUMBERS))
        await wait_until(lambda: not gauge(), 5, lambda: f"in process: {gauge()}")
    together, durations = metrics_of(registry)

    assert together == alone
    assert max(in_process) == seen.peak * (2 if batch else 1) > 1
    handled_sec = durations["faststream_received_processed_messages_duration_seconds_sum"]
    assert handled_sec >= HANDLER_SEC * len(NUMBERS) * 0.95
    assert ("exception_type", "ValueError") in {label for key in together for label in key[1:]}
