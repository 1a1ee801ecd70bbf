"""The record that FastStream's loop has in hand when its subscriber is attached by a late initialisation."""

import asyncio
import gc
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from faststream import BaseMiddleware
from faststream.kafka import KafkaRouter
from faststream.kafka.annotations import KafkaMessage
from typing_extensions import override

from faststream_concurrent_kafka import (
    Attempt,
    FailurePolicy,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka import KafkaConcurrentProcessingMiddleware as Ours
from testkit.brokers import group_members, wait_until
from tests.integration.helpers import Gated, Rebalances, Seen, both_loops, consuming, manual, serving_plainly
from tests.integration.letters import read, reasons, to, unhandled
from tests.integration.rebalancing import LEAVES_IT, visit
from tests.integration.test_rebalance import QUICK


SOON: dict[str, Any] = {"commit_batch_timeout_sec": 0.05}


@pytest.fixture(autouse=True)
def nothing_unhandled(caplog):
    """Check that no exception is unretrieved, except those of the test before, whose tasks are freed now."""
    gc.collect()
    yield
    assert unhandled(caplog) == []


@asynccontextmanager
async def initialised_late(broker, until, **settings):
    """Start a broker, and initialise when `until` says that FastStream's loop has a record in hand."""
    await broker.start()
    try:
        await until()
        await initialize_concurrent_processing(broker.context, broker=broker, **SOON | settings)
        yield broker
    finally:
        await broker.stop()
        await stop_concurrent_processing(broker.context)


@asynccontextmanager
async def found_late(broker, until, **settings):
    """Initialise without naming the broker, so that its subscriber is found when `until` ends, by its first record."""
    async with serving_plainly(broker, **SOON | settings):
        await until()
        yield broker


WAYS = {"initialised late": initialised_late, "found late": found_late}
ways = pytest.mark.parametrize("attached", WAYS.values(), ids=WAYS)


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("batch", [False, True], ids=["records", "batches"])
@ways
async def test_the_others_do_not_wait_for_it_and_nothing_commits_past_it(
    cluster, new_broker, new_topic, attached, batch
):
    """Other records are handled meanwhile; it pins the committed offset until it has ended, and each runs once."""
    topic, broker, seen = await new_topic(), new_broker(), Gated()

    async def handle_batch(numbers: list[int]):
        await asyncio.gather(*map(seen.handle, numbers))

    if batch:
        consuming(broker, topic, batch=True, max_records=1)(handle_batch)
    else:
        seen.subscribe(broker, topic)
    await cluster.send(topic, range(20))
    async with attached(broker, lambda: seen.until_running(1)):
        await seen.until_running(20)
        seen.free = 40
        await cluster.send(topic, range(20, 30))
        await seen.until(10)
        assert await cluster.committed(topic) == {}
        assert get_kafka_handler_report(broker.context).is_healthy
        seen.gate.set()
        await cluster.until_committed(topic, {0: 30})
    assert seen.counts == dict.fromkeys(range(30), 1)


@ways
async def test_its_failure_is_tried_again_and_then_a_dead_letter(cluster, new_broker, new_topic, attached):
    """Like any other record: further attempts in its own task, then the dead letter topic."""
    topic, letters, broker, seen = await new_topic(), await new_topic(), new_broker(), Gated(free=1)

    @consuming(broker, topic)
    async def handle(number: int, attempt: Attempt):
        await seen.handle(number)
        if number == 13:
            raise ValueError(attempt)

    await cluster.send(topic, [13, 0, 1])
    async with attached(broker, lambda: seen.until_running(1), **to(letters, max_attempts=3)):
        seen.gate.set()
        await cluster.until_committed(topic, {0: 3})
        (letter,) = await read(cluster, letters, 1)
    assert (reasons(letter)["original-offset"], reasons(letter)["attempts"]) == ("0", "3")
    assert seen.counts == {13: 3, 0: 1, 1: 1}


@ways
async def test_its_failure_halts_its_partition(cluster, new_broker, new_topic, attached):
    """No commit passes it, and health names it."""
    topic, broker, seen = await new_topic(), new_broker(), Gated()

    @consuming(broker, topic)
    async def handle(number: int):
        await seen.handle(number)
        if number == 0:
            raise ValueError(number)

    def problems():
        return get_kafka_handler_report(broker.context).problems

    await cluster.send(topic, range(3))
    async with attached(broker, lambda: seen.until_running(1), on_failure=FailurePolicy(then="halt")):
        await seen.until_running(3)
        seen.gate.set()
        await wait_until(problems, 10, "red")
        assert f"{topic}[0]@0 has halted" in problems()[0]
    assert await cluster.committed(topic) == {}


@ways
async def test_one_that_can_not_be_parsed(cluster, new_broker, new_topic, attached):
    """It is being parsed at the initialisation, or fails before the middleware is called: it becomes a dead letter."""
    topic, letters, broker, seen = await new_topic(), await new_topic(), new_broker(), Seen()
    parsing, go_on = asyncio.Event(), asyncio.Event()

    async def parser(raw, original):
        if raw.value == b"bad":
            parsing.set()
            await go_on.wait()
            raise ValueError("unreadable")
        return await original(raw)

    @consuming(broker, topic, parser=parser)
    async def handle(number: int):
        with seen.handling(number):
            pass

    await cluster.send(topic, [b"bad", 0, 1])
    async with attached(broker, parsing.wait, **to(letters)):
        go_on.set()
        await cluster.until_committed(topic, {0: 3})
        (letter,) = await read(cluster, letters, 1)
    assert letter.value == b"bad"
    assert seen.counts == {0: 1, 1: 1}


@pytest.mark.parametrize("call", ["ack", "nack", "reject"])
@ways
async def test_its_message_moves_nothing_but_itself(cluster, new_broker, new_topic, attached, call):
    """`ack` and `reject` commit no other record's offset; after `nack` only this record is handled again."""
    topic, broker, seen, gate = await new_topic(), new_broker(), Gated(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        if number == 0 and 0 not in seen.values:
            with seen.handling(number):
                await gate.wait()
                await getattr(message, call)()
        else:
            await seen.handle(number)

    await cluster.send(topic, range(5))
    async with attached(broker, lambda: seen.until_running(1)):
        await seen.until_running(5)
        gate.set()
        if call == "nack":
            await wait_until(lambda: 0 in seen.values and 0 in seen.running, 10, "it runs again")
            assert await cluster.committed(topic) == {}
        else:
            await cluster.until_committed(topic, {0: 1})
        seen.gate.set()
        await cluster.until_committed(topic, {0: 5})
    assert seen.counts == dict.fromkeys(range(5), 1) | ({0: 2} if call == "nack" else {})


@pytest.mark.parametrize("ends", ["in time", "too late"])
@ways
async def test_a_stop_waits_for_it(cluster, new_broker, new_topic, attached, ends):
    """A stop waits for it and commits it, or cancels it at the deadline; the consumer leaves its group."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()
    begun, cancelled = asyncio.Event(), []

    @consuming(broker, topic)
    async def handle(number: int):
        begun.set()
        try:
            await asyncio.sleep(0.5 if ends == "in time" else 60)  # handler
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        with seen.handling(number):
            pass

    await cluster.send(topic, [0])
    async with attached(broker, begun.wait, shutdown_timeout_sec=5 if ends == "in time" else 0.2):
        pass
    assert await cluster.committed(topic) == ({0: 1} if ends == "in time" else {})
    assert (seen.values, cancelled) == (([0], []) if ends == "in time" else ([], [0]))
    assert await group_members(cluster.bootstrap_servers, f"{topic}-group") == 0


@ways
async def test_broker_and_router_may_both_have_the_middleware(cluster, new_broker, new_topic, attached):
    """It is one record with one failure."""
    topic, letters, broker, seen = await new_topic(), await new_topic(), new_broker(), Gated()
    router = KafkaRouter(middlewares=[Ours])

    @consuming(router, topic)
    async def handle(number: int):
        await seen.handle(number)
        raise ValueError(number)

    broker.include_router(router)
    await cluster.send(topic, [0])
    async with attached(broker, lambda: seen.until_running(1), **to(letters)):
        seen.gate.set()
        await cluster.until_committed(topic, {0: 1})
        assert len(await read(cluster, letters, 1)) == 1
    assert seen.counts == {0: 2}


@ways
async def test_a_rebalance_does_not_run_it_twice(cluster, new_broker, new_topic, attached):
    """It outlasts the revocation, is delivered to the same subscriber again, and is committed when it ends."""
    topic, broker, seen, rebalances = await new_topic(), new_broker(), Gated(), Rebalances()
    seen.subscribe(broker, topic, listener=rebalances, **QUICK)
    await cluster.send(topic, range(3))
    async with attached(broker, lambda: seen.until_running(1), rebalance_flush_timeout_sec=0):
        await seen.until_running(3)
        async with visit(cluster, topic, rebalances, LEAVES_IT):
            pass
        await cluster.send(topic, [3])
        await seen.until_running(4)
        assert await cluster.committed(topic) == {}
        seen.gate.set()
        await cluster.until_committed(topic, {0: 4})
    assert seen.counts == dict.fromkeys(range(4), 1)


whose: ContextVar[int] = ContextVar("whose")


async def test_its_context_does_not_live_on(cluster, new_broker, new_topic):
    """Later records do not see context variables that a middleware has set for the first one."""

    class Sets(BaseMiddleware):
        @override
        async def on_receive(self):
            if getattr(self.msg, "offset", None) == 0:
                whose.set(0)

    topic, broker, seen, found = await new_topic(), new_broker(Sets, Ours), Seen(), []

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            found.append(whose.get(None))

    await cluster.send(topic, range(5))
    async with serving_plainly(broker, **SOON):
        await cluster.until_committed(topic, {0: 5})
    assert sorted(found, key=str) == [0, None, None, None, None]


@ways
async def test_the_end_of_the_loop_is_noticed_beside_it(cluster, new_broker, new_topic, attached):
    """Health reports that the new loop has ended, although the record in the old one goes on."""
    topic, broker, seen = await new_topic(), new_broker(), Gated()
    subscriber = broker.subscriber(topic, **manual(topic))
    subscriber(seen.handle)
    await cluster.send(topic, range(2))
    async with attached(broker, lambda: seen.until_running(1)):
        await seen.until_running(2)
        (loop,) = subscriber.tasks
        loop.cancel()
        await wait_until(lambda: get_kafka_handler_report(broker.context).problems, 5, "red")
        assert "the consume loop of" in get_kafka_handler_report(broker.context).problems[0]
        seen.gate.set()
        await cluster.until_committed(topic, {0: 2})
