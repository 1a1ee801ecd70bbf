"""Redelivery after a rebalance: a model of one partition against a broker's log, and single cases by name (I8, I9)."""

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.redelivery import Redeliverable


@dataclasses.dataclass(eq=False)
class Entry:
    """A delivered record, as the ledger keeps it."""

    offset: int
    is_finished: bool = False


@dataclasses.dataclass(eq=False)
class Run:
    """A record that is being handled, and the entry that its end will complete."""

    entry: Entry
    identity: int
    ledger: PartitionLedger[Entry]


class OnePartition(RuleBasedStateMachine):
    """A consumer that owns the partition from time to time; others own it in between, and topics are recreated."""

    def __init__(self):
        super().__init__()
        self.identities = iter(range(10**9))
        self.log = []
        self.committed = 0
        self.position = 0
        self.ledger = None
        self.adoptable = Redeliverable()
        self.running = []
        self.started = set()
        self.finished = set()

    @rule(count=st.integers(1, 5))
    def produce(self, count):
        self.log += [next(self.identities) for _ in range(count)]

    @precondition(lambda self: (self.committed if self.ledger is None else self.position) < len(self.log))
    @rule()
    def deliver(self):
        if self.ledger is None:
            self.position = self.committed
            self.ledger = PartitionLedger(self.position)
        offset, identity = self.position, self.log[self.position]
        entry = Entry(offset)
        self.ledger.admit(offset, entry, identity)
        self.position += 1
        earlier = self.adoptable.claim(offset, identity)
        if earlier is not None and (earlier.entry is None or earlier.entry.is_finished):
            assert identity in self.finished, "swallowed: it has never finished here"
            self.ledger.complete(offset)
            entry.is_finished = True
            return
        run = next((run for run in self.running if earlier is not None and run.entry is earlier.entry), None)
        if run is not None:
            assert run.identity == identity, "another record was taken for it"
            run.entry, run.ledger = entry, self.ledger
            return
        assert identity not in self.started, "run twice in one process"
        self.started.add(identity)
        self.running.append(Run(entry, identity, self.ledger))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data):
        run = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        run.entry.is_finished = True
        run.ledger.complete(run.entry.offset)
        self.finished.add(run.identity)

    @precondition(lambda self: self.ledger is not None)
    @rule(is_heard=st.booleans())
    def commit(self, is_heard):
        assert self.ledger is not None
        frontier = self.ledger.frontier
        self.committed = frontier
        if is_heard:
            self.ledger.ack(frontier)

    @rule()
    def revoke(self):
        if self.ledger is not None:
            self.ledger.closed = True
            self.adoptable.absorb(self.ledger)
            self.ledger = None

    @precondition(lambda self: self.ledger is None and self.committed < len(self.log))
    @rule(count=st.integers(1, 5))
    def another_owner_commits(self, count):
        self.committed = min(self.committed + count, len(self.log))

    @precondition(lambda self: self.ledger is None and self.log)
    @rule()
    def the_topic_is_made_anew(self):
        """The offsets of the new topic begin at 0, and nothing is committed."""
        self.log = [next(self.identities) for _ in range(len(self.log))]
        self.committed = 0

    @invariant()
    def nothing_is_kept_for_ever(self):
        kept = len(self.adoptable)
        assert kept <= len(self.log) + len(self.running)
        if self.ledger is not None:
            assert self.ledger.window <= self.position - self.ledger.acked


TestOnePartition = OnePartition.TestCase
TestOnePartition.settings = settings(max_examples=3 * settings().max_examples, stateful_step_count=60)


def revoked(*offsets, finished=(), acked=None):
    """Return the redeliverable records of an epoch in which these offsets were delivered."""
    ledger = PartitionLedger(offsets[0])
    entries = {offset: Entry(offset) for offset in offsets}
    for offset in offsets:
        ledger.admit(offset, entries[offset], 1000 + offset)
    for offset in finished:
        ledger.complete(offset)
    if acked is not None:
        ledger.ack(acked)
    adoptable = Redeliverable()
    adoptable.absorb(ledger)
    return adoptable, entries


def test_finished_and_running_records_are_told_apart_and_known_once():
    """Each is recognised once: a second delivery, after a seek for example, is a new record."""
    adoptable, entries = revoked(5, 6, finished=[6])
    running, done = adoptable.claim(5, 1005), adoptable.claim(6, 1006)
    assert running is not None
    assert running.entry is entries[5]
    assert done is not None
    assert done.entry is None
    assert adoptable.claim(6, 1006) is None
    assert len(adoptable) == 0


def test_a_position_below_what_was_committed_means_that_everything_is_run():
    """A seek by the user's listener, or an offset reset: all records are to be handled again."""
    adoptable, _ = revoked(5, 6, 7, 8, finished=[5, 6, 8], acked=7)
    assert [adoptable.claim(offset, 1000 + offset) for offset in (3, 4, 5, 6, 7, 8)] == [None] * 6


def test_what_others_have_committed_is_forgotten():
    """Other members have committed the records below the first one of the epoch."""
    adoptable, _ = revoked(5, 6, 7, finished=[6, 7])
    assert adoptable.claim(7, 1007) is not None
    assert len(adoptable) == 0


@pytest.mark.parametrize("identity", [0, 1005, 2006])
def test_another_record_at_the_same_offset_ends_all_memory(identity):
    """The topic was truncated or recreated: none of its records counts as delivered before."""
    adoptable, _ = revoked(5, 6, 7, finished=[5, 6, 7])
    assert adoptable.claim(5, 1005) is not None
    assert adoptable.claim(6, identity) is None
    assert adoptable.claim(7, 1007) is None


def test_two_rebalances_in_a_row_forget_nothing_that_was_not_delivered_between_them():
    """The second epoch delivers only the first of three records; the other two are still recognised in the third."""
    adoptable, entries = revoked(5, 6, 7, finished=[7])
    second = PartitionLedger(5)
    again = Entry(5)
    second.admit(5, again, 1005)
    earlier = adoptable.claim(5, 1005)
    assert earlier is not None
    assert earlier.entry is entries[5]
    adoptable.absorb(second)
    known = [adoptable.claim(offset, 1000 + offset) for offset in (5, 6, 7)]
    assert [each and each.entry for each in known] == [again, entries[6], None]
    assert known[2] is not None
