"""`FailurePolicy(then="halt")` on a real broker: the partition stops at the record that fails (I5)."""

import asyncio
from typing import Any

import pytest

from faststream_concurrent_kafka import (
    FailurePolicy,
    SettingsError,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    is_kafka_handler_alive,
    is_kafka_handler_healthy,
)
from testkit.brokers import wait_until
from tests.integration.helpers import Seen, both_loops, consuming, manual, serving, warnings_of
from tests.integration.test_ordering import Ordered, send
from tests.integration.test_rebalance import QUICK, another_member


HALT = FailurePolicy(max_attempts=2, first_backoff_sec=0.02, then="halt")
SETTINGS: dict[str, Any] = {"on_failure": HALT, "commit_batch_timeout_sec": 0.05}


class Poisoned(Seen):
    """A handler that fails for some numbers until they are cured, and lets others wait for a gate."""

    def __init__(self, poison, held=()):
        super().__init__()
        self.poison = set(poison)
        self.held = set(held)
        self.gate = asyncio.Event()

    async def handle(self, number: int):
        """Handle a record."""
        with self.handling(number):
            if number in self.held:
                await self.gate.wait()
            if number in self.poison:
                raise ValueError(f"number {number}")

    def subscribe(self, broker, topic, **more):
        """Subscribe the handler."""
        consuming(broker, topic, **more)(self.handle)


async def until_red(app, count=1):
    """Wait until so many problems are reported, and return them."""
    return await wait_until(
        lambda: (found := get_kafka_handler_report(app.context).problems) and len(found) == count and found,
        20,
        lambda: f"{count} problems: {get_kafka_handler_report(app.context).problems}",
    )


@pytest.mark.asyncio(**both_loops)
async def test_a_halted_partition_commits_nothing_after_its_failed_record(cluster, new_broker, new_topic, caplog):
    """Earlier records finish and are committed, other partitions go on, health is red; a restart retries it."""
    topic = await new_topic(2)
    seen = Poisoned({3}, held={1})
    broker = new_broker()
    seen.subscribe(broker, topic)
    await cluster.send(topic, range(10), partition=0)
    await cluster.send(topic, range(100, 110), partition=1)
    async with serving(broker, **SETTINGS) as app:
        (problem,) = await until_red(app)
        assert f"{topic}[0]@3" in problem
        assert "attempt 2" in problem
        assert "ValueError: number 3" in problem
        assert not is_kafka_handler_healthy(app.context)
        assert is_kafka_handler_alive(app.context)
        await cluster.until_committed(topic, {0: 1, 1: 10})
        seen.gate.set()
        await cluster.until_committed(topic, {0: 3, 1: 10})
        await cluster.send(topic, range(10, 20), partition=0)
        await cluster.send(topic, range(110, 120), partition=1)
        await cluster.until_committed(topic, {0: 3, 1: 20})
        first, second = sorted(get_kafka_handler_report(app.context).partitions, key=lambda each: each.partition)
        assert (first.halted_at, first.frontier, second.halted_at) == (3, 3, None)
        assert get_kafka_handler_report(app.context).problems == (problem,)
    assert seen.counts[3] == 2
    assert not seen.counts.keys() & set(range(10, 20))
    assert await cluster.committed(topic) == {0: 3, 1: 20}
    assert problem in warnings_of(caplog)

    seen.poison.clear()
    broker = new_broker()
    seen.subscribe(broker, topic)
    async with serving(broker, **SETTINGS) as app:
        await cluster.until_committed(topic, {0: 20, 1: 20})
        assert is_kafka_handler_healthy(app.context)
    assert seen.counts[3] == 3
    assert set(seen.values) == {*range(20), *range(100, 120)}


async def test_it_halts_again_after_a_restart_that_has_mended_nothing(cluster, new_broker, new_topic):
    """Each run makes all attempts, and none commits past the record."""
    topic, seen = await new_topic(), Poisoned({2})
    await cluster.send(topic, range(5))
    for run in range(1, 3):
        broker = new_broker()
        seen.subscribe(broker, topic)
        async with serving(broker, **SETTINGS) as app:
            await until_red(app)
            await cluster.until_committed(topic, {0: 2})
        assert seen.counts[2] == 2 * run
    assert seen.counts[0] == seen.counts[1] == 1


@pytest.mark.parametrize("ordering", ["key", "partition"])
async def test_what_is_ordered_after_a_halted_record_waits_for_the_restart(cluster, new_broker, new_topic, ordering):
    """No record of its key is started; running records of other keys finish. The restart keeps the order."""
    topic = await new_topic(2)
    # Partition 0 has the keys 0 and 2, partition 1 the keys 1 and 3.
    seen = Ordered(lambda number: number % (4 if ordering == "key" else 2))
    poison = {8}

    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0)
            if number in poison:
                raise ValueError

    await send(cluster, topic, range(80), lambda number: number % 4, lambda number: number % 2)
    for run in range(2):
        broker = new_broker()
        consuming(broker, topic)(handle)
        async with serving(broker, ordering=ordering, **SETTINGS) as app:
            if run == 0:
                await until_red(app)
                await cluster.until_committed(topic, {0: 4, 1: 40})
                assert not [number for number in seen.started if number > 8 and number % 4 == 0]
                await wait_until(lambda app=app: get_kafka_handler_report(app.context).in_flight == 0, 5, "none waits")
            else:
                await cluster.until_committed(topic, {0: 40, 1: 40})
        poison.clear()
    assert not seen.overlaps
    lane = [number for number in seen.started if number % 4 == 0]
    assert lane == [0, 4, 8, 8, *range(8, 80, 4)]
    assert set(seen.values) == set(range(80))


async def test_a_rebalance_tries_it_again(cluster, new_broker, new_topic):
    """The next owner begins at the failed record; when the partition comes back, health is green again."""
    topic, broker, elsewhere = await new_topic(2), new_broker(), []
    seen = Poisoned({3, 103})
    seen.subscribe(broker, topic, **QUICK)
    for partition in range(2):
        await cluster.send(topic, range(partition * 100, partition * 100 + 10), partition)
    async with serving(broker, **SETTINGS) as app:
        problems = await until_red(app, 2)
        assert {f"{topic}[{partition}]@3" for partition in range(2)} == {text.split(" ")[0] for text in problems}
        await cluster.until_committed(topic, {0: 3, 1: 3})
        async with another_member(cluster, topic, elsewhere):
            await wait_until(lambda: len(elsewhere) == 7, 20, lambda: f"one partition's rest: {elsewhere}")
            # The other partition has come back to this process, and halts again.
            await wait_until(lambda: seen.counts[3] + seen.counts[103] == 6, 20, lambda: str(seen.counts))
            (problem,) = await until_red(app)
            seen.poison.clear()
        kept = 1 if problem.startswith(f"{topic}[1]") else 0
        await cluster.until_committed(topic, {0: 10, 1: 10})
        await wait_until(lambda: is_kafka_handler_healthy(app.context), 5, "green")
        await cluster.send(topic, [50], 0)
        await cluster.send(topic, [150], 1)
        await cluster.until_committed(topic, {0: 11, 1: 11})
    assert elsewhere == list(range(103 - kept * 100, 110 - kept * 100))
    assert set(seen.values) | set(elsewhere) == {*range(10), *range(100, 110), 50, 150}


async def test_two_halted_partitions_do_not_stop_the_third(cluster, new_broker, new_topic):
    """Each of two partitions halts and is named; records of the third are handled and committed."""
    topic, broker = await new_topic(3), new_broker()
    seen = Poisoned({0, 105})
    seen.subscribe(broker, topic)
    for partition in range(3):
        await cluster.send(topic, range(partition * 100, partition * 100 + 10), partition)
    async with serving(broker, **SETTINGS) as app:
        await until_red(app, 2)
        await cluster.until_committed(topic, {1: 5, 2: 10})
        await cluster.send(topic, range(210, 220), 2)
        await cluster.until_committed(topic, {1: 5, 2: 20})
        halted = {each.partition: each.halted_at for each in get_kafka_handler_report(app.context).partitions}
        assert halted == {0: 0, 1: 5, 2: None}
    assert await cluster.committed(topic) == {1: 5, 2: 20}


async def test_a_batch_halts_at_its_first_record(cluster, new_broker, new_topic):
    """All records of a failed batch are left undone; the batches before it are committed."""
    topic, broker, batches = await new_topic(), new_broker(), []

    async def handle(numbers: list[int]):
        batches.append(numbers)
        if 7 in numbers:
            raise ValueError

    consuming(broker, topic, batch=True, max_records=5)(handle)
    await cluster.send(topic, range(20))
    async with serving(broker, concurrency_limit=1, **SETTINGS) as app:
        (problem, *_) = await wait_until(lambda: get_kafka_handler_report(app.context).problems, 20, "red")
        failed = next(batch for batch in batches if 7 in batch)
        assert f"{topic}[0]@{failed[0]} " in problem
        await wait_until(lambda: get_kafka_handler_report(app.context).in_flight == 0, 5, "nothing in flight")
    assert batches.count(failed) == 2
    assert await cluster.committed(topic) == ({0: failed[0]} if failed[0] else {})


async def test_a_subscriber_that_is_stopped_and_started_tries_it_again(cluster, new_broker, new_topic):
    """A restart of the subscriber is enough to make health green again."""
    topic, broker = await new_topic(), new_broker()
    seen, subscriber = Poisoned({3}), broker.subscriber(topic, **manual(topic))
    subscriber(seen.handle)
    await cluster.send(topic, range(10))
    async with serving(broker, **SETTINGS) as app:
        await until_red(app)
        await subscriber.stop()
        assert is_kafka_handler_healthy(app.context)
        assert await cluster.committed(topic) == {0: 3}
        seen.poison.clear()
        await subscriber.start()
        await cluster.until_committed(topic, {0: 10})
        assert is_kafka_handler_healthy(app.context)
    assert seen.counts[3] == 3


async def test_halt_needs_commits(new_broker):
    """`enable_batch_commit=False` is refused at once, and the text says why."""
    with pytest.raises(SettingsError, match="commits past the failed record"):
        await initialize_concurrent_processing(new_broker().context, enable_batch_commit=False, on_failure=HALT)
