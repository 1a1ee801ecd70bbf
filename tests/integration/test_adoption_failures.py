"""Records that fail, halt or have an order, when their partition comes back (I18, I32)."""

import asyncio
import gc
import logging
from collections import Counter, defaultdict
from typing import Any

import pytest

from faststream_concurrent_kafka import (
    Attempt,
    DeadLetter,
    FailurePolicy,
    get_kafka_handler_report,
    is_kafka_handler_healthy,
)
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._record.record import Record
from testkit.brokers import wait_until
from tests.integration.helpers import PATIENCE_SEC, Rebalances, both_loops, consuming, serving
from tests.integration.letters import read, reasons
from tests.integration.rebalancing import LEAVES_IT, TAKES_IT, Held, may_come_back, until_delivered, visit
from tests.integration.test_ordering import Ordered, send
from tests.integration.test_rebalance import QUICK


AT_ONCE: dict[str, Any] = {
    "commit_batch_timeout_sec": 0.05,
    "rebalance_flush_timeout_sec": 0,
    "shutdown_timeout_sec": 2,
}
# Longer than any test.
LONG_BACKOFF = FailurePolicy(max_attempts=3, first_backoff_sec=100_000, max_backoff_sec=100_000)


class Fails(Held):
    """A handler in which some records fail until they are cured; held ones fail when they are released."""

    def __init__(self, *poison, held=()):
        super().__init__(*held)
        self.poison = set(poison)
        self.attempts = defaultdict(list)

    async def handle_attempt(self, number: int, attempt: Attempt):
        self.attempts[number].append(attempt)
        await self.handle(number)
        if number in self.poison:
            raise ValueError(f"number {number}")

    def subscribe_attempts(self, broker, topic):
        consuming(broker, topic, listener=self.rebalances, **QUICK)(self.handle_attempt)
        return self


def once(numbers):
    """Return the attempts of records that were handled once."""
    return {number: [1] for number in numbers}


def policy(letters):
    return FailurePolicy(max_attempts=3, first_backoff_sec=0.02, max_backoff_sec=0.02, then=DeadLetter(letters))


async def test_a_record_in_backoff_is_dropped_and_starts_anew(cluster, new_broker, new_topic):
    """A record in its backoff comes back as a new one, at attempt 1; those finished behind it do not."""
    topic, seen = await new_topic(), Fails(5)
    seen.subscribe_attempts(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, on_failure=LONG_BACKOFF, **AT_ONCE) as app:
        await seen.until_ended(*range(10))
        await wait_until(lambda: get_kafka_handler_report(app.context).retrying, PATIENCE_SEC, "in backoff")
        async with visit(cluster, topic, seen.rebalances, TAKES_IT):
            await wait_until(lambda: not get_kafka_handler_report(app.context).in_flight, PATIENCE_SEC, "dropped")
            seen.poison.clear()
        await cluster.until_committed(topic, {0: 10})
    assert seen.attempts == once(range(10)) | {5: [1, 1]}


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("visitor", [LEAVES_IT, TAKES_IT])
async def test_a_running_record_goes_on_with_its_attempts(cluster, new_broker, new_topic, visitor):
    """It fails after its second delivery: attempts 2 and 3 follow, and one dead letter."""
    topic, letters, seen = await new_topic(), await new_topic(), Fails(5, held=[5])
    seen.subscribe_attempts(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, on_failure=policy(letters), **AT_ONCE) as app:
        await seen.until_ended(*range(5), *range(6, 10))
        async with visit(cluster, topic, seen.rebalances, visitor):
            pass
        await until_delivered(app, 5, 1)
        seen.let_go()
        await cluster.until_committed(topic, {0: 10})
    (letter,) = await read(cluster, letters, 1)
    assert (letter.value, reasons(letter)["attempts"]) == (b"5", "3")
    assert seen.attempts == once(range(10)) | {5: [1, 2, 3]}


async def test_a_record_that_fails_while_its_partition_is_away_is_up_to_the_owner(cluster, new_broker, new_topic):
    """When it comes back without having been handled elsewhere, it starts again, and there is one dead letter."""
    topic, letters, seen = await new_topic(), await new_topic(), Fails(5, held=[5])
    seen.subscribe_attempts(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, on_failure=policy(letters), **AT_ONCE) as app:
        await seen.until_ended(*range(5), *range(6, 10))
        async with visit(cluster, topic, seen.rebalances, TAKES_IT):
            seen.let_go()
            await wait_until(lambda: not get_kafka_handler_report(app.context).in_flight, PATIENCE_SEC, "ended")
        await cluster.until_committed(topic, {0: 10})
    (letter,) = await read(cluster, letters, 1)
    assert (letter.value, reasons(letter)["attempts"]) == (b"5", "3")
    assert seen.attempts == once(range(10)) | {5: [1, 1, 2, 3]}


async def test_a_failure_that_counts_as_done_counts_also_while_away(cluster, new_broker, new_topic):
    """By default a failed record is done, so it is not run again when its partition comes back."""
    topic, seen = await new_topic(), Fails(5, held=[5])
    seen.subscribe_attempts(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, **AT_ONCE) as app:
        await seen.until_ended(*range(5), *range(6, 10))
        async with visit(cluster, topic, seen.rebalances, TAKES_IT):
            seen.let_go()
            await wait_until(lambda: not get_kafka_handler_report(app.context).in_flight, PATIENCE_SEC, "ended")
        await cluster.until_committed(topic, {0: 10})
    assert seen.attempts == once(range(10))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("visitor", [LEAVES_IT, TAKES_IT])
async def test_order_by_key_holds_across_an_adoption(cluster, new_broker, new_topic, visitor, fails):
    """Records behind an adopted one wait for it, also during its retries; each is run once after it."""
    topic, letters, rebalances = await new_topic(), await new_topic(), Rebalances()
    seen, gate, broker, tries = Ordered(lambda number: number % 3), asyncio.Event(), new_broker(), Counter()

    async def handle(number: int):
        with seen.handling(number):
            tries[number] += 1
            if number == 4:
                await gate.wait()
                if fails:
                    raise ValueError

    consuming(broker, topic, listener=rebalances, **QUICK)(handle)
    await send(cluster, topic, range(12), lambda number: number % 3)
    async with serving(broker, ordering="key", on_failure=policy(letters), **AT_ONCE) as app:
        await seen.until(9)
        await seen.until_running(1)
        await cluster.until_committed(topic, {0: 4})
        async with visit(cluster, topic, rebalances, visitor):
            await send(cluster, topic, range(12, 18), lambda number: number % 3)
        await until_delivered(app, 14, 5)
        assert {number for number in tries if number % 3 == 1} == {1, 4}
        gate.set()
        await cluster.until_committed(topic, {0: 18})
    seen.assert_in_order()
    assert tries == dict.fromkeys(range(18), 1) | {4: 3 if fails else 1}
    assert len(await read(cluster, letters, int(fails))) == int(fails)


async def test_a_halted_partition_is_tried_again(cluster, new_broker, new_topic):
    """After a rebalance the record that has halted the partition is run again, and finished ones are not."""
    topic, seen = await new_topic(), Fails(3, held=[3])
    seen.subscribe_attempts(broker := new_broker(), topic)
    await cluster.send(topic, range(10))
    async with serving(broker, on_failure=FailurePolicy(then="halt"), **AT_ONCE) as app:
        await seen.until_ended(*range(3), *range(4, 10))
        seen.let_go()
        await wait_until(lambda: not is_kafka_handler_healthy(app.context), PATIENCE_SEC, "halted")
        async with visit(cluster, topic, seen.rebalances, LEAVES_IT):
            await wait_until(lambda: len(seen.attempts[3]) == 2, PATIENCE_SEC, "tried again")
            await wait_until(lambda: not is_kafka_handler_healthy(app.context), PATIENCE_SEC, "halted again")
            seen.poison.clear()
        await cluster.until_committed(topic, {0: 10})
        assert is_kafka_handler_healthy(app.context)
    assert seen.attempts == once(range(10)) | {3: [1, 1, 1]}


def found():
    """List the records in memory, after a garbage collection."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, Admission | Record)]


@pytest.fixture
def kept(caplog):
    """`kept()` counts the records of this test in memory; log records keep no reference to their arguments."""
    caplog.set_level(logging.CRITICAL, "faststream_concurrent_kafka")
    of_others = {id(each): each for each in found()}
    return lambda: Counter(type(each) for each in found() if id(each) not in of_others)


@pytest.mark.parametrize("visits", [1, 4])
async def test_nothing_is_remembered_of_what_is_committed(cluster, new_broker, new_topic, visits, kept):
    """After any number of rebalances, each uncommitted record is remembered once."""
    topic, held = await new_topic(), Held(5)
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(100))
    async with serving(broker, **AT_ONCE) as app:
        await held.until_ended(*range(5), *range(6, 100))
        await cluster.until_committed(topic, {0: 5})
        for _ in range(visits):
            async with visit(cluster, topic, held.rebalances, TAKES_IT):
                assert may_come_back(held) == [95]
            await until_delivered(app, 95, 1)
            assert may_come_back(held) == []
        held.let_go()
        await cluster.until_committed(topic, {0: 100})
        await until_delivered(app, 0, 0)
        assert kept() == {}
        async with visit(cluster, topic, held.rebalances, TAKES_IT):
            assert sum(may_come_back(held)) == 0
    assert held.runs == dict.fromkeys(range(100), 1)


async def test_what_ends_elsewhere_leaves_no_record_behind(cluster, new_broker, new_topic, kept):
    """Of the records of a revoked partition only offsets and identities are kept, not their bodies."""
    topic, held = await new_topic(), Held(*range(5, 50))
    held.subscribe(broker := new_broker(), topic)
    await cluster.send(topic, range(50))
    async with serving(broker, **AT_ONCE) as app:
        await held.until_started(*range(50))
        async with visit(cluster, topic, held.rebalances, TAKES_IT):
            held.let_go()
            await wait_until(lambda: not get_kafka_handler_report(app.context).in_flight, PATIENCE_SEC, "ended")
            assert kept()[Record] == 0
            assert may_come_back(held) == [45]
        await cluster.until_committed(topic, {0: 50})
    assert held.runs == dict.fromkeys(range(50), 1)
