"""Lanes against an oracle: who may start is who has nobody before them in any lane they share."""

import time
import tracemalloc
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from faststream_concurrent_kafka._record.ordering import Lanes, lanes_of
from tests.unit.world import raw_record


class LanesAgainstOracle(RuleBasedStateMachine):
    """Enter and leave in any order; the oracle is a list of all who are there, in the order in which they came."""

    def __init__(self):
        super().__init__()
        self.lanes: Lanes[int] = Lanes()
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
        if self.lanes.enter(self.count, sorted(wanted, key=lambda lane: hash((lane, self.count)))):
            self.running.add(self.count)

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 1000))
    def leave(self, choice):
        entry = sorted(self.running)[choice % len(self.running)]
        self.running.discard(entry)
        ready = self.lanes.leave(self.present.pop(entry))
        assert len(ready) == len(set(ready))
        assert not self.running & set(ready), "started twice"
        self.running |= set(ready)

    @invariant()
    def exactly_those_run_who_may(self):
        assert self.running == set(self.may_run())

    @invariant()
    def nobody_shares_a_lane_with_somebody_who_runs(self):
        held = [lane for entry in self.running for lane in self.present[entry]]
        assert len(held) == len(set(held))

    @invariant()
    def only_lanes_in_use_are_kept(self):
        assert len(self.lanes) == len(frozenset().union(*self.present.values()))

    @override
    def teardown(self):
        """Whatever was entered can be finished, and then nothing is left."""
        while self.present:
            assert self.running, "deadlock"
            self.leave(0)
            self.exactly_those_run_who_may()
        assert len(self.lanes) == 0


LanesAgainstOracle.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_lanes_against_an_oracle = LanesAgainstOracle.TestCase


@settings(max_examples=200, deadline=None)
@given(entries=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True), max_size=40))
def test_in_every_lane_the_order_of_starting_is_that_of_entering(entries):
    """Also for those who are in several lanes, and whoever is first to leave."""
    lanes: Lanes[int] = Lanes()
    started = [number for number, wanted in enumerate(entries) if lanes.enter(number, wanted)]
    for number in started:  # grows
        started.extend(lanes.leave(entries[number]))
    assert sorted(started) == list(range(len(entries)))
    for lane in range(4):
        in_lane = [number for number in started if lane in entries[number]]
        assert in_lane == sorted(in_lane)
    assert len(lanes) == 0


def test_a_batch_waits_for_all_of_its_lanes_and_keeps_its_place_in_each():
    """It goes on when the last of those before it has left, and nobody passes it meanwhile."""
    lanes: Lanes[str] = Lanes()
    assert lanes.enter("a", ["a"])
    assert lanes.enter("b", ["b"])
    assert not lanes.enter("batch", ["a", "b", "c"])
    assert not lanes.enter("after", ["c"])
    assert lanes.enter("beside", ["d"])
    assert lanes.leave(["b"]) == []
    assert lanes.leave(["a"]) == ["batch"]
    assert lanes.leave(["a", "b", "c"]) == ["after"]
    assert lanes.leave(["c"]) == lanes.leave(["d"]) == []
    assert len(lanes) == 0


def test_unordered_records_have_no_lanes():
    """Nobody waits for anybody."""
    assert lanes_of("unordered", 1, raw_record(key=b"k")) == ()
    assert lanes_of("unordered", 1, (raw_record(key=b"k"), raw_record(key=b"k"))) == ()


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
    """An empty key is a key; no key is none."""
    lanes = [set(lanes_of("key", 1, raw_record(**options))) for options in (first, second)]
    assert bool(lanes[0] & lanes[1]) == share


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
    """Whatever their keys."""
    lanes = [set(lanes_of("partition", 1, raw_record(**options))) for options in (first, second)]
    assert bool(lanes[0] & lanes[1]) == share


@pytest.mark.parametrize("ordering", ["key", "partition"])
def test_subscribers_are_not_in_each_others_way(ordering):
    """Two groups may read the same partition in one process."""
    record = raw_record(key=b"k")
    assert not set(lanes_of(ordering, 1, record)) & set(lanes_of(ordering, 2, record))


RAW_RECORDS = st.builds(
    raw_record,
    partition=st.integers(0, 2),
    key=st.sampled_from([None, b"", b"a", b"b"]),
    topic=st.sampled_from(["orders", "other"]),
)


@given(ordering=st.sampled_from(["key", "partition"]), batch=st.lists(RAW_RECORDS, min_size=1, max_size=8))
def test_a_batch_has_the_lanes_of_its_records_each_once(ordering, batch):
    """Several keys, several partitions, with and without keys."""
    lanes = list(lanes_of(ordering, 1, tuple(batch)))
    assert len(lanes) == len(set(lanes))
    assert set(lanes) == {lane for record in batch for lane in lanes_of(ordering, 1, record)}


IN_FLIGHT = 10_000


def stream(lanes, keys):
    """Have so many records, each with a key of its own, pass through with a window of them in flight."""
    window: deque[tuple[int]] = deque()
    for key in range(keys):
        lane = (key,)
        assert lanes.enter(key, lane)
        window.append(lane)
        if len(window) > IN_FLIGHT:
            lanes.leave(window.popleft())
    for lane in window:
        lanes.leave(lane)


def test_the_cost_of_a_record_is_flat_up_to_a_million_keys():
    """A hundred times the keys at about the same time per record; three times as much is for a busy machine."""

    def cost(keys):
        lanes: Lanes[int] = Lanes()
        began = time.process_time()
        stream(lanes, keys)
        assert len(lanes) == 0
        return (time.process_time() - began) / keys

    few = min(cost(IN_FLIGHT) for _ in range(5))
    assert cost(1_000_000) < 3 * few


def test_no_lane_outlives_its_last_record():
    """What is kept after many keys is what is kept after few."""
    lanes: Lanes[int] = Lanes()
    stream(lanes, IN_FLIGHT)
    tracemalloc.start()
    try:
        stream(lanes, 2 * IN_FLIGHT)
        before, _ = tracemalloc.get_traced_memory()
        stream(lanes, 10 * IN_FLIGHT)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000_000
    assert len(lanes) == 0
