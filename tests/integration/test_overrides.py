"""Settings of one router or broker: `KafkaConcurrentProcessingMiddleware.configured`."""

import asyncio
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
from faststream.kafka import KafkaRouter

from faststream_concurrent_kafka import (
    DeadLetter,
    FailurePolicy,
    HandlerTimeoutError,
    KafkaConcurrentProcessingMiddleware,
    SettingsError,
    SetupError,
    is_kafka_handler_healthy,
)
from testkit.brokers import wait_until
from tests.integration.helpers import Gated, Seen, consuming, serving, serving_plainly
from tests.integration.letters import read, reasons


Ours = KafkaConcurrentProcessingMiddleware
RUNS = {"found": serving, "at the first record": serving_plainly}
SOON: dict[str, Any] = {"commit_batch_timeout_sec": 0.05}


def retrying(attempts):
    """Return a policy with so many attempts."""
    return FailurePolicy(max_attempts=attempts, first_backoff_sec=0.01)


class Failing(Seen):
    """A handler that always fails."""

    async def handle(self, number: int):
        """Fail."""
        with self.handling(number):
            raise ValueError(number)


class Slow(Seen):
    """A handler that takes a moment."""

    async def handle(self, number: int):
        """Handle a record."""
        with self.handling(number):
            await asyncio.sleep(0.01)  # handler


class Halting(Ours):
    """A configured middleware, as a class."""

    overrides: ClassVar[Any] = MappingProxyType({"on_failure": FailurePolicy(max_attempts=2, then="halt")})


@pytest.mark.parametrize("run", RUNS)
async def test_two_routers_and_a_broker_each_have_their_own(cluster, new_broker, new_topic, run):
    """The nearest setting counts: the router's, else the broker's, else that of the initialisation."""
    broker = new_broker(Ours.configured(on_failure=retrying(2)))
    three, four, inherits = (
        KafkaRouter(middlewares=[Ours.configured(on_failure=retrying(3))]),
        KafkaRouter(middlewares=[Ours.configured(on_failure=retrying(4), ordering="key")]),
        KafkaRouter(middlewares=[Ours.configured(ordering="partition")]),
    )
    expected = {broker: 2, three: 3, four: 4, inherits: 2}
    handlers = {}
    for where, attempts in expected.items():
        topic = await new_topic()
        handlers[topic] = (Failing(), attempts)
        consuming(where, topic)(handlers[topic][0].handle)
        await cluster.send(topic, range(5))
    broker.include_routers(three, four, inherits)
    async with RUNS[run](broker, on_failure=retrying(7), **SOON):
        for topic in handlers:
            await cluster.until_committed(topic, {0: 5})
    for seen, attempts in handlers.values():
        assert seen.counts == dict.fromkeys(range(5), attempts)


@pytest.mark.parametrize("run", RUNS)
async def test_what_is_not_given_is_as_initialised(cluster, new_broker, new_topic, run):
    """A router with its own ordering has the time limit of its broker, and the failure policy of the initialisation."""
    topic, letters = await new_topic(), await new_topic()
    broker = new_broker(Ours.configured(handler_timeout_sec=0.1))
    router, seen = KafkaRouter(middlewares=[Ours.configured(ordering="partition")]), Gated(free=1)
    consuming(router, topic)(seen.handle)
    broker.include_router(router)
    await cluster.send(topic, range(4))
    async with RUNS[run](broker, on_failure=FailurePolicy(then=DeadLetter(letters)), handler_timeout_sec=60, **SOON):
        await cluster.until_committed(topic, {0: 4})
    assert seen.peak == 1
    assert seen.values == [0, 1, 2, 3]
    found = await read(cluster, letters, 3)
    assert {reasons(letter)["exception-fqcn"].rpartition(".")[2] for letter in found} == {HandlerTimeoutError.__name__}


@pytest.mark.parametrize("run", RUNS)
async def test_ordering_of_one_router_alone(cluster, new_broker, new_topic, run):
    """One at a time on the router, many at once on the broker's own subscriber."""
    topic, other, broker = await new_topic(), await new_topic(), new_broker()
    router, ordered, free = KafkaRouter(middlewares=[Ours.configured(ordering="partition")]), Slow(), Gated(free=1)
    consuming(router, topic)(ordered.handle)
    free.subscribe(broker, other)
    broker.include_router(router)
    await cluster.send(topic, range(20))
    await cluster.send(other, range(21))
    async with RUNS[run](broker, **SOON):
        await free.together(20)
        await cluster.until_committed(topic, {0: 20})
    assert ordered.peak == 1
    assert ordered.values == list(range(20))


async def test_back_to_the_default(cluster, new_broker, new_topic):
    """A given value is an override, even if it is the default."""
    topic = await new_topic()
    broker = new_broker(Ours.configured(on_failure=retrying(3), ordering="partition", handler_timeout_sec=0.01))
    plain = Ours.configured(on_failure=FailurePolicy(), ordering="unordered", handler_timeout_sec=0)
    router, failing = KafkaRouter(middlewares=[plain]), Seen()
    all_here = asyncio.Event()

    async def handle(number: int):
        with failing.handling(number):
            if len(failing.running) == 5:
                all_here.set()
            await all_here.wait()
            await asyncio.sleep(0.05)  # handler
            raise ValueError

    consuming(router, topic)(handle)
    broker.include_router(router)
    await cluster.send(topic, range(5))
    async with serving(broker, **SOON):
        await cluster.until_committed(topic, {0: 5})
    assert failing.counts == dict.fromkeys(range(5), 1)
    assert failing.peak == 5


@pytest.mark.parametrize("run", RUNS)
async def test_the_innermost_of_nested_routers_has_the_last_word(cluster, new_broker, new_topic, run):
    """Settings that it does not have come from the outer router."""
    topic, letters, broker, seen = await new_topic(), await new_topic(), new_broker(), Failing()
    policy = FailurePolicy(max_attempts=3, first_backoff_sec=0.01, then=DeadLetter(letters))
    outer = KafkaRouter(middlewares=[Ours.configured(on_failure=policy, ordering="key")])
    inner = KafkaRouter(middlewares=[Ours.configured(ordering="partition")])
    consuming(inner, topic)(seen.handle)
    outer.include_router(inner)
    broker.include_router(outer)
    await cluster.send(topic, range(3))
    async with RUNS[run](broker, on_failure=retrying(7), **SOON):
        await cluster.until_committed(topic, {0: 3})
    assert seen.values == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(await read(cluster, letters, 3)) == 3


async def test_configured_twice_is_both(cluster, new_broker, new_topic):
    """A second `configured` keeps the settings of the first one."""
    topic, seen = await new_topic(), Failing()
    broker = new_broker(Ours.configured(on_failure=retrying(2)).configured(ordering="partition"))
    consuming(broker, topic)(seen.handle)
    await cluster.send(topic, range(3))
    async with serving(broker, **SOON):
        await cluster.until_committed(topic, {0: 3})
    assert seen.values == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("run", RUNS)
async def test_a_subclass_with_settings_of_its_own(cluster, new_broker, new_topic, run):
    """A subclass with overrides counts like a configured one, and so do its own subclasses."""
    topic, broker, seen = await new_topic(), new_broker(), Failing()
    router = KafkaRouter(middlewares=[Halting.configured(ordering="partition")])
    consuming(router, topic)(seen.handle)
    broker.include_router(router)
    await cluster.send(topic, range(3))
    async with RUNS[run](broker, **SOON) as served:
        await wait_until(lambda: not is_kafka_handler_healthy(served.context), 20, "red")
        await cluster.send(topic, range(3, 5))
    assert seen.values == [0, 0]
    assert await cluster.committed(topic) == {}


BAD: list[dict[str, Any]] = [
    {"ordering": "keys"},
    {"ordering": 1},
    {"on_failure": "halt"},
    {"handler_timeout_sec": -1},
    {"handler_timeout_sec": "soon"},
    {"handler_timeout_sec": float("nan")},
]


@pytest.mark.parametrize("bad", BAD)
def test_bad_values_are_refused_where_they_are_given(bad):
    """The error names the setting."""
    with pytest.raises(SettingsError, match=next(iter(bad))):
        Ours.configured(**bad)


async def test_what_does_not_go_with_the_others_is_refused_when_it_is_found(new_broker, new_topic):
    """A halt without commits, or dead letters to the same topic: refused at the initialisation."""
    topic = await new_topic()
    broker = new_broker(Halting)
    consuming(broker, topic)(Failing().handle)
    with pytest.raises(SettingsError, match="commits past the failed record"):
        async with serving(broker, enable_batch_commit=False):
            pass
    broker = new_broker(Ours.configured(concurrency_limit=11))
    consuming(broker, topic)(Failing().handle)
    with pytest.raises(SettingsError, match=f"concurrency_limit=11 of the subscriber of .*{topic}.* above .* 10"):
        async with serving(broker, concurrency_limit=10):
            pass
    broker = new_broker(Ours.configured(on_failure=FailurePolicy(then=DeadLetter(topic))))
    consuming(broker, topic)(Failing().handle)
    with pytest.raises(SetupError, match="give DeadLetter another topic"):
        async with serving(broker):
            pass
