"""Failure policies on a real broker: the number of attempts, what a retry is, and what it holds meanwhile.

Invariants: I25.
"""

import asyncio
import logging
from itertools import pairwise
from typing import Annotated, Any

import pytest
from faststream import AckPolicy, BaseMiddleware, Depends
from faststream.exceptions import NackMessage
from faststream.kafka.annotations import KafkaMessage
from typing_extensions import TypedDict, override

from faststream_concurrent_kafka import (
    Attempt,
    FailurePolicy,
    KafkaConcurrentProcessingMiddleware,
    get_kafka_handler_report,
)
from testkit.brokers import wait_until
from tests.integration.helpers import Seen, both_loops, consuming, manual, publishing, serving, warnings_of


def quick(**more: Any) -> FailurePolicy:
    """Return a policy with short waits."""
    options: dict[str, Any] = {"max_attempts": 3, "first_backoff_sec": 0.02} | more
    return FailurePolicy(**options)


def endless(**more: Any) -> FailurePolicy:
    """Return a policy that retries for ever, after long waits."""
    return FailurePolicy(max_attempts=0, first_backoff_sec=3600, max_backoff_sec=3600, **more)


@pytest.mark.asyncio(**both_loops)
async def test_the_handler_and_the_log_know_the_attempt(cluster, new_broker, new_topic, caplog):
    """Counted from 1 for each record, in the handler's parameter, and from 2 on in FastStream's log records."""
    topic, attempts = await new_topic(), []
    broker = new_broker(logger=logging.getLogger("test.attempts"))

    async def handle(number: int, attempt: Attempt):
        attempts.append((number, attempt))
        if number == 1 and attempt < 3:
            raise ValueError("not yet")

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    with caplog.at_level(logging.INFO, "test.attempts"):
        async with serving(broker, on_failure=quick(), commit_batch_timeout_sec=0.05):
            await cluster.until_committed(topic, {0: 3})
    assert sorted(attempts) == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1)]
    logged = [each for each in caplog.records if each.name == "test.attempts"]
    failures = [vars(each).get("attempt", 1) for each in logged if "ValueError" in each.getMessage()]
    assert failures == [1, 2]
    processed = [vars(each).get("attempt") for each in logged if each.getMessage() == "Processed"]
    assert sorted(filter(None, processed)) == [2, 3]
    assert any("failed at attempt 1 of 3, again in" in text and f"{topic}[0]@1" in text for text in warnings_of(caplog))


@pytest.mark.parametrize("order", ["ours first", "ours last"])
async def test_each_attempt_is_a_whole_fresh_pass(cluster, new_broker, new_topic, order):
    """Each attempt makes and closes its dependencies, middlewares see each failure, only the success is published."""
    topic, out, opened, closed, seen_errors, published = await new_topic(), await new_topic(), [], [], [], Seen()

    class Watching(BaseMiddleware):
        @override
        async def after_processed(self, exc_type=None, exc_val=None, exc_tb=None):
            if self.msg is not None and self.msg.topic == topic:
                seen_errors.append(exc_val and str(exc_val))
            return False

    both = [KafkaConcurrentProcessingMiddleware, Watching]
    broker = new_broker(*(both if order == "ours first" else both[::-1]))

    async def resource():
        opened.append(len(opened))
        try:
            yield opened[-1]
        finally:
            closed.append(opened[-1])

    async def handle(number: int, attempt: Attempt, resource: Annotated[int, Depends(resource)]) -> str:
        assert len(closed) == resource == attempt - 1
        if attempt < 3:
            raise ValueError(attempt)
        return f"{number} at attempt {attempt}"

    consuming(broker, topic)(publishing(broker, out)(handle))

    async def take(text: str):
        with published.handling(text):
            await asyncio.sleep(0)

    consuming(broker, out)(take)
    await cluster.send(topic, [7])
    async with serving(broker, on_failure=quick(), commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 1})
        await cluster.until_committed(out, {0: 1})
    assert opened == closed == [0, 1, 2]
    assert seen_errors == ["1", "2", None]
    assert published.values == ["7 at attempt 3"]


async def test_the_slot_is_free_and_the_offset_pinned_while_a_record_waits(cluster, new_broker, new_topic):
    """With one slot all other records are handled meanwhile; the report names the record that is retried."""
    topic, broker, seen = await new_topic(2), new_broker(), Seen()

    async def handle(number: int, attempt: Attempt):
        with seen.handling(number):
            if number == 3 and attempt == 1:
                raise NackMessage(delay=3600)

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(10), partition=0)
    await cluster.send(topic, range(10, 15), partition=1)
    settings: dict[str, Any] = {"concurrency_limit": 1, "commit_batch_timeout_sec": 0.05}
    async with serving(broker, on_failure=quick(), **settings) as app:
        await seen.until(15)
        await cluster.until_committed(topic, {0: 3, 1: 5})
        report = get_kafka_handler_report(app.context)
        assert (report.in_flight, report.waiting, report.retrying, report.is_healthy) == (1, 1, 1, True)
        first, second = sorted(report.partitions, key=lambda each: each.partition)
        assert (first.frontier, first.oldest_unfinished_offset, first.oldest_unfinished_attempt) == (3, 3, 1)
        assert first.oldest_unfinished_is_retrying
        assert first.halted_at is None
        assert (second.oldest_unfinished_attempt, second.oldest_unfinished_is_retrying) == (None, False)
    # A stop does not wait for an attempt that is due after its deadline.
    assert seen.counts == dict.fromkeys(range(15), 1)
    assert await cluster.committed(topic) == {0: 3, 1: 5}


async def test_it_waits_longer_from_time_to_time_up_to_the_longest(cluster, new_broker, new_topic, caplog):
    """Each wait is drawn between 0 and a limit that doubles up to a cap; the log has its length."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    async def handle(number: int):
        with seen.handling(number):
            raise ValueError

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(20))
    policy = FailurePolicy(max_attempts=5, first_backoff_sec=0.04, max_backoff_sec=0.1)
    async with serving(broker, on_failure=policy, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 20})
    assert seen.counts == dict.fromkeys(range(20), 5)
    for attempt, most in {1: 0.04, 2: 0.08, 3: 0.1, 4: 0.1}.items():
        marker = f"failed at attempt {attempt} of 5, again in "
        waits = [float(text.partition(marker)[2].partition(" s")[0]) for text in warnings_of(caplog) if marker in text]
        assert len(waits) == 20
        assert max(waits) <= most
        assert len(set(waits)) > 1


async def fail_with(error, policy, cluster, new_broker, new_topic):
    """Return how often a record that always fails with this error is handled, until it is committed."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    async def handle(number: int):
        with seen.handling(number):
            if number == 1:
                raise error

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    async with serving(broker, on_failure=policy, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 3})
    assert {seen.counts[0], seen.counts[2]} == {1}
    return seen.counts[1]


def refuse(_error, _attempt):
    """Fail, as a user's callable with a bug."""
    raise RuntimeError("a bug in retry_on")


ATTEMPTS = {
    "by default": (FailurePolicy(), 1),
    "given up at last": (quick(), 3),
    "of another type": (quick(retry_on=ValueError), 1),
    "of one of the types": (quick(retry_on=(ValueError, LookupError)), 3),
    "never": (quick(never_retry=LookupError), 1),
    "never, though it is of the types": (quick(retry_on=LookupError, never_retry=(KeyError,)), 1),
    "as a callable says": (quick(retry_on=lambda error, attempt: isinstance(error, KeyError) and attempt < 2), 2),
    "as a callable says that raises": (quick(retry_on=refuse), 3),
}


@pytest.mark.parametrize("which", ATTEMPTS)
async def test_what_is_tried_how_often(cluster, new_broker, new_topic, caplog, which):
    """A KeyError under each policy; after the last attempt the record is given up, and the commit passes it."""
    policy, attempts = ATTEMPTS[which]
    assert await fail_with(KeyError("k"), policy, cluster, new_broker, new_topic) == attempts
    given_up = [text for text in warnings_of(caplog) if "given up" in text]
    assert len(given_up) == 1
    assert f"after {attempts} attempt" in given_up[0]


class Order(TypedDict):
    """The message that a handler expects."""

    number: int


MALFORMED = {
    "not text": (b"\xff\xfe\x00", None),
    "of another shape": (b'{"number": "seven"}', None),
    "empty": (b"", None),
    "broken JSON": (b"{", [("content-type", b"application/json")]),
    "with a header that is not UTF-8": (b'{"number": 3}', [("note", b"\xff\xfe")]),
    "for no handler": (b'{"number": 3, "other": true}', None),
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_records_are_not_tried_again(cluster, new_broker, new_topic, kind):
    """The same bytes would fail again, so there is one attempt, unless the policy says otherwise."""
    passes = []

    class Counting(BaseMiddleware):
        @override
        async def on_receive(self):
            passes.append(self.msg and self.msg.offset)

    async def handle(order: Order):
        assert order["number"] == 0

    body, headers = MALFORMED[kind]
    for policy, attempts in ((quick(), 1), (quick(retry_on=Exception), 3)):
        topic, broker = await new_topic(), new_broker(KafkaConcurrentProcessingMiddleware, Counting)
        broker.subscriber(topic, **manual(topic))(handle, filter=lambda message: b"other" not in message.body)
        await cluster.send(topic, [b'{"number": 0}'])
        await cluster.send(topic, [body], headers=headers)
        passes.clear()
        async with serving(broker, on_failure=policy, commit_batch_timeout_sec=0.05):
            await cluster.until_committed(topic, {0: 2})
        assert passes.count(1) == attempts, policy
        assert passes.count(0) == 1


@pytest.mark.parametrize("delay", [0.05, 0.4, 0])
async def test_a_nack_comes_back_after_its_delay(cluster, new_broker, new_topic, delay):
    """Without retries in the policy, each nack is followed by another attempt, after the delay that it names."""
    topic, broker, times = await new_topic(), new_broker(), []

    async def handle(number: int, attempt: Attempt):
        if number == 1:
            times.append(asyncio.get_running_loop().time())
            assert attempt == len(times)
            if attempt < 5:
                raise NackMessage(delay=delay)

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 3})
    delays = [later - earlier for earlier, later in pairwise(times)]
    assert len(delays) == 4
    assert all(delay * 0.95 <= each < delay + 1 for each in delays)


@pytest.mark.parametrize("how", ["NackMessage", "nack"])
async def test_a_nack_is_an_attempt_where_there_are_retries(cluster, new_broker, new_topic, caplog, how):
    """After the last attempt the record is given up like any other."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    async def handle(number: int, message: KafkaMessage):
        with seen.handling(number):
            if number == 1 and how == "nack":
                await message.nack()
            elif number == 1:
                raise NackMessage(delay=0.01)

    consuming(broker, topic)(handle)
    await cluster.send(topic, range(3))
    async with serving(broker, on_failure=quick(), commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 3})
    assert seen.counts == {0: 1, 1: 3, 2: 1}
    assert any("given up after 3 attempts" in text for text in warnings_of(caplog))


@pytest.mark.parametrize("delay", [-1, "soon", float("nan")])
async def test_a_delay_that_makes_no_sense_is_the_usual_one(cluster, new_broker, new_topic, caplog, delay):
    """The log names the wrong delay, and the record is handled again after half a second."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    async def handle(number: int, attempt: Attempt):
        with seen.handling(number):
            if attempt == 1:
                raise NackMessage(delay=delay)

    consuming(broker, topic)(handle)
    await cluster.send(topic, [0])
    async with serving(broker, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 1})
    assert seen.values == [0, 0]
    assert any("delay=<seconds>" in text for text in warnings_of(caplog))


@pytest.mark.parametrize("policy", [AckPolicy.MANUAL, AckPolicy.ACK_FIRST])
async def test_retries_where_the_library_does_not_commit(cluster, new_broker, new_topic, policy):
    """With `enable_batch_commit=False` the failure policy applies, too."""
    topic, broker, seen = await new_topic(), new_broker(), Seen()

    async def handle(number: int, attempt: Attempt):
        with seen.handling(number):
            if attempt <= number:
                raise ValueError(number)

    consuming(broker, topic, ack_policy=policy)(handle)
    await cluster.send(topic, range(5))
    async with serving(broker, on_failure=quick(), enable_batch_commit=False):
        await seen.until(12)
        await cluster.send(topic, [0])
        await seen.until(13)
    assert seen.counts == {0: 2, 1: 2, 2: 3, 3: 3, 4: 3}


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("ordering", ["unordered", "key"])
async def test_what_fails_for_ever_is_bounded(cluster, new_broker, new_topic, commits, ordering):
    """At most `max_uncommitted_tasks` per partition are fetched; without commits, per subscriber."""
    topic, other, broker = await new_topic(2), await new_topic(), new_broker()
    failing, fine = Seen(), Seen()

    async def fail(number: int):
        with failing.handling(number):
            raise ValueError

    async def succeed(number: int):
        with fine.handling(number):
            await asyncio.sleep(0)

    # One large fetch of many records has to be stopped.
    consuming(broker, topic, max_poll_records=500)(fail)
    consuming(broker, other)(succeed)
    for partition in range(2):
        await cluster.send(topic, range(partition * 1000, partition * 1000 + 300), partition)
    bound = 100 if commits else 50
    settings: dict[str, Any] = {"ordering": ordering, "enable_batch_commit": commits, "max_uncommitted_tasks": 50}
    async with serving(broker, on_failure=endless(), concurrency_limit=20, shutdown_timeout_sec=1, **settings) as app:
        await wait_until(lambda: len(set(failing.values)) >= bound, 20, lambda: f"{len(failing.values)} have failed")
        await cluster.send(other, range(200))
        await fine.until(200)
        report = get_kafka_handler_report(app.context)
        assert bound <= len(set(failing.values)) <= bound + 5
        assert bound <= report.in_flight <= bound + 5
        assert report.is_healthy
    assert set(fine.counts.values()) == {1}
    assert sum((await cluster.committed(topic)).values()) == 0
