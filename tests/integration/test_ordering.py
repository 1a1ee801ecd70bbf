"""Order: records that must not overlap, on a real broker (I19)."""

import asyncio
import random
from collections import defaultdict
from contextlib import contextmanager
from itertools import pairwise

import pytest
from faststream.exceptions import NackMessage
from typing_extensions import override

from faststream_concurrent_kafka import (
    FailurePolicy,
    get_kafka_handler_report,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from testkit.brokers import Record, produce, wait_until
from tests.integration.helpers import Gated, Seen, both_loops, consuming, serving, serving_plainly
from tests.integration.test_rebalance import QUICK, another_member


PATIENT = FailurePolicy(max_attempts=0, first_backoff_sec=0.02, max_backoff_sec=0.02)


class Ordered(Seen):
    """Notes which records were handled, when they started, and which of one key overlapped."""

    def __init__(self, lane_of):
        super().__init__()
        self.lane_of = lane_of
        self.started = []
        self.overlaps = []

    @override
    @contextmanager
    def handling(self, value):
        self.overlaps += [(other, value) for other in self.running if self.lane_of(other) == self.lane_of(value)]
        self.started.append(value)
        with super().handling(value):
            yield

    async def work(self, number):
        """Handle a record for a short random time."""
        with self.handling(number):
            await asyncio.sleep(random.uniform(0, 0.01))  # handler  # noqa: S311

    def assert_in_order(self):
        """Check that no two records of a key overlapped, and none started before an earlier one of its key."""
        assert not self.overlaps
        lanes = defaultdict(list)
        for number in self.started:
            lanes[self.lane_of(number)].append(number)
        inversions = [pair for numbers in lanes.values() for pair in pairwise(numbers) if pair[0] > pair[1]]
        assert not inversions


async def send(cluster, topic, numbers, key_of, partition_of=lambda _: 0):
    """Produce numbers with keys; None means no key."""
    keys = {number: key_of(number) for number in numbers}
    await produce(
        cluster.bootstrap_servers,
        topic,
        [
            Record(str(number).encode(), None if key is None else str(key).encode(), None, partition_of(number))
            for number, key in keys.items()
        ],
    )


@pytest.mark.parametrize("ordering", ["key", "partition"])
async def test_a_late_initialisation_keeps_the_order(cluster, new_broker, new_topic, ordering):
    """The record that FastStream has in hand at the initialisation keeps its place before later ones."""
    topic, broker, seen, go_on = await new_topic(), new_broker(), Ordered(lambda number: number % 3), asyncio.Event()

    @consuming(broker, topic)
    async def handle(number: int):
        with seen.handling(number):
            if number == 0:
                await go_on.wait()
            await asyncio.sleep(0.001)  # handler

    await send(cluster, topic, range(30), lambda number: number % 3)
    await broker.start()
    try:
        await seen.until_running(1)
        await initialize_concurrent_processing(broker.context, broker=broker, ordering=ordering)
        if ordering == "key":
            await seen.until(20)
        go_on.set()
        await seen.until(30)
    finally:
        await broker.stop()
        await stop_concurrent_processing(broker.context)
    seen.assert_in_order()
    assert seen.counts == dict.fromkeys(range(30), 1)
    if ordering == "partition":
        assert seen.started == list(range(30))


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("ordering", ["key", "partition"])
async def test_no_overlap_and_no_inversion(cluster, new_broker, new_topic, ordering):
    """Records of one key (or partition) start in the order of their offsets, one at a time; others run meanwhile."""
    topic, broker = await new_topic(3), new_broker()
    # The same ten keys in each of three partitions; order is per partition.
    seen = Ordered(lambda number: number % (30 if ordering == "key" else 3))
    consuming(broker, topic)(seen_handler(seen))
    await send(cluster, topic, range(600), lambda number: number // 3 % 10, lambda number: number % 3)
    async with serving(broker, ordering=ordering, concurrency_limit=50):
        await seen.until(600)
        await cluster.until_committed(topic, dict.fromkeys(range(3), 200))
    seen.assert_in_order()
    assert set(seen.counts.values()) == {1}
    assert 1 < seen.peak <= (30 if ordering == "key" else 3)


def seen_handler(seen):
    """Make a handler of numbers."""

    async def handle(number: int):
        await seen.work(number)

    return handle


async def test_records_without_a_key_are_unordered(cluster, new_broker, new_topic):
    """All of them are handled at once, together with records that have a key."""
    topic, broker = await new_topic(), new_broker()
    seen = Gated().subscribe(broker, topic)
    await send(cluster, topic, range(25), lambda number: "key" if number < 5 else None)
    async with serving(broker, ordering="key", concurrency_limit=50):
        await seen.until_running(21)
        assert seen.running == {0, *range(5, 25)}
        seen.gate.set()
        await seen.until(25)
    assert [number for number in seen.values if number < 5] == [0, 1, 2, 3, 4]


async def test_what_waits_holds_no_slot_and_pins_its_partition(cluster, new_broker, new_topic):
    """While a record of a hot key is stuck, all other keys finish, with two slots; the offset stays at that record."""
    topic, broker, gate = await new_topic(), new_broker(), asyncio.Event()
    seen = Ordered(lambda number: "hot" if number % 3 == 2 else number % 10)

    async def handle(number: int):
        with seen.handling(number):
            if number == 2:
                await gate.wait()

    consuming(broker, topic)(handle)
    await send(cluster, topic, range(150), seen.lane_of)
    async with serving(broker, ordering="key", concurrency_limit=2, commit_batch_timeout_sec=0.05) as app:
        await seen.until(100)
        await cluster.until_committed(topic, {0: 2})

        def settled():
            found = get_kafka_handler_report(app.context)
            return found if found.in_flight == 50 else None

        report = await wait_until(settled, 10, "all are fetched")
        assert (report.waiting, report.retrying, report.is_healthy) == (49, 0, True)
        (partition,) = report.partitions
        assert (partition.frontier, partition.oldest_unfinished_offset, partition.unfinished) == (2, 2, 50)
        assert partition.oldest_unfinished_attempt == 1
        gate.set()
        await cluster.until_committed(topic, {0: 150})
        assert get_kafka_handler_report(app.context).waiting == 0
    seen.assert_in_order()
    assert set(seen.counts.values()) == {1}


@pytest.mark.parametrize("ordering", ["key", "partition"])
async def test_batches_that_share_a_key_do_not_overlap(cluster, new_broker, new_topic, ordering):
    """A batch waits for all batches before it that have one of its keys; batches that share none overlap."""
    topic, broker, seen, clashes = await new_topic(), new_broker(), Seen(), []

    def keys(batch):
        return {number % 24 for number in batch} if ordering == "key" else {0}

    async def handle(numbers: list[int]):
        batch = tuple(numbers)
        clashes.extend((other, batch) for other in seen.running if keys(other) & keys(batch))
        with seen.handling(batch):
            await asyncio.sleep(random.uniform(0, 0.02))  # handler  # noqa: S311

    consuming(broker, topic, batch=True, max_records=4)(handle)
    await send(cluster, topic, range(240), lambda number: number % 24)
    async with serving(broker, ordering=ordering, concurrency_limit=50):
        await cluster.until_committed(topic, {0: 240})
    assert not clashes
    assert sorted(number for batch in seen.values for number in batch) == list(range(240))
    assert (seen.peak > 1) is (ordering == "key")
    ended = {number: place for place, batch in enumerate(seen.values) for number in batch}
    assert all(ended[number] <= ended[number + 24] for number in range(216))


@pytest.mark.parametrize("failure", [ValueError, NackMessage(delay=0.02)])
@pytest.mark.parametrize("plainly", [False, True])
async def test_a_key_waits_for_its_failing_record_while_others_go_on(cluster, new_broker, new_topic, failure, plainly):
    """Record 0 is retried until all other keys are done, with one slot; also as the first record of a plain broker."""
    topic, broker = await new_topic(), new_broker()
    seen = Ordered(lambda number: number % 4)

    async def handle(number: int):
        with seen.handling(number):
            await asyncio.sleep(0)
            if number == 0 and len(set(seen.started)) < 31:
                raise failure

    consuming(broker, topic)(handle)
    await send(cluster, topic, range(40), seen.lane_of)
    run = serving_plainly if plainly else serving
    async with run(broker, ordering="key", on_failure=PATIENT, concurrency_limit=1, commit_batch_timeout_sec=0.05):
        await cluster.until_committed(topic, {0: 40})
    seen.assert_in_order()
    assert seen.counts[0] > 1
    others = [number for number in seen.values if number]
    assert sorted(others) == list(range(1, 40))
    assert all(number % 4 for number in others[:30])


@pytest.mark.parametrize("ordering", ["key", "partition"])
async def test_a_clean_stop_handles_what_waits_behind_its_key(cluster, new_broker, new_topic, ordering):
    """After a stop while records wait for each other, each is handled once in all, in order over both runs."""
    topic = await new_topic(2)
    seen = Ordered(lambda number: number % 2)
    await send(cluster, topic, range(100), seen.lane_of, lambda number: number % 2)
    for run in range(2):
        broker = new_broker()
        consuming(broker, topic)(seen_handler(seen))
        async with serving(broker, ordering=ordering, concurrency_limit=50) as app:
            if run == 0:
                await wait_until(lambda app=app: get_kafka_handler_report(app.context).waiting > 20, 20, "some wait")
            else:
                await send(cluster, topic, range(100, 120), seen.lane_of, lambda number: number % 2)
                await seen.until(120)
        assert not seen.running
    seen.assert_in_order()
    assert seen.counts == dict.fromkeys(range(120), 1)
    assert await cluster.committed(topic) == {0: 60, 1: 60}


async def test_what_a_stop_cuts_off_begins_where_it_was_after_the_restart(cluster, new_broker, new_topic):
    """A stuck record is cancelled at the deadline; those behind it start only after the next run has handled it."""
    topic, gate = await new_topic(), asyncio.Event()
    seen = Ordered(lambda number: number % 2)

    async def handle(number: int):
        with seen.handling(number):
            if number == 4:
                await gate.wait()

    await send(cluster, topic, range(20), seen.lane_of)
    for run in range(2):
        broker = new_broker()
        consuming(broker, topic)(handle)
        async with serving(broker, ordering="key", shutdown_timeout_sec=0.3):
            if run == 0:
                await seen.until(12)
                assert {number for number in seen.started if number % 2 == 0} == {0, 2, 4}
            else:
                await cluster.until_committed(topic, {0: 20})
        gate.set()
        assert await cluster.committed(topic) == {0: 4 if run == 0 else 20}
    assert not seen.overlaps
    assert [number for number in seen.started if number % 2 == 0] == [0, 2, 4, *range(4, 20, 2)]


async def test_a_partition_that_is_kept_over_a_rebalance_keeps_its_order(cluster, new_broker, new_topic):
    """A record that still runs when its partition comes back is not started again; the rest of its key waits for it."""
    topic, broker, gate, elsewhere = await new_topic(2), new_broker(), asyncio.Event(), []
    seen = Ordered(lambda number: number // 100)

    async def handle(number: int):
        with seen.handling(number):
            if not gate.is_set():
                await gate.wait()

    consuming(broker, topic, **QUICK)(handle)
    numbers = [*range(10), *range(100, 110)]
    await send(cluster, topic, numbers, seen.lane_of, seen.lane_of)
    settings = {"ordering": "key", "rebalance_flush_timeout_sec": 0.2, "commit_batch_timeout_sec": 0.1}
    async with serving(broker, **settings) as app:
        await wait_until(lambda: get_kafka_handler_report(app.context).in_flight == 20, 20, "all are fetched")
        async with another_member(cluster, topic, elsewhere):
            await wait_until(lambda: len(elsewhere) == 10, 20, lambda: f"one partition's records: {elsewhere}")
            # Two that have outlasted the drain, and the nine that were delivered again behind one of them.
            await wait_until(lambda: get_kafka_handler_report(app.context).in_flight == 11, 20, "delivered again")
            assert sorted(seen.started) == [0, 100]
            gate.set()
            await cluster.until_committed(topic, {0: 10, 1: 10})
        await send(cluster, topic, [50, 150], seen.lane_of, seen.lane_of)
        await cluster.until_committed(topic, {0: 11, 1: 11})
    seen.assert_in_order()
    assert {*seen.values, *elsewhere} == {*numbers, 50, 150}
    first = 100 - 100 * (elsewhere[0] // 100)
    kept = [number for number in seen.started if first <= number < first + 100]
    assert kept == [*range(first, first + 10), first + 50]


@pytest.mark.asyncio(**both_loops)
@pytest.mark.parametrize("ordering", ["key", "partition"])
async def test_the_first_record_of_a_plain_broker_is_in_order_too(cluster, new_broker, new_topic, ordering):
    """The subscriber is found by this record, and no other record of its key starts before it has ended."""
    topic, broker = await new_topic(), new_broker()
    seen = Ordered(lambda number: number % 3 if ordering == "key" else 0)
    consuming(broker, topic)(seen_handler(seen))
    await send(cluster, topic, range(90), lambda number: number % 3)
    async with serving_plainly(broker, ordering=ordering):
        await cluster.until_committed(topic, {0: 90})
    seen.assert_in_order()
    assert seen.counts == dict.fromkeys(range(90), 1)


async def others_per_sec(cluster, broker, topic, *, hot):
    """Measure records per second with a hundred keys; with or without one key that has 90 % of the traffic."""
    seen, hurry, loop, times = Seen(), asyncio.Event(), asyncio.get_running_loop(), []

    async def handle(number: int):
        with seen.handling(number):
            if not hurry.is_set():
                await asyncio.sleep(0.04)  # handler
            if number % 10 == 0:
                times.append(loop.time())

    consuming(broker, topic)(handle)
    numbers = range(2000) if hot else range(0, 2000, 10)
    await send(cluster, topic, numbers, lambda number: "hot" if number % 10 else number % 1000)
    async with serving(broker, ordering="key", concurrency_limit=10):
        await wait_until(lambda: len(times) == 200, 60, "the others are handled")
        hurry.set()
        await seen.until(len(numbers))
    return (len(times) - 1) / (times[-1] - times[0])


@pytest.mark.alone
async def test_a_hot_key_does_not_starve_the_others(cluster, new_broker, new_topic):
    """With a key that has 90 % of the traffic, the others keep at least 80 % of their throughput; it takes one slot."""
    shares = []
    # Repeated, because the machine may be busy.
    while len(shares) < 4 and max(shares, default=0) < 0.8:
        alone = await others_per_sec(cluster, new_broker(), await new_topic(), hot=False)
        beside = await others_per_sec(cluster, new_broker(), await new_topic(), hot=True)
        shares.append(beside / alone)
    assert max(shares) >= 0.8
