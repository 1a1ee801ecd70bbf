"""The decisions of `Partition`, against an oracle that remembers every record (I1, I2, I3, I7, I8, I9)."""

import dataclasses
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.offset_map import MAX_BYTES, OffsetMap
from faststream_concurrent_kafka._partition.redelivery import Earlier
from faststream_concurrent_kafka._partition.state import AGAIN_SEC, LEAST_AGAIN_SEC, Partition


KEY = ("orders", 0)


@dataclasses.dataclass(eq=False)
class Run:
    """A running record: for its own admission, or for that of a later delivery."""

    offset: int
    admission: Admission


class OnePartition(RuleBasedStateMachine):
    """A log, its committed offset, and a consumer that is assigned the partition and loses it again."""

    limit = 0
    # There is a record at each multiple of this offset.
    step = 1

    def __init__(self):
        super().__init__()
        self.partition: Partition[Admission] = Partition()
        self.committed = 0
        self.metadata = ""
        # Whether the answer to the last commit has come.
        self.is_known = False
        self.has_sought = False
        self.position = 0
        self.is_assigned = False
        # Unfinished records of this assignment (also from before a seek), or of an earlier one.
        self.running: list[Run] = []
        self.outlived: list[Run] = []
        # Records that have finished in this process since the last seek.
        self.finished: set[int] = set()
        # Delivered to this process since then; and finished in it at any time.
        self.delivered: set[int] = set()
        self.ever_finished: set[int] = set()
        # Finished before a seek. If a rebalance undoes the seek before the next delivery, they may be run again or not.
        self.sought: set[int] = set()
        self.undone: set[int] = set()

    @precondition(lambda self: not self.is_assigned)
    @rule(by_others=st.integers(0, 3))
    def assign(self, by_others):
        """Assign the partition, possibly after another member has committed an offset."""
        self.committed = self.position = self.committed + by_others
        self.partition.begin(self.committed, is_committed=True)
        if by_others:
            self.metadata = ""
        if self.metadata:
            offset_map = OffsetMap.parse(self.metadata, self.committed)
            self.partition.restore(offset_map)
            # After a seek, nothing may have been committed.
            self.undone |= self.ever_finished.intersection(offset_map.finished_from(0))
        self.is_assigned = self.is_known = True
        self.has_sought = False

    @precondition(lambda self: self.is_assigned)
    @rule()
    def deliver(self):
        """Admit the next record, and run it unless it has finished here or still runs."""
        offset = -(-self.position // self.step) * self.step
        self.position = offset + 1
        if self.has_sought:
            # The partition begins at this offset now, and not at the committed one.
            self.has_sought = self.is_known = False
        self.delivered.add(offset)
        self.sought = set()
        admission = Admission(KEY, offset, identity=offset, timestamp=offset)
        earlier = self.partition.admit(admission)
        outlived = next((run for run in self.outlived if run.offset == offset), None)
        if earlier is not None and (earlier.entry is None or earlier.entry.is_finished):
            assert offset in self.finished | self.undone, "taken for finished"
            self.finished.add(offset)
            admission.is_finished = True
            admission.ledger.complete(offset)
            return
        assert offset not in self.finished, "handled again"
        if earlier is not None:
            assert outlived is not None
            assert outlived.admission is earlier.entry
            self.outlived.remove(outlived)
        else:
            assert outlived is None, "run beside itself"
        self.running.append(Run(offset, admission))

    @rule(number=st.integers(0, 100), is_outlived=st.booleans())
    def finish(self, number, is_outlived):
        """End one of the records that run."""
        runs = self.outlived if is_outlived else self.running
        if runs:
            run = runs.pop(number % len(runs))
            run.admission.is_finished = True
            run.admission.ledger.complete(run.offset)
            self.finished.add(run.offset)
            self.ever_finished.add(run.offset)

    @precondition(lambda self: self.is_assigned)
    @rule(is_answered=st.booleans())
    def commit(self, is_answered):
        """Commit the partition; the answer may get lost."""
        to_commit = self.partition.to_commit(with_metadata=self.limit > 0)
        if to_commit is None:
            return
        sent = self.partition.prepare(metadata_limit=self.limit, with_metadata=self.limit > 0, made_since=inf, now=0.0)
        assert sent is not None
        assert sent.frontier == to_commit
        assert self.limit or sent.value() == to_commit
        if self.is_known:
            assert (sent.frontier, sent.metadata) != (self.committed, self.metadata), "says nothing new"
        self.committed, self.metadata, self.is_known = sent.frontier, sent.metadata, is_answered
        if is_answered:
            sent.ledger.ack(sent.frontier, sent.finished)
            assert self.partition.to_commit(with_metadata=self.limit > 0) is None

    @precondition(lambda self: self.is_assigned)
    @rule()
    def revoke(self):
        """Revoke the partition: running records go on."""
        self.is_told()
        self.partition.end_epoch()
        assert self.partition.to_commit(with_metadata=False) is None
        self.is_assigned = False
        self.undone |= self.sought
        # Records below an offset that another member has committed are not delivered here again.
        self.outlived += self.running
        self.running = []

    def is_told(self):
        """Without metadata no record is listed as finished."""

    @precondition(lambda self: self.is_assigned and not self.running and not self.outlived and self.position)
    @rule(back=st.integers(1, 5))
    def seek_back(self, back):
        """Seek back: all records from there on have to be handled again."""
        self.partition.forget()
        self.has_sought = True
        self.position = max(0, self.position - back)
        self.sought |= {offset for offset in self.finished if offset >= self.position}
        # The next commit passes those below. If it does not come, they may be run again or not.
        self.undone |= self.finished - self.sought
        self.finished.clear()
        self.delivered = {offset for offset in self.delivered if offset < self.position}

    @rule(since=st.floats(0, 10), later_sec=st.floats(0, 10))
    def refuse(self, since, later_sec):
        """Refuse a commit: only the first refusal is new, and its time counts."""
        known = self.partition.refusal
        assert self.partition.refuse("refused", since=since, now=since + later_sec) == (known is None)
        refusal = self.partition.refusal
        assert refusal is not None
        assert refusal.since == (since if known is None else known.since)
        now = since + later_sec
        assert refusal.again_at - now == pytest.approx(min(max(now - refusal.since, LEAST_AGAIN_SEC), AGAIN_SEC))

    @invariant()
    def marks_are_in_order(self):
        """Check that the frontier is the first running record, and the offset to commit."""
        ledger = self.partition.ledger
        assert (ledger is not None) == self.is_assigned
        if ledger is None:
            return
        first = min((run.offset for run in self.running), default=ledger.admitted)
        assert ledger.frontier == first <= ledger.admitted
        assert ledger.acked <= ledger.frontier
        to_commit = self.partition.to_commit(with_metadata=False)
        assert to_commit == (first if first > ledger.acked else None)
        assert ledger.window <= ledger.admitted - ledger.acked


class OneWithMetadata(OnePartition):
    """The same, and each commit tells what has finished above its offset."""

    limit = MAX_BYTES

    @override
    def is_told(self):
        """The next owner learns of all that has finished, if the record at the committed offset is known."""
        self.commit(is_answered=True)
        listed = set(OffsetMap.parse(self.metadata, self.committed).finished_from(0)) if self.metadata else set()
        assert {offset for offset in listed if offset % self.step == 0} <= self.ever_finished
        if self.committed in self.delivered:
            assert {offset for offset in self.finished if offset >= self.committed} <= listed


class OneWithGaps(OneWithMetadata):
    """The same for a compacted topic: there is seldom a record at the committed offset when an epoch begins."""

    step = 3


TestOnePartition = OnePartition.TestCase
TestOnePartition.settings = settings(max_examples=50, stateful_step_count=60, deadline=None)
TestOneWithMetadata = OneWithMetadata.TestCase
TestOneWithMetadata.settings = TestOnePartition.settings
TestOneWithGaps = OneWithGaps.TestCase
TestOneWithGaps.settings = TestOnePartition.settings


def admit(partition: Partition[Admission], offset: int) -> tuple[Admission, object]:
    """Return the admission of a record, and what is known of it."""
    admission = Admission(KEY, offset, identity=offset, timestamp=offset)
    return admission, partition.admit(admission)


def test_a_record_that_runs_since_a_seek_is_known_although_the_sought_position_was_not_committed():
    """The next deliveries begin below that position, at the committed offset: that is no other log."""
    partition: Partition[Admission] = Partition()
    partition.begin(0, is_committed=True)
    for offset in (0, 1):
        admission, _ = admit(partition, offset)
        admission.is_finished = True
        admission.ledger.complete(offset)
    partition.forget()
    running, _ = admit(partition, 1)
    partition.end_epoch()
    partition.begin(0, is_committed=True)
    assert admit(partition, 0)[1] is None
    earlier = admit(partition, 1)[1]
    assert isinstance(earlier, Earlier)
    assert earlier.entry is running


def test_no_commit_is_due_while_no_record_identifies_a_map():
    """Until a record of this epoch is delivered, the committed offset may lie in a gap of the log."""
    partition: Partition[Admission] = Partition()
    partition.begin(0, is_committed=True)
    first, _ = admit(partition, 3)
    second, _ = admit(partition, 5)
    partition.end_epoch()
    second.is_finished = True
    partition.begin(0, is_committed=True)
    assert partition.to_commit(with_metadata=True) is None
    admit(partition, 3)
    sent = partition.prepare(metadata_limit=MAX_BYTES, with_metadata=True, made_since=inf, now=0.0)
    assert sent is not None
    assert partition.to_commit(with_metadata=True) == 3 == sent.frontier
    assert 5 in OffsetMap.parse(sent.metadata, 3)
    assert not first.is_finished
