"""Initialisation warns of a setup in which no subscriber is concurrent, or nothing is committed."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaRouter

from faststream_concurrent_kafka import (
    KafkaConcurrentHandler,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware as Ours
from faststream_concurrent_kafka.testing import run_virtual


MANUAL: dict[str, Any] = {"group_id": "group", "ack_policy": AckPolicy.MANUAL}


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run


def subscribe(broker, topic, **keywords):
    async def handle(_text: str) -> None: ...

    broker.subscriber(topic, **keywords)(handle)


async def looked(context, **options):
    """Initialise, let the observer take a few samples, stop; return the problems before and after the samples."""
    await initialize_concurrent_processing(context, **options)
    try:
        at_once = get_kafka_handler_report(context).problems
        await asyncio.sleep(5)
        return at_once, get_kafka_handler_report(context).problems
    finally:
        await stop_concurrent_processing(context)
        assert KafkaConcurrentHandler._instance is None


def warnings(caplog, *words):
    return [text for text in map(str, caplog.messages) if all(word in text for word in words)]


@virtual
async def test_a_forgotten_middleware_is_named_and_health_is_red(caplog):
    """Each such subscriber is named once, at once: it would not be concurrent, and nothing committed."""
    broker = KafkaBroker(logger=None)
    for topic in ("orders", "bills"):
        subscribe(broker, topic, **MANUAL)
    at_once, later = await looked(FastStream(broker, logger=None).context)
    assert at_once == later
    assert at_once[0].startswith("no subscriber is concurrent: KafkaConcurrentProcessingMiddleware")
    assert "orders" in at_once[0]
    for topic in ("orders", "bills"):
        (warning,) = warnings(caplog, f"['{topic}'] is not concurrent")
        assert "add the middleware to its broker or router" in warning


def nothing_yet(_broker): ...


def committed_by_its_policy(broker):
    subscribe(broker, "orders", group_id="group", ack_policy=AckPolicy.ACK)


def without_handler(broker):
    broker.subscriber("orders", **MANUAL)


@pytest.mark.parametrize("declare", [nothing_yet, committed_by_its_policy, without_handler])
@virtual
async def test_what_needs_no_middleware_is_left_in_peace(caplog, declare):
    """No subscriber yet, one for which FastStream commits, or one for `get_one()`: no warning."""
    declare(broker := KafkaBroker(logger=None))
    assert await looked(FastStream(broker, logger=None).context) == ((), ())
    assert caplog.messages == []


@virtual
async def test_beside_concurrent_subscribers_others_are_named_and_health_is_green(caplog):
    """Their handlers may acknowledge by themselves."""
    broker, router = KafkaBroker(logger=None), KafkaRouter(middlewares=[Ours])
    subscribe(broker, "by hand", **MANUAL)
    subscribe(router, "orders", **MANUAL)
    broker.include_router(router)
    assert await looked(FastStream(broker, logger=None).context) == ((), ())
    assert warnings(caplog) == warnings(caplog, "['by hand'] is not concurrent", "unless its handlers do that")


@virtual
async def test_it_is_over_when_the_middleware_is_added(caplog):
    """Health turns green at the observer's next sample."""
    subscribe(broker := KafkaBroker(logger=None), "orders", **MANUAL)
    context = FastStream(broker, logger=None).context
    await initialize_concurrent_processing(context)
    assert get_kafka_handler_report(context).problems
    broker.add_middleware(Ours)
    await asyncio.sleep(2)
    assert get_kafka_handler_report(context).problems == ()
    assert warnings(caplog, "orders") == warnings(caplog, "is not concurrent")
    await stop_concurrent_processing(context)


@pytest.mark.parametrize("policy", [AckPolicy.MANUAL, AckPolicy.ACK_FIRST])
@virtual
async def test_without_a_group_nothing_can_be_committed_which_is_said_once(caplog, policy):
    """It may be intended (every process handles every record); with enable_batch_commit=False there is no warning."""
    broker = KafkaBroker(logger=None, middlewares=[Ours])
    subscribe(broker, "news", ack_policy=policy)
    commits = policy is AckPolicy.MANUAL
    context = FastStream(broker, logger=None).context
    assert await looked(context, enable_batch_commit=commits) == ((), ())
    assert len(warnings(caplog, "['news'] has no group_id", "nothing can be committed")) == int(commits)


@pytest.mark.parametrize("what", ["a broker's context", "another broker's", "an application", "a broker"])
@virtual
async def test_a_context_in_which_no_broker_can_be_found(caplog, what):
    """One warning says what to pass, and what follows otherwise."""
    broker = KafkaBroker(logger=None, middlewares=[Ours])
    subscribe(broker, "orders", **MANUAL)
    contexts = {"another broker's": KafkaBroker(logger=None).context, "an application": FastStream(logger=None).context}
    context = contexts.get(what, broker.context)
    assert await looked(context, broker=broker if what == "a broker" else None) == ((), ())
    is_told = what in {"an application", "a broker"}
    assert len(warnings(caplog, "initialize_concurrent_processing(context, broker=broker)")) == int(not is_told)
    assert len(warnings(caplog)) == int(not is_told)


@virtual
async def test_what_can_not_be_concurrent_is_red_also_when_it_is_declared_later():
    """Health has the text of the error that the initialisation would have raised."""
    broker = KafkaBroker(logger=None, middlewares=[Ours])
    context = FastStream(broker, logger=None).context
    await initialize_concurrent_processing(context)
    subscribe(broker, "orders", group_id="group", max_workers=3)
    await asyncio.sleep(2)
    (problem,) = get_kafka_handler_report(context).problems
    assert "max_workers=3" in problem
    await stop_concurrent_processing(context)
