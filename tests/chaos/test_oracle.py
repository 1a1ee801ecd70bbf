"""The oracle reports each planted violation and no correct history, and accepts an excuse only with evidence."""

import time
from array import array

import pytest

from testkit.causes import Cause
from testkit.journal import Journal, Place, Writer
from tests.chaos.stories import Story


GAVE_UP = "WARNING faststream_concurrent_kafka: Rebalance: 1 records are still being handled after 3 s"
COMMIT_FAILED = "WARNING faststream_concurrent_kafka: Commit failed, chaos[0]@0 is kept and tried again: TimeoutError()"
COMMITS_AGAIN = "WARNING faststream_concurrent_kafka: Commits succeed again: chaos[0]@5"


def again(verdict):
    """Return how many records were handled again, by cause."""
    return {cause: times for cause, times in verdict.again.items() if times}


def test_what_is_right_is_not_complained_of(story):
    """Each record is handled once, in order: the oracle finds nothing."""
    story.handle(1, range(10), 2)
    findings = story.findings()
    assert (findings.records, findings.handlings, findings.workers) == (10, 10, 1)
    assert not findings.broken()
    assert not again(findings.verdict)


def test_a_process_writes_what_the_oracle_reads(tmp_path):
    """A `Reader` reads what a `Writer` has written, and leaves out an incomplete last line."""
    path = tmp_path / "it.journal"
    writer = Writer(str(path))
    before = time.monotonic_ns()
    writer.assigned({3, 1})
    five = writer.starts(Place("topic", 1, 50), 5)
    six = writer.starts(Place("topic", 3, 60), 6, 2)
    writer.ends(five)
    writer.says("two\nlines")
    writer.notes("as it is")
    writer.revoked()
    writer.assigned(())
    writer.leaves()
    with path.open("a") as file:
        file.write("s 9 1")
    journal = Journal(path).read()
    assert [run.place for run in journal.runs] == [("topic", 1, 50), ("topic", 3, 60)]
    assert [(run.number, run.attempt, run.epoch) for run in journal.runs] == [(5, 1, 0), (6, 2, 0)]
    first, second = journal.runs[five], journal.runs[six]
    assert first.end_ns is not None
    assert before < first.start_ns < first.end_ns < time.monotonic_ns()
    assert (first.outcome, second.end_ns, second.outcome, journal.in_flight) == ("ok", None, None, 1)
    assert [epoch.partitions for epoch in journal.epochs] == [{1, 3}, set()]
    assert [epoch.revoked_ns for epoch in journal.epochs] == [journal.revoked_ns[0], None]
    assert [said.text for said in journal.said] == ["two lines"]
    assert journal.notes == ["as it is"]
    assert journal.left_ns is not None


def test_a_lost_record_is_found(story):
    """A record that never began, or never ended, is lost."""
    story.handle(1, [0, 1, 2, 4, 5, 6, 7, 8], 2)
    story.begin(1, 9, 3)
    verdict = story.verdict()
    assert verdict.violations["lost"] == 2
    assert verdict.broken() == ["lost: 2"]
    assert verdict.examples["lost"] == [
        "record 3, partition 0, begun 0 times",
        "record 9, partition 0, begun 1 times",
    ]


def test_a_record_that_is_not_in_the_topic_is_not_the_workers_loss(story):
    """The brokers have lost it, unless its producer got an error."""
    story.numbers = [array("I", range(9))]
    story.handle(1, range(9), 2)
    assert story.verdict().broken() == ["acknowledged to the producer, and not in the topic: 1"]
    story.failed = 1
    assert not story.verdict().broken()


def test_a_record_that_was_produced_twice_is_to_be_handled_twice(story):
    """The producer wrote the record twice, so handling it twice is right."""
    story.numbers = [array("I", [0, 1, 1, *range(2, 10)])]
    story.handle(1, [0, 1, 1, *range(2, 10)], 2)
    findings = story.findings()
    assert findings.produced_twice == 1
    assert not findings.broken()


def test_an_inversion_is_found():
    """A record begins before its predecessor of the same key has ended in any process."""
    story = Story(records=4, keys=2)
    story.assigned(1, 1, 0)
    story.assigned(2, 1, 0)
    story.handle(1, [0, 1], 2)
    story.begin(1, 2, 3)
    story.begin(2, 3, 3.5)
    story.end(2, 3, 3.6)
    story.end(1, 2, 4)
    assert not story.verdict().broken()
    story = Story(records=4, keys=1)
    for worker, number, begins in ((1, 0, 2), (1, 1, 3), (2, 3, 3.5), (1, 2, 4)):
        story.handle(worker, [number], begins)
    verdict = story.verdict()
    assert verdict.broken() == ["inversions: 1"]
    assert verdict.examples["inversions"] == ["record 3 before 2, key 0"]


def test_what_comes_again_in_order_after_its_key_went_on_is_no_inversion():
    """The first complete handling of each record decides the order; repeats do not count."""
    story = Story(records=3, keys=1)
    story.assigned(1, 1, 0)
    story.handle(1, [0, 1, 2], 2)
    story.log(3, "kill", 1, "-")
    story.assigned(2, 4, 0)
    story.handle(2, [1, 2], 5)
    assert not story.verdict().broken()


def test_an_overlap_in_one_process_is_found():
    """Two records of one key overlap: a violation in one process, allowed in two."""
    story = Story(records=4, keys=2)
    story.assigned(1, 1, 0)
    story.begin(1, 0, 2)
    story.begin(1, 1, 2)
    story.begin(1, 2, 2.5)
    story.end(1, 0, 3)
    story.end(1, 1, 3)
    story.end(1, 2, 3)
    story.handle(1, [3], 4)
    verdict = story.verdict()
    assert verdict.violations["overlaps"] == 1
    assert verdict.violations["inversions"] == 1
    story = Story(records=2, keys=1)
    for worker in (1, 2):
        story.assigned(worker, worker, 0)
        story.begin(worker, 0, 2 + worker)
        story.end(worker, 0, 6)
    story.handle(2, [1], 7)
    assert not story.verdict().violations["overlaps"]


def test_a_record_that_the_same_process_handles_twice_is_a_broken_promise(story):
    """Also if another process owned the partition in between."""
    story.handle(1, range(6), 2)
    story.revoked(1, 3)
    story.assigned(1, 4)
    story.revoked(1, 5)
    story.assigned(1, 6, 0)
    story.handle(1, range(5, 10), 7)
    verdict = story.verdict()
    assert again(verdict) == {Cause.KEPT: 1}
    assert verdict.broken() == ["again, by the same process: 1"]


def test_what_a_kill_leaves_is_handled_again(story):
    """After a kill, unfinished records are handled again: at least once allows it."""
    story.handle(1, range(6), 2)
    story.log(3, "kill", 1, "-")
    story.assigned(2, 10, 0)
    story.handle(2, range(4, 10), 11)
    verdict = story.verdict()
    assert again(verdict) == {Cause.KILL: 2}
    assert not verdict.broken()


def test_a_kill_before_the_assignment_was_written_down_is_a_kill():
    """A process may be killed after its first records and before it has logged the assignment."""
    story = Story(records=2)
    story.handle(1, [0], 2)
    story.log(3, "kill", 1, "-")
    story.assigned(2, 10, 0)
    story.handle(2, [0, 1], 11)
    assert again(story.verdict()) == {Cause.KILL: 1}


def test_what_a_clean_stop_leaves_is_a_broken_promise(story):
    """A clean stop commits everything, so a second handling is reported."""
    story.handle(1, range(6), 2)
    story.log(3, "term", 1, "-")
    story.left(1, 4)
    story.assigned(2, 5, 0)
    story.handle(2, range(5, 10), 6)
    verdict = story.verdict()
    assert again(verdict) == {Cause.CLEAN_STOP: 1}
    assert verdict.broken() == ["again, clean stop: 1"]


@pytest.mark.parametrize(
    ("said", "away", "cause"),
    [
        (COMMIT_FAILED, (2, 5), Cause.BROKER),
        (COMMIT_FAILED, None, Cause.CLEAN_STOP),
        (None, (2, 5), Cause.CLEAN_STOP),
        (COMMITS_AGAIN, (2, 5), Cause.CLEAN_STOP),
    ],
)
def test_a_broker_fault_excuses_only_with_a_commit_that_failed_in_it(story, said, away, cause):
    """A repeat is excused by a failed commit during a broker fault, and by neither of the two alone."""
    story.handle(1, range(6), 2)
    story.log(3, "term", 1, "-")
    if away:
        story.log(away[0], "down", 0)
        story.log(away[1], "up", 0)
    if said:
        story.says(1, 3.2, COMMIT_FAILED)
        story.says(1, 3.5, said)
    story.left(1, 4)
    story.assigned(2, 5, 0)
    story.handle(2, range(5, 10), 6)
    assert again(story.verdict()) == {cause: 1}


def test_a_broker_fault_of_long_ago_excuses_nothing(story):
    """A commit that fails half a minute after the fault has no excuse."""
    story.log(1, "down", 0)
    story.log(2, "up", 0)
    story.handle(1, range(6), 30)
    story.says(1, 30.5, COMMIT_FAILED)
    story.left(1, 31)
    story.assigned(2, 32, 0)
    story.handle(2, range(5, 10), 33)
    assert again(story.verdict()) == {Cause.CLEAN_STOP: 1}


def test_what_a_frozen_process_had_is_handled_again(story):
    """The frozen process was evicted; when it wakes up, it still handles records that another process owns."""
    story.handle(1, range(6), 2)
    story.log(3, "freeze", 1, "-")
    story.assigned(2, 10, 0)
    story.handle(2, range(4, 8), 11)
    story.log(12, "thaw", 1, "-")
    story.handle(1, [8], 12.1)
    story.handle(2, [8, 9], 12.2)
    story.handle(1, [9], 12.3)
    story.revoked(1, 13)
    verdict = story.verdict()
    assert again(verdict) == {Cause.FROZEN: 4}
    assert not verdict.broken()


def test_what_is_assigned_to_a_process_that_leaves_is_not_taken_on_by_it(story):
    """An evicted process that was sent SIGTERM is assigned the partition once more, but fetches nothing any more."""
    story.handle(1, range(6), 2)
    story.log(3, "freeze", 1, "-")
    story.log(4, "term", 1, "-")
    story.log(11, "thaw", 1, "-")
    story.revoked(1, 11.1)
    story.assigned(1, 12, 0)
    story.left(1, 12.1)
    story.assigned(2, 13, 0)
    story.handle(2, range(4, 10), 14)
    assert again(story.verdict()) == {Cause.FROZEN: 2}


def test_a_stop_that_a_rebalance_meets_is_still_a_clean_stop(story):
    """A process is stopped, revoked, assigned again, and leaves: its finished records must be committed."""
    story.handle(1, range(6), 2)
    story.log(2.5, "term", 1, "-")
    story.revoked(1, 3)
    story.assigned(1, 3.1, 0)
    story.left(1, 3.2)
    story.assigned(2, 4, 0)
    story.handle(2, range(5, 10), 5)
    assert again(story.verdict()) == {Cause.CLEAN_STOP: 1}


def test_what_was_unfinished_at_the_drains_deadline_is_handled_again_with_what_is_behind_it(story):
    """Record 4 was unfinished, so 4 and 5 (finished behind it) may be handled again, and 3 may not."""
    story.handle(1, range(4), 2)
    story.begin(1, 4, 2.1)
    story.handle(1, [5], 2.2)
    story.says(1, 5.5, GAVE_UP)
    story.revoked(1, 5.6)
    story.end(1, 4, 6)
    story.assigned(2, 5.8, 0)
    story.handle(2, range(4, 10), 7)
    verdict = story.verdict()
    assert again(verdict) == {Cause.REBALANCE: 2}
    assert not verdict.broken()


def test_a_drain_that_gave_up_excuses_only_what_was_behind_something_unfinished(story):
    """Record 3 and all before it had finished, so record 3 has no excuse."""
    story.handle(1, range(4), 2)
    story.begin(1, 4, 2.1)
    story.says(1, 5.5, GAVE_UP)
    story.revoked(1, 5.6)
    story.end(1, 4, 6)
    story.assigned(2, 5.8, 0)
    story.handle(2, range(3, 10), 7)
    assert again(story.verdict()) == {Cause.UNEXPLAINED: 1, Cause.REBALANCE: 1}


def test_a_rebalance_whose_drain_came_to_its_end_excuses_nothing(story):
    """All records had finished, so all should have been committed."""
    story.handle(1, range(6), 2)
    story.revoked(1, 3)
    story.assigned(1, 3.1)
    story.assigned(2, 3.1, 0)
    story.handle(2, range(5, 10), 4)
    verdict = story.verdict()
    assert again(verdict) == {Cause.UNEXPLAINED: 1}
    assert verdict.broken() == ["again, unexplained: 1"]


def test_what_waited_behind_what_came_again_is_unfinished_too():
    """Worker 2 lost its partition before it had handled record 0 again, so record 1 behind it was not committed."""
    story = Story(records=4)
    story.assigned(1, 1, 0)
    story.handle(1, [0], 1.5)
    story.log(2, "kill", 1, "-")
    story.assigned(2, 8, 0)
    story.handle(2, [1], 8.1)
    story.says(2, 12, GAVE_UP)
    story.revoked(2, 12.1)
    story.assigned(3, 12.2, 0)
    story.handle(3, range(4), 13)
    assert again(story.verdict()) == {Cause.KILL: 1, Cause.REBALANCE: 1}


def test_processes_that_end_unasked_and_stops_that_do_not_end_are_broken_promises(story):
    """The log of the nemesis shows both."""
    story.handle(1, range(10), 2)
    story.log(4, "died", 1)
    story.log(5, "stubborn", 1)
    assert story.verdict().broken() == [
        "processes that ended by themselves: 1",
        "stops that had to be killed: 1",
    ]


def test_pauses_are_told_in_all_and_by_the_fault_that_hit():
    """Partition 0 has a pause around the kill of its worker, partition 1 has none."""
    story = Story(records=100, keys=100)
    story.numbers = [array("I", range(0, 100, 2)), array("I", range(1, 100, 2))]
    story.assigned(1, 0.5, 0)
    story.assigned(2, 0.5, 1)
    story.handle(1, range(0, 50, 2), 1, 0.1)
    story.handle(2, range(1, 100, 2), 1, 0.2)
    story.log(3.5, "fault", 0, "kill")
    story.log(3.5, "kill", 1, 0)
    story.log(4, "over", 0)
    story.log(4, "fault", 1, "broker pause")
    story.log(9, "over", 1)
    story.log(4.5, "fault", 2, "stop")
    story.log(5, "skipped", 2)
    story.assigned(3, 9, 0)
    story.handle(3, range(50, 100, 2), 9.5, 0.2)
    findings = story.findings()
    assert findings.faults == {"kill": 1, "broker pause": 1}
    assert {kind: [round(sec, 1) for sec in pauses] for kind, pauses in findings.pauses_sec.items()} == {
        "kill": [6.1],
        "broker pause": [6.1],
    }
    assert 0.1 <= findings.stall_sec <= 0.3


def test_what_a_commit_tells_to_have_finished_is_not_handled_again():
    """With commit metadata, a drain that timed out excuses unfinished records only, not those finished behind them."""
    for tells, expected in ((False, {Cause.REBALANCE: 2}), (True, {Cause.REBALANCE: 1, Cause.UNEXPLAINED: 1})):
        story = Story(tells=tells)
        story.assigned(1, 1, 0)
        story.handle(1, range(4), 2)
        story.begin(1, 4, 2.1)
        story.handle(1, [5], 2.2)
        story.says(1, 5.5, GAVE_UP)
        story.revoked(1, 5.6)
        story.end(1, 4, 6)
        story.assigned(2, 5.8, 0)
        story.handle(2, range(4, 10), 7)
        assert again(story.verdict()) == expected


def test_a_record_that_is_left_out_within_an_assignment_is_found():
    """A process skips a record between two others of its key, although another process had handled it before."""
    story = Story(records=4, keys=1)
    story.assigned(1, 1, 0)
    story.handle(1, [0], 2)
    story.handle(2, [1], 3)
    story.handle(1, [2, 3], 4)
    assert story.verdict().broken() == ["order within an assignment: 1"]


@pytest.mark.parametrize(("is_told", "broken"), [(True, []), (False, ["attempts and outcomes: 1"])])
def test_only_a_process_that_is_told_to_stop_may_cancel_a_handler(story, is_told, broken):
    """A handler may be cancelled in a process that was sent SIGTERM, at the stop's deadline, and in no other."""
    story.handle(1, range(9), 2)
    story.begin(1, 9, 3)
    if is_told:
        story.log(4, "term", 1, "-")
    story.end(1, 9, 5, "cancelled")
    story.left(1, 6)
    story.assigned(2, 7, 0)
    story.numbers = [array("I", range(9))]
    story.failed = 1
    assert story.verdict().broken() == broken
