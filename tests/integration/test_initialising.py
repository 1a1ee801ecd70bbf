"""When and with which context concurrent processing can be initialised, and what happens without it."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from faststream import ContextRepo, FastStream, TestApp
from faststream.kafka.annotations import KafkaMessage

from faststream_concurrent_kafka import initialize_concurrent_processing, stop_concurrent_processing
from testkit.brokers import wait_until
from tests.integration.helpers import (
    AsyncRebalances,
    Gated,
    Rebalances,
    Seen,
    both_loops,
    consuming,
    manual,
    serving,
    serving_plainly,
    warnings_of,
)


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("whose", ["app", "broker", "lifespan"])
async def test_any_of_the_contexts_finds_the_subscribers(cluster, new_broker, new_topic, whose):
    """`app.context`, `broker.context` and the one that a lifespan is given."""
    topic, broker = await new_topic(), new_broker()
    seen = Gated().subscribe(broker, topic)

    @asynccontextmanager
    async def lifespan(context: ContextRepo):
        chosen = {"app": app.context, "broker": broker.context, "lifespan": context}[whose]
        await initialize_concurrent_processing(chosen)
        try:
            yield
        finally:
            await stop_concurrent_processing(chosen)

    app = FastStream(broker, lifespan=lifespan, logger=None)
    await cluster.send(topic, range(10))
    async with TestApp(app):
        await seen.together(10)
    assert await cluster.committed(topic) == {0: 10}


@pytest.mark.parametrize("listener", [None, Rebalances, AsyncRebalances])
async def test_initialising_after_the_broker_has_started(cluster, new_broker, new_topic, listener):
    """Its running subscribers become concurrent; the user's listener is still called."""
    topic, broker, rebalances = await new_topic(), new_broker(), listener and listener()
    seen = Gated().subscribe(broker, topic, listener=rebalances)
    app = FastStream(broker, logger=None)
    await app.start()
    await initialize_concurrent_processing(app.context)
    await cluster.send(topic, range(10))
    await seen.together(10)
    await app.stop()
    await stop_concurrent_processing(app.context)
    assert await cluster.committed(topic) == {0: 10}
    if rebalances:
        assert [len(each) for each in rebalances.assigned] == [1]


@pytest.mark.parametrize("listener", [Rebalances, AsyncRebalances])
async def test_the_users_own_listener_is_called(cluster, new_broker, new_topic, listener):
    """Listeners with synchronous methods and with coroutines, as aiokafka allows."""
    topic, broker, rebalances = await new_topic(2), new_broker(), listener()
    seen = Gated().subscribe(broker, topic, listener=rebalances)
    await cluster.send(topic, range(10))
    async with serving(broker):
        await seen.together(10)
    assert [len(each) for each in rebalances.assigned] == [2]
    assert sum((await cluster.committed(topic)).values()) == 10


async def test_a_plain_broker_can_be_named(cluster, new_broker, new_topic):
    """With `broker=` its subscribers are concurrent from the first record on."""
    topic, broker = await new_topic(), new_broker()
    seen = Gated().subscribe(broker, topic)
    await cluster.send(topic, range(10))
    async with serving_plainly(broker, name_it=True):
        await seen.together(10)
    assert await cluster.committed(topic) == {0: 10}


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("batch", [False, True])
async def test_a_plain_broker_is_found_at_its_first_record(cluster, new_broker, new_topic, batch):
    """Without `broker=` the first record attaches the subscriber, and is itself committed like all others."""
    topic, broker, seen = await new_topic(), new_broker(), Gated(free=1)
    if batch:

        @consuming(broker, topic, batch=True, max_records=1)
        async def handle(numbers: list[int]):
            for number in numbers:
                await seen.handle(number)

    else:
        seen.subscribe(broker, topic)
    await cluster.send(topic, range(1))
    async with serving_plainly(broker, commit_batch_timeout_sec=0.1):
        await cluster.until_committed(topic, {0: 1})
        await cluster.send(topic, range(1, 11))
        await seen.together(10)
        await cluster.until_committed(topic, {0: 11})
    assert set(seen.counts.values()) == {1}


@pytest.mark.parametrize("by", ["stop", "failure", "nack"])
async def test_the_record_that_attaches_has_an_outcome_like_any_other(cluster, new_broker, new_topic, by):
    """A stop waits for it, a failure counts as done, and after a nack it is handled again."""
    topic, broker, seen, begun = await new_topic(), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            begun.set()
            if by == "stop":
                await asyncio.sleep(0.3)  # handler
            elif by == "failure":
                raise ValueError(number)
            elif len(seen.values) == 0:
                await message.nack()

    await cluster.send(topic, range(1))
    async with serving_plainly(broker, commit_batch_timeout_sec=0.1):
        await begun.wait()
        if by != "stop":
            await cluster.until_committed(topic, {0: 1})
    assert await cluster.committed(topic) == {0: 1}
    assert len(seen.values) == (2 if by == "nack" else 1)


@pytest.mark.parametrize("listed", [True, False])
async def test_a_subscriber_that_is_declared_and_started_late(cluster, new_broker, new_topic, listed):
    """Declared after the initialisation and started: found by the application, or by its first record."""
    early, late = await new_topic(), await new_topic()
    broker = new_broker()
    first = Gated().subscribe(broker, early)
    await cluster.send(early, range(5))
    await cluster.send(late, range(11))
    async with serving(broker) if listed else serving_plainly(broker, name_it=True):
        await first.together(5)
        seen = Gated(free=1)
        subscriber = broker.subscriber(late, **manual(late))
        subscriber(seen.handle)
        await subscriber.start()
        await seen.together(10)
    assert await cluster.committed(late) == {0: 11}


async def test_without_initialising_records_are_handled_with_one_warning(cluster, new_broker, new_topic, caplog):
    """Records are handled one at a time, as by FastStream alone, and nothing is committed."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0.01)  # handler

    await cluster.send(topic, range(10))
    await broker.start()
    await seen.until(10)
    await broker.stop()
    assert seen.peak == 1
    assert await cluster.committed(topic) == {}
    (warning,) = warnings_of(caplog)
    assert "initialize_concurrent_processing" in warning
    assert topic in warning


@pytest.mark.parametrize("whose", ["another application's", "another broker's"])
async def test_the_context_of_something_else(cluster, new_broker, new_topic, caplog, whose):
    """The subscriber is found by its first record, and one log line says what should have been passed."""
    topic, broker, stranger = await new_topic(), new_broker(), new_broker()
    other = FastStream(new_broker(), logger=None)
    seen = Gated().subscribe(broker, topic)
    app = FastStream(broker, logger=None)
    await initialize_concurrent_processing(other.context if whose == "another application's" else stranger.context)
    await app.start()
    await cluster.send(topic, range(10))
    await seen.together(10)
    await app.stop()
    await stop_concurrent_processing(app.context)
    assert await cluster.committed(topic) == {0: 10}
    (warning,) = warnings_of(caplog)
    assert "broker=" in warning
    assert (topic in warning) is (whose == "another application's")


async def test_stopped_and_initialised_again_with_the_same_broker(cluster, new_broker, new_topic):
    """A second initialisation in the same process: other settings, the same subscribers, no record twice."""
    topic, broker = await new_topic(), new_broker()
    seen = Gated().subscribe(broker, topic)
    seen.gate.set()
    for life in range(3):
        await cluster.send(topic, range(life * 10, life * 10 + 10))
        async with serving_plainly(broker, name_it=True, concurrency_limit=5 + life):
            await seen.until(life * 10 + 10)
    assert seen.counts == dict.fromkeys(range(30), 1)
    assert await cluster.committed(topic) == {0: 30}


async def test_a_subscriber_that_is_stopped_and_started_again(cluster, new_broker, new_topic):
    """A subscriber stopped alone or with its broker stays attached, and goes on at its committed offset."""
    topic, broker, seen = await new_topic(), new_broker(), Gated()
    subscriber = broker.subscriber(topic, **manual(topic))
    subscriber(seen.handle)
    await cluster.send(topic, range(10))
    async with serving(broker):
        await seen.together(10)
        await subscriber.stop()
        assert await cluster.committed(topic) == {0: 10}
        await cluster.send(topic, range(10, 20))
        seen.gate.clear()
        await subscriber.start()
        await wait_until(lambda: len(seen.running) == 10, 20, "handled together again")
        seen.gate.set()
        await seen.until(20)
    assert seen.counts == dict.fromkeys(range(20), 1)
    assert await cluster.committed(topic) == {0: 20}
