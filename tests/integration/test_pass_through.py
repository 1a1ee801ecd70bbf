"""Subscribers that stay sequential, with one warning; concurrent ones without commits; refused settings."""

import asyncio
import logging

import pytest
from faststream import FastStream
from faststream.middlewares import AckPolicy

from faststream_concurrent_kafka import (
    KafkaConcurrentHandler,
    SettingsError,
    SetupError,
    initialize_concurrent_processing,
    is_kafka_handler_healthy,
    stop_concurrent_processing,
)
from testkit.brokers import wait_until
from tests.integration.helpers import Gated, Seen, consuming, manual, serving, serving_plainly, warnings_of


OTHERS = [policy for policy in AckPolicy if policy is not AckPolicy.MANUAL]


@pytest.mark.parametrize("policy", OTHERS, ids=lambda policy: policy.name)
@pytest.mark.parametrize("serve", [serving, serving_plainly])
@pytest.mark.filterwarnings("ignore:AckPolicy.REJECT_ON_ERROR has the same effect:UserWarning")
async def test_another_ack_policy_passes_through_with_one_warning(  # noqa: PLR0917 - two of them are parameters
    cluster, new_broker, new_topic, caplog, policy, serve
):
    """FastStream handles and acknowledges one record at a time as usual; the warning says why and what to do."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic, ack_policy=policy)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0.01)  # handler

    await cluster.send(topic, range(10))
    async with serve(broker):
        await seen.until(10)
    assert seen.peak == 1
    assert seen.values == list(range(10))
    assert await cluster.committed(topic) == {0: 10}
    (warning,) = (each for each in warnings_of(caplog) if topic in each)
    assert policy.name in warning
    assert "AckPolicy.MANUAL" in warning


@pytest.mark.parametrize("policy", [AckPolicy.MANUAL, AckPolicy.ACK_FIRST])
async def test_without_batch_commits_the_library_commits_nothing(cluster, new_broker, new_topic, caplog, policy):
    """`enable_batch_commit=False`: concurrent under any policy, and the policy decides about offsets."""
    topic, broker = await new_topic(), new_broker()
    seen = Gated().subscribe(broker, topic, ack_policy=policy)
    await cluster.send(topic, range(10))
    async with serving(broker, enable_batch_commit=False, commit_batch_timeout_sec=0.01):
        await seen.together(10)
    assert await cluster.committed(topic) == ({} if policy is AckPolicy.MANUAL else {0: 10})
    assert warnings_of(caplog) == []


async def test_get_one_and_async_for_are_left_alone(cluster, new_broker, new_topic, caplog):
    """The application reads a subscriber without a handler itself, while another one is concurrent."""
    topic, read = await new_topic(), await new_topic()
    broker = new_broker()
    seen, reader = Gated().subscribe(broker, topic), broker.subscriber(read, **manual(read))
    await cluster.send(topic, range(5))
    await cluster.send(read, range(5))
    async with serving(broker):
        values = [int((await reader.get_one()).body) for _ in range(2)]
        async for message in reader:
            values.append(int(message.body))
            if len(values) == 5:
                break
        await seen.together(5)
    assert values == list(range(5))
    assert warnings_of(caplog) == []


async def test_max_workers_are_refused(new_broker, new_topic):
    """The error names the subscriber's setting and what to do; nothing is left initialised."""
    topic, broker = await new_topic(), new_broker()

    @consuming(broker, topic, max_workers=3)
    async def handle(number: int): ...

    app = FastStream(broker, logger=None)
    with pytest.raises(SetupError, match=r"max_workers=3.*concurrency_limit"):
        await initialize_concurrent_processing(app.context)
    assert not is_kafka_handler_healthy(app.context)


@pytest.mark.parametrize("policy", [AckPolicy.MANUAL, AckPolicy.ACK_FIRST], ids=lambda policy: policy.name)
async def test_max_workers_on_a_subscriber_that_is_found_late(cluster, new_broker, new_topic, caplog, policy):
    """Found by its first record, too late to refuse the start: one warning, and FastStream handles the records."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic, max_workers=3, ack_policy=policy)
    async def handle(number: int):
        with seen.handling(number):
            pass

    await cluster.send(topic, range(20))
    async with serving_plainly(broker):
        await seen.until(20)
    (warning,) = (each for each in warnings_of(caplog) if topic in each)
    assert "max_workers=3" in warning
    assert seen.counts == dict.fromkeys(range(20), 1)


async def test_initialising_twice(new_broker, caplog):
    """The same settings give the same handler, others an error that names the difference; stopping twice is fine."""
    app = FastStream(new_broker(), logger=None)
    first = await initialize_concurrent_processing(app.context, concurrency_limit=7)
    assert await initialize_concurrent_processing(app.context, concurrency_limit=7) is first
    assert KafkaConcurrentHandler(concurrency_limit=7) is first
    with pytest.raises(SetupError, match=r"concurrency_limit=7 .*8"):
        await initialize_concurrent_processing(app.context, concurrency_limit=8)
    assert is_kafka_handler_healthy(app.context)
    await stop_concurrent_processing(app.context)
    await stop_concurrent_processing(app.context)
    second = await initialize_concurrent_processing(app.context, concurrency_limit=8)
    assert second is not first
    await stop_concurrent_processing(app.context)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("concurrency_limit", -1, "at least 0"),
        ("enable_batch_commit", "yes", "True or False"),
        ("commit_batch_size", 0, "at least 1"),
        ("commit_batch_timeout_sec", 0, "greater than 0"),
        ("shutdown_timeout_sec", float("nan"), "finite"),
        ("max_uncommitted_tasks", 1.5, "an integer"),
        ("rebalance_flush_timeout_sec", -0.1, "at least 0"),
        ("commit_failure_timeout_sec", None, "number of seconds"),
    ],
)
async def test_a_bad_setting_is_named_with_what_is_allowed(new_broker, name, value, allowed):
    """The error names the setting, the given value and what is allowed; a valid one works afterwards."""
    app = FastStream(new_broker(), logger=None)
    with pytest.raises(SettingsError) as raised:
        await initialize_concurrent_processing(app.context, **{name: value})
    for part in (name, repr(value), allowed):
        assert part in str(raised.value)
    assert not is_kafka_handler_healthy(app.context)
    await initialize_concurrent_processing(app.context)
    await wait_until(lambda: is_kafka_handler_healthy(app.context), 1, "healthy")
    await stop_concurrent_processing(app.context)


@pytest.mark.parametrize(("context", "broker"), [(None, None), ("context", None), ("good", object())])
async def test_wrong_arguments_are_named(new_broker, context, broker):
    """An argument that is no context or broker is refused by an error that names it."""
    chosen = new_broker().context if context == "good" else context
    with pytest.raises(TypeError, match="broker must be" if context == "good" else "context must be"):
        await initialize_concurrent_processing(chosen, broker=broker)
