"""Queues against an oracle: an entry may start when none before it shares a key with it."""

import time
import tracemalloc
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from faststream_concurrent_kafka._record.ordering import OrderQueues, order_keys_of
from tests.unit.world import raw_record


class QueuesAgainstOracle(RuleBasedStateMachine):
    """Entries enter and leave in any order; the oracle is a list of the present ones, in the order of entering."""

    def __init__(self):
        super().__init__()
        self.queues: OrderQueues[int] = OrderQueues()
        self.present: dict[int, frozenset[int]] = {}
        self.running: set[int] = set()
        self.count = 0

    def may_run(self):
        seen: set[int] = set()
        for entry, wanted in self.present.items():
            if not wanted & seen:
                yield entry
            seen |= wanted

    @rule(wanted=st.frozensets(st.integers(0, 4), min_size=1, max_size=4))
    def enter(self, wanted):
        self.count += 1
        self.present[self.count] = wanted
        if self.queues.enter(self.count, sorted(wanted, key=lambda key: hash((key, self.count)))):
            self.running.add(self.count)

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 1000))
    def leave(self, choice):
        entry = sorted(self.running)[choice % len(self.running)]
        self.running.discard(entry)
        ready = self.queues.leave(self.present.pop(entry))
        assert len(ready) == len(set(ready))
        assert not self.running & set(ready), "started twice"
        self.running |= set(ready)

    @invariant()
    def exactly_those_run_who_may(self):
        assert self.running == set(self.may_run())

    @invariant()
    def no_two_that_run_share_a_key(self):
        held = [key for entry in self.running for key in self.present[entry]]
        assert len(held) == len(set(held))

    @invariant()
    def only_keys_in_use_are_kept(self):
        assert len(self.queues) == len(frozenset().union(*self.present.values()))

    @override
    def teardown(self):
        """Check that all entries can leave, and that nothing is kept afterwards."""
        while self.present:
            assert self.running, "deadlock"
            self.leave(0)
            self.exactly_those_run_who_may()
        assert len(self.queues) == 0


QueuesAgainstOracle.TestCase.settings = settings(max_examples=settings().max_examples, stateful_step_count=50)
test_queues_against_an_oracle = QueuesAgainstOracle.TestCase


@settings(max_examples=2 * settings().max_examples)
@given(entries=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True), max_size=40))
def test_for_every_key_the_order_of_starting_is_that_of_entering(entries):
    """Also for entries with several keys, whichever leaves first."""
    queues: OrderQueues[int] = OrderQueues()
    started = [number for number, wanted in enumerate(entries) if queues.enter(number, wanted)]
    for number in started:  # grows
        started.extend(queues.leave(entries[number]))
    assert sorted(started) == list(range(len(entries)))
    for key in range(4):
        with_key = [number for number in started if key in entries[number]]
        assert with_key == sorted(with_key)
    assert len(queues) == 0


def test_a_batch_waits_in_all_of_its_queues_and_keeps_its_place_in_each():
    """It may start when all entries before it have left, and no later entry overtakes it."""
    queues: OrderQueues[str] = OrderQueues()
    assert queues.enter("a", ["a"])
    assert queues.enter("b", ["b"])
    assert not queues.enter("batch", ["a", "b", "c"])
    assert not queues.enter("after", ["c"])
    assert queues.enter("beside", ["d"])
    assert queues.leave(["b"]) == []
    assert queues.leave(["a"]) == ["batch"]
    assert queues.leave(["a", "b", "c"]) == ["after"]
    assert queues.leave(["c"]) == queues.leave(["d"]) == []
    assert len(queues) == 0


def test_unordered_records_have_no_order_keys():
    """No record waits for another one."""
    assert order_keys_of("unordered", 1, raw_record(key=b"k")) == ()
    assert order_keys_of("unordered", 1, (raw_record(key=b"k"), raw_record(key=b"k"))) == ()


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ({"key": b"k"}, {"key": b"k", "offset": 7}, True),
        ({"key": b"k"}, {"key": b"l"}, False),
        ({"key": b"k"}, {"key": b"k", "partition": 1}, False),
        ({"key": b"k"}, {"key": b"k", "topic": "other"}, False),
        ({"key": b""}, {"key": b""}, True),
        ({"key": b""}, {"key": None}, False),
        ({"key": None}, {"key": None}, False),
    ],
)
def test_key_order_is_among_records_of_a_partition_with_the_same_key(first, second, share):
    """An empty key is a key; a record without a key has no order."""
    keys = [set(order_keys_of("key", 1, raw_record(**options))) for options in (first, second)]
    assert bool(keys[0] & keys[1]) == share


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        ({"key": b"k"}, {"key": b"l"}, True),
        ({"key": None}, {"key": b"k"}, True),
        ({"key": None}, {"key": None}, True),
        ({}, {"partition": 1}, False),
        ({}, {"topic": "other"}, False),
    ],
)
def test_partition_order_is_among_all_records_of_a_partition(first, second, share):
    """The keys of the records do not matter."""
    keys = [set(order_keys_of("partition", 1, raw_record(**options))) for options in (first, second)]
    assert bool(keys[0] & keys[1]) == share


@pytest.mark.parametrize("ordering", ["key", "partition"])
def test_subscribers_are_not_in_each_others_way(ordering):
    """Two subscribers (of two groups) may read the same partition in one process."""
    record = raw_record(key=b"k")
    assert not set(order_keys_of(ordering, 1, record)) & set(order_keys_of(ordering, 2, record))


RAW_RECORDS = st.builds(
    raw_record,
    partition=st.integers(0, 2),
    key=st.sampled_from([None, b"", b"a", b"b"]),
    topic=st.sampled_from(["orders", "other"]),
)


@given(ordering=st.sampled_from(["key", "partition"]), batch=st.lists(RAW_RECORDS, min_size=1, max_size=8))
def test_a_batch_has_the_order_keys_of_its_records_each_once(ordering, batch):
    """Several keys, several partitions, with and without keys."""
    keys = list(order_keys_of(ordering, 1, tuple(batch)))
    assert len(keys) == len(set(keys))
    assert set(keys) == {key for record in batch for key in order_keys_of(ordering, 1, record)}


IN_FLIGHT = 10_000


def stream(queues, keys):
    """Let so many records, each with its own key, enter and leave, with a window of them in flight."""
    window: deque[tuple[int]] = deque()
    for key in range(keys):
        keys_of_it = (key,)
        assert queues.enter(key, keys_of_it)
        window.append(keys_of_it)
        if len(window) > IN_FLIGHT:
            queues.leave(window.popleft())
    for keys_of_it in window:
        queues.leave(keys_of_it)


def test_the_cost_of_a_record_is_flat_up_to_a_million_keys():
    """A hundred times as many keys take about the same time per record (up to three times, on a busy machine)."""

    def cost(keys):
        queues: OrderQueues[int] = OrderQueues()
        began = time.process_time()
        stream(queues, keys)
        assert len(queues) == 0
        return (time.process_time() - began) / keys

    few = min(cost(IN_FLIGHT) for _ in range(5))
    assert cost(1_000_000) < 3 * few


def test_no_queue_outlives_its_last_record():
    """After many keys, no more memory is kept than after few."""
    queues: OrderQueues[int] = OrderQueues()
    stream(queues, IN_FLIGHT)
    tracemalloc.start()
    try:
        stream(queues, 2 * IN_FLIGHT)
        before, _ = tracemalloc.get_traced_memory()
        stream(queues, 10 * IN_FLIGHT)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000_000
    assert len(queues) == 0
