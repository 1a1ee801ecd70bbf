"""The ledger against a brute-force oracle: never past unfinished work, never back, complete when all is done.

Invariants: I1, I2, I3, I4, I6, I7, I32.
"""

import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from faststream_concurrent_kafka._partition.ledger import PartitionLedger


class LedgerMachine(RuleBasedStateMachine):
    """Random admissions with gaps, completions in any order, acknowledgements and revocations."""

    def __init__(self):
        super().__init__()
        self.next_offset = 0
        self.begin_epoch()

    def begin_epoch(self):
        self.records: dict[int, bool] = {}  # offset -> finished, in delivery order; the oracle keeps everything
        self.ledger: PartitionLedger[str] = PartitionLedger(0)
        self.frontiers: list[int] = []
        self.acked = self.next_offset

    def true_frontier(self):
        return next((offset for offset, finished in self.records.items() if not finished), max(self.records) + 1)

    @rule(gap=st.integers(0, 3))
    def admit(self, gap):
        offset = self.next_offset + gap
        if not self.records:
            self.ledger = PartitionLedger(offset)
            self.acked = offset
        self.ledger.admit(offset, f"record {offset}")
        self.records[offset] = False
        self.next_offset = offset + 1

    @precondition(lambda self: not all(self.records.values()))
    @rule(data=st.data())
    def complete(self, data):
        offset = data.draw(st.sampled_from([offset for offset, finished in self.records.items() if not finished]))
        self.ledger.complete(offset)
        self.records[offset] = True

    @precondition(lambda self: self.records)
    @rule(data=st.data())
    def acknowledge(self, data):
        self.acked = max(self.acked, data.draw(st.integers(min(self.records), self.true_frontier())))
        self.ledger.ack(self.acked)

    @precondition(lambda self: self.records)
    @rule(back=st.integers(0, 50))
    def revoke_and_deliver_again(self, back):
        self.next_offset = max(0, self.next_offset - back)
        self.begin_epoch()

    @invariant()
    def frontier_is_the_oracles(self):
        if self.records:
            assert self.ledger.frontier == self.true_frontier()

    @invariant()
    def frontier_never_goes_back_within_an_epoch(self):
        if self.records:
            self.frontiers.append(self.ledger.frontier)
            assert self.frontiers == sorted(self.frontiers)

    @invariant()
    def everything_finished_means_everything_may_be_committed(self):
        if self.records and all(self.records.values()):
            assert self.ledger.frontier == self.ledger.admitted == max(self.records) + 1
            assert self.ledger.first_unfinished() is None

    @invariant()
    def window_counts_what_a_crash_would_deliver_again(self):
        if self.records:
            assert self.ledger.window == sum(offset >= self.acked for offset in self.records)
            assert self.ledger.unfinished == sum(not finished for finished in self.records.values())

    @invariant()
    def the_record_that_pins_the_frontier_is_named(self):
        if self.records and not all(self.records.values()):
            assert self.ledger.first_unfinished() == f"record {self.true_frontier()}"


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=3 * settings().max_examples, stateful_step_count=60)


def test_an_offset_that_was_passed_is_refused():
    """The record is not taken for a finished one: the caller has to begin a new epoch."""
    ledger: PartitionLedger[None] = PartitionLedger(10)
    ledger.admit(10, None)
    with pytest.raises(ValueError, match="a new epoch"):
        ledger.admit(10, None)


def test_a_record_is_completed_once():
    """To complete a record twice is a bug of the caller, and raises an error."""
    ledger: PartitionLedger[None] = PartitionLedger(0)
    ledger.admit(0, None)
    ledger.complete(0)
    with pytest.raises(KeyError):
        ledger.complete(0)


def test_done_offsets_behind_a_stuck_record_cost_at_most_100_bytes_each():
    """Behind one stuck record, 100,000 finished ones take little memory."""
    count = 100_000
    tracemalloc.start()
    ledger: PartitionLedger[None] = PartitionLedger(0)
    ledger.admit(0, None)
    before, _ = tracemalloc.get_traced_memory()
    for offset in range(1_000, 1_000 + count):
        ledger.admit(offset, None)
        ledger.complete(offset)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ledger.frontier == 0
    assert ledger.window == count + 1
    assert (after - before) / count <= 100


class SeekingMachine(RuleBasedStateMachine):
    """One assignment in which the position moves back and forth while records run."""

    def __init__(self):
        super().__init__()
        self.ledger: PartitionLedger[None] = PartitionLedger(0)
        self.unfinished: list[tuple[PartitionLedger[None], int]] = []

    @rule(gap=st.integers(0, 3))
    def admit(self, gap):
        offset = self.ledger.admitted + gap
        self.ledger.admit(offset, None)
        self.unfinished.append((self.ledger, offset))

    @rule(to=st.integers(0, 30))
    def move(self, to):
        self.ledger = PartitionLedger(to, behind=self.ledger)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data())
    def complete(self, data):
        ledger, offset = self.unfinished.pop(data.draw(st.integers(0, len(self.unfinished) - 1)))
        ledger.complete(offset)

    @invariant()
    def nothing_that_runs_is_passed(self):
        frontier = min((offset for _, offset in self.unfinished), default=self.ledger.admitted)
        assert self.ledger.frontier == min(frontier, self.ledger.admitted)

    @invariant()
    def it_is_held_back_by_earlier_epochs_alone(self):
        own = min((offset for ledger, offset in self.unfinished if ledger is self.ledger), default=self.ledger.admitted)
        assert self.ledger.is_held_back == (self.ledger.frontier < own)


TestSeeking = SeekingMachine.TestCase
TestSeeking.settings = settings(max_examples=3 * settings().max_examples, stateful_step_count=40)


def test_what_is_left_undone_after_the_position_has_moved_stops_the_new_epoch():
    """The record and those behind it will be delivered again: the frontier stays, and health can name the record."""
    old: PartitionLedger[None] = PartitionLedger(0)
    old.admit(0, None)
    new = PartitionLedger(2, behind=old)
    new.admit(2, None)
    new.complete(2)
    old.stop_at(0, "its handler was cancelled")
    assert (new.frontier, new.stopped_at, new.stopped_because) == (0, 0, "its handler was cancelled")


def test_a_record_that_had_halted_its_partition_is_passed_over_by_a_seek():
    """The user moves the position past it, which ends the halt."""
    old: PartitionLedger[None] = PartitionLedger(0)
    old.admit(0, None)
    old.stop_at(0)
    new = PartitionLedger(1, behind=old)
    assert (new.frontier, new.stopped_at) == (1, None)
