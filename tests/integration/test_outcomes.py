"""The ends of a handler: acknowledged, rejected, nacked, skipped, a stop, or a cancellation."""

import asyncio
import logging
from itertools import pairwise, product

import pytest
from faststream.exceptions import AckMessage, NackMessage, RejectMessage, SkipMessage, StopConsume
from faststream.kafka.annotations import KafkaMessage

from faststream_concurrent_kafka import Attempt, DeadLetter, FailurePolicy, is_kafka_handler_healthy
from testkit.brokers import wait_until
from tests.integration.helpers import (
    PATIENCE_SEC,
    Seen,
    both_loops,
    consuming,
    manual,
    serving,
    serving_plainly,
)


DONE = {
    "ack": lambda message: message.ack(),
    "reject": lambda message: message.reject(),
    "AckMessage": AckMessage,
    "RejectMessage": RejectMessage,
    "SkipMessage": SkipMessage,
}
AGAIN = {"nack": lambda message: message.nack(), "NackMessage": NackMessage}


async def say(how, message):
    """Call the message's method, or raise the exception."""
    if isinstance(how, type):
        raise how
    await how(message)


@pytest.mark.parametrize("how", DONE)
async def test_done_is_done_and_commits_nothing_of_others(cluster, new_broker, new_topic, how):
    """A record is acknowledged while an earlier one is in its handler: the commit does not pass that one."""
    topic, broker, seen, gate = await new_topic(2), new_broker(), Seen(), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            if number == 2:
                await gate.wait()
            if number == 4:
                await say(DONE[how], message)

    await cluster.send(topic, range(8), partition=0)
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await seen.until(7)
        await cluster.send(topic, range(10, 13), partition=1)
        await cluster.until_committed(topic, {0: 2, 1: 3})
        gate.set()
        await cluster.until_committed(topic, {0: 8, 1: 3})
    assert set(seen.counts.values()) == {1}


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("how", AGAIN)
async def test_again_is_soon_and_touches_no_other_record(cluster, new_broker, new_topic, how):
    """It is handled again after a short delay, without a slot meanwhile; no other record runs twice."""
    topic, broker, seen, attempts = await new_topic(), new_broker(), Seen(), []

    @consuming(broker, topic)
    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            if number == 4:
                attempts.append(asyncio.get_running_loop().time())
                if len(attempts) < 3:
                    await say(AGAIN[how], message)

    await cluster.send(topic, range(10))
    async with serving(broker, concurrency_limit=1, commit_batch_timeout_sec=0.05):
        await seen.until(10)
        await cluster.until_committed(topic, {0: 4})
        await cluster.until_committed(topic, {0: 10})
    assert seen.counts == dict.fromkeys(range(10), 1) | {4: 3}
    assert seen.values[-2:] == [4, 4]
    delays = [later - earlier for earlier, later in pairwise(attempts)]
    assert all(0.1 < delay < 3 for delay in delays)


async def test_a_batch_that_is_not_acknowledged_is_handled_again_as_a_whole(cluster, new_broker, new_topic):
    """The records of this batch are handled once more, those of other batches are not."""
    topic, broker, batches = await new_topic(2), new_broker(), []

    @consuming(broker, topic, batch=True, max_records=5)
    async def handle(numbers: list[int]):
        batches.append(sorted(numbers))
        if 3 in numbers and batches.count(sorted(numbers)) == 1:
            raise NackMessage

    await cluster.send(topic, range(10), partition=0)
    await cluster.send(topic, range(10, 20), partition=1)
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 10, 1: 10})
    first, again = (batch for batch in batches if 3 in batch)
    assert first == again
    handled = sorted(number for batch in batches for number in batch)
    assert handled == sorted([*range(20), *again])


async def test_not_acknowledged_at_a_stop_is_left_for_the_next(cluster, new_broker, new_topic):
    """A record that is nacked again and again does not delay the stop, and stays uncommitted."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 3:
                raise NackMessage

    await cluster.send(topic, range(6))
    async with serving(broker):
        await wait_until(lambda: seen.counts[3] >= 2, 10, "handled again")
        loop = asyncio.get_running_loop()
        stopping_at = loop.time()
    assert loop.time() - stopping_at < 5
    assert await cluster.committed(topic) == {0: 3}


async def leak_from_a_cancelled_task():
    """Await a task that was cancelled."""
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


async def raise_it():
    """Raise it as any other error."""
    raise asyncio.CancelledError("by the handler")


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("cancelled", [raise_it, leak_from_a_cancelled_task])
async def test_a_handler_that_raises_cancelled_error_has_failed(cluster, new_broker, new_topic, caplog, cancelled):
    """Its record is done, and FastStream's loop goes on: later records are handled."""
    topic, seen = await new_topic(), Seen()
    broker = new_broker(logger=logging.getLogger("test.outcomes"))

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 2:
                await cancelled()

    await cluster.send(topic, range(5))
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 5})
        await cluster.send(topic, range(5, 10))
        await cluster.until_committed(topic, {0: 10})
    assert seen.counts == dict.fromkeys(range(10), 1)
    assert ["CancelledError" in each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == [True]


async def test_stop_consume_stops_its_subscriber_after_a_drain(cluster, new_broker, new_topic):
    """Its records in flight are finished and committed; other subscribers go on."""
    topic, other = await new_topic(), await new_topic()
    broker, seen, handled = new_broker(), Seen(), Seen()
    subscriber = broker.subscriber(topic, **manual(topic))

    async def handle(number: int):
        with seen.handling(number):
            if number == 9:
                raise StopConsume
            await asyncio.sleep(0.3)  # handler

    subscriber(handle)

    @consuming(broker, other)
    async def handle_other(number: int):
        with handled.handling(number):
            pass

    await cluster.send(topic, range(10))
    async with serving(broker):
        await wait_until(lambda: subscriber.consumer is None, 10, "stopped")
        await wait_until(lambda: len(seen.values) >= 10, 5, "started")
        assert seen.counts == dict.fromkeys(range(10), 1)
        assert await cluster.committed(topic) == {0: 10}
        await cluster.send(other, range(20))
        await handled.until(20)
        await cluster.send(topic, range(10, 12))
    assert len(seen.values) == 10


class PanicError(BaseException):
    """Like `pyo3_runtime.PanicException`, of a Rust extension."""


@pytest.mark.parametrize(
    "how", ["one by one", "batch", "the first record of a late one", "the first batch of a late one"]
)
async def test_a_panic_is_a_failure_like_any_other(cluster, new_broker, new_topic, how, caplog):
    """It is retried, logged once with its traceback and given up; the partition goes on, and health is green."""
    topic, broker, attempts, handled = await new_topic(), new_broker(), [], []

    async def handle(numbers, attempt):
        await asyncio.sleep(0)
        if 0 in numbers:
            attempts.append(attempt)
            raise PanicError("index out of bounds")
        handled.extend(numbers)

    async def one(number: int, attempt: Attempt):
        await handle([number], attempt)

    async def several(numbers: list[int], attempt: Attempt):
        await handle(numbers, attempt)

    if "batch" in how:
        consuming(broker, topic, batch=True, max_records=1)(several)
    else:
        consuming(broker, topic)(one)
    await cluster.send(topic, range(20))
    policy = FailurePolicy(max_attempts=2, first_backoff_sec=0.01)
    run = serving_plainly if "late" in how else serving
    async with run(broker, on_failure=policy, commit_batch_timeout_sec=0.05) as app:
        await cluster.until_committed(topic, {0: 20})
        assert is_kafka_handler_healthy(app.context)
    assert (attempts, sorted(handled)) == ([1, 2], list(range(1, 20)))
    logged = [each for each in caplog.records if each.levelno >= logging.ERROR and each.name != "asyncio"]
    assert [str(each.exc_info[1]) for each in logged if each.exc_info] == ["index out of bounds"]


def _silent(kind):
    if kind == "none":
        return None
    logger = logging.Logger("test.silent")  # noqa: LOG001 - of no use to anybody else
    if kind == "its level":
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.CRITICAL)
    elif kind == "no handler that takes it":
        logger.addHandler(logging.NullHandler())
        strict = logging.StreamHandler()
        strict.setLevel(logging.CRITICAL)
        logger.addHandler(strict)
    elif kind == "disabled":
        logger.addHandler(logging.StreamHandler())
        logger.disabled = True
    return logger


@pytest.mark.parametrize(
    "case",
    list(
        product(["none", "its level", "no handler that takes it", "disabled", "on"], ["commit", "halt", "dead letter"])
    ),
)
async def test_a_failure_is_logged_once_with_its_traceback(cluster, new_broker, new_topic, caplog, case):
    """By FastStream if it has a logger, otherwise by the library."""
    kind, then = case
    topic, dead = await new_topic(), await new_topic()
    broker = new_broker(logger=logging.getLogger("test.loud") if kind == "on" else _silent(kind))

    @consuming(broker, topic)
    async def handle(number: int):
        raise ValueError(f"boom {number}")

    await cluster.send(topic, [7])
    policy = FailurePolicy(then=DeadLetter(dead) if then == "dead letter" else then)
    async with serving(broker, on_failure=policy, commit_batch_timeout_sec=0.05) as app:
        if then == "halt":
            await wait_until(lambda: not is_kafka_handler_healthy(app.context), PATIENCE_SEC, "halted")
        else:
            await cluster.until_committed(topic, {0: 1})
    traces = [each for each in caplog.records if each.exc_info]
    assert [str(each.exc_info[1]) for each in traces] == ["boom 7"]
    assert traces[0].name == ("test.loud" if kind == "on" else "faststream_concurrent_kafka")
    ours = [
        each for each in caplog.records if each.name == "faststream_concurrent_kafka" and "boom" in each.getMessage()
    ]
    assert len(ours) == (kind != "on" or then != "commit")
    if ours:
        assert f"{topic}[0]@0" in ours[0].getMessage()
