"""The oracle finds what is planted, says nothing of what is right, and excuses nothing without evidence."""

import time
from array import array

import pytest

from chaos.causes import Cause
from chaos.ledger import Handlings, Writer, path_of, read_life
from tests.chaos.stories import Story


GAVE_UP = "WARNING faststream_concurrent_kafka: Rebalance: 1 records are still being handled after 3 s"
COMMIT_FAILED = "WARNING faststream_concurrent_kafka: Commit failed, chaos[0]@0 is kept and tried again: TimeoutError()"
COMMITS_AGAIN = "WARNING faststream_concurrent_kafka: Commits succeed again: chaos[0]@5"


def again(findings):
    """Return why records were handled again, and how many."""
    return {cause: times for cause, times in findings.again.items() if times}


def test_what_is_right_is_not_complained_of(story):
    """Each record once, in order."""
    story.handle(1, range(10), 2)
    findings = story.findings()
    assert (findings.records, findings.handlings, findings.lives) == (10, 10, 1)
    assert not findings.broken()
    assert not again(findings)


def test_a_process_writes_what_the_oracle_reads(tmp_path):
    """The two ends of a ledger go together; a line that was torn off at the end is left out."""
    path = path_of(tmp_path, 7)
    writer = Writer(str(path))
    before = time.monotonic_ns()
    writer.assigned({3, 1})
    writer.starts(5)
    writer.starts(6)
    writer.ends(5)
    writer.says("two\nlines")
    writer.revoked()
    writer.assigned(())
    writer.leaves()
    with path.open("a") as file:
        file.write("s 9 1")
    handlings = Handlings()
    life = read_life(path, 7, handlings)
    assert list(handlings.numbers) == [5, 6]
    assert before < handlings.starts[0] < handlings.ends[0] < time.monotonic_ns()
    assert handlings.ends[1] == 0
    assert [epoch.partitions for epoch in life.epochs] == [{1, 3}, set()]
    assert life.epochs[0].revoked_ns is not None
    assert life.epochs[1].revoked_ns is None
    assert [said.text for said in life.said] == ["two lines"]
    assert life.left_ns is not None
    assert list(life.handlings) == [0, 1]


def test_a_lost_record_is_found(story):
    """Never begun, or begun and never done."""
    story.handle(1, [0, 1, 2, 4, 5, 6, 7, 8], 2)
    story.begin(1, 9, 3)
    findings = story.findings()
    assert findings.lost == 2
    assert findings.broken() == ["lost: 2"]
    assert findings.examples["lost"] == [
        "record 3, partition 0, begun 0 times",
        "record 9, partition 0, begun 1 times",
    ]


def test_a_record_that_is_not_in_the_topic_is_not_the_workers_loss(story):
    """Unless its producer was told that it had failed, the brokers have lost it."""
    story.numbers = [array("I", range(9))]
    story.handle(1, range(9), 2)
    assert story.findings().broken() == ["acknowledged to the producer, and not in the topic: 1"]
    story.failed = 1
    assert not story.findings().broken()


def test_a_record_that_was_produced_twice_is_to_be_handled_twice(story):
    """That is the producer's doing."""
    story.numbers = [array("I", [0, 1, 1, *range(2, 10)])]
    story.handle(1, [0, 1, 1, *range(2, 10)], 2)
    findings = story.findings()
    assert findings.produced_twice == 1
    assert not findings.broken()


def test_an_inversion_is_found(tmp_path):
    """Begun before the one before it in its key had ended anywhere, in whichever process."""
    story = Story(tmp_path, records=4, keys=2)
    story.assigned(1, 1)
    story.assigned(2, 1)
    story.handle(1, [0, 1], 2)
    story.begin(1, 2, 3)
    story.begin(2, 3, 3.5)
    story.end(2, 3, 3.6)
    story.end(1, 2, 4)
    assert not story.findings().broken()
    story = Story(tmp_path, records=4, keys=1)
    for worker, number, begins in ((1, 0, 2), (1, 1, 3), (2, 3, 3.5), (1, 2, 4)):
        story.handle(worker, [number], begins)
    findings = story.findings()
    assert findings.broken() == ["inversions: 1"]
    assert findings.examples["inversions"] == ["record 3 before 2, key 0"]


def test_what_comes_again_in_order_after_its_key_went_on_is_no_inversion(tmp_path):
    """Only the first complete handling of each counts."""
    story = Story(tmp_path, records=3, keys=1)
    story.assigned(1, 1)
    story.handle(1, [0, 1, 2], 2)
    story.log(3, "kill", 1, "-")
    story.assigned(2, 4)
    story.handle(2, [1, 2], 5)
    assert not story.findings().broken()


def test_an_overlap_in_one_process_is_found(tmp_path):
    """Two records of one key at once; in two processes it may be."""
    story = Story(tmp_path, records=4, keys=2)
    story.assigned(1, 1)
    story.begin(1, 0, 2)
    story.begin(1, 1, 2)
    story.begin(1, 2, 2.5)
    story.end(1, 0, 3)
    story.end(1, 1, 3)
    story.end(1, 2, 3)
    story.handle(1, [3], 4)
    findings = story.findings()
    assert findings.overlaps == 1
    assert findings.inversions == 1
    story = Story(tmp_path, records=2, keys=1)
    for worker in (1, 2):
        story.assigned(worker, worker)
        story.begin(worker, 0, 2 + worker)
        story.end(worker, 0, 6)
    story.handle(2, [1], 7)
    assert story.findings().overlaps == 0


def test_a_record_that_the_same_process_handles_twice_is_a_broken_promise(story):
    """Even where its partition was elsewhere meanwhile."""
    story.handle(1, range(6), 2)
    story.revoked(1, 3)
    story.assigned(1, 4, "-")
    story.revoked(1, 5)
    story.assigned(1, 6)
    story.handle(1, range(5, 10), 7)
    findings = story.findings()
    assert again(findings) == {Cause.KEPT: 1}
    assert findings.broken() == ["again, by the same process: 1"]


def test_what_a_kill_leaves_is_handled_again(story):
    """That is what at-least-once means."""
    story.handle(1, range(6), 2)
    story.log(3, "kill", 1, "-")
    story.assigned(2, 10)
    story.handle(2, range(4, 10), 11)
    findings = story.findings()
    assert again(findings) == {Cause.KILL: 2}
    assert not findings.broken()


def test_a_kill_before_the_assignment_was_written_down_is_a_kill(tmp_path):
    """Records may come before it."""
    story = Story(tmp_path, records=2)
    story.handle(1, [0], 2)
    story.log(3, "kill", 1, "-")
    story.assigned(2, 10)
    story.handle(2, [0, 1], 11)
    assert again(story.findings()) == {Cause.KILL: 1}


def test_what_a_clean_stop_leaves_is_a_broken_promise(story):
    """Everything was to be committed."""
    story.handle(1, range(6), 2)
    story.log(3, "term", 1, "-")
    story.left(1, 4)
    story.assigned(2, 5)
    story.handle(2, range(5, 10), 6)
    findings = story.findings()
    assert again(findings) == {Cause.CLEAN_STOP: 1}
    assert findings.broken() == ["again, clean stop: 1"]


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
    """And a failed commit only with a broker fault."""
    story.handle(1, range(6), 2)
    story.log(3, "term", 1, "-")
    if away:
        story.log(away[0], "down", 0)
        story.log(away[1], "up", 0)
    if said:
        story.says(1, 3.2, COMMIT_FAILED)
        story.says(1, 3.5, said)
    story.left(1, 4)
    story.assigned(2, 5)
    story.handle(2, range(5, 10), 6)
    assert again(story.findings()) == {cause: 1}


def test_a_broker_fault_of_long_ago_excuses_nothing(story):
    """Half a minute later all should be well."""
    story.log(1, "down", 0)
    story.log(2, "up", 0)
    story.handle(1, range(6), 30)
    story.says(1, 30.5, COMMIT_FAILED)
    story.left(1, 31)
    story.assigned(2, 32)
    story.handle(2, range(5, 10), 33)
    assert again(story.findings()) == {Cause.CLEAN_STOP: 1}


def test_what_a_frozen_process_had_is_handled_again(story):
    """It was evicted; and when it wakes it handles some of what is somebody else's by then."""
    story.handle(1, range(6), 2)
    story.log(3, "freeze", 1, "-")
    story.assigned(2, 10)
    story.handle(2, range(4, 8), 11)
    story.log(12, "thaw", 1, "-")
    story.handle(1, [8], 12.1)
    story.handle(2, [8, 9], 12.2)
    story.handle(1, [9], 12.3)
    story.revoked(1, 13)
    findings = story.findings()
    assert again(findings) == {Cause.FROZEN: 4}
    assert not findings.broken()


def test_what_is_assigned_to_a_process_that_leaves_is_not_taken_on_by_it(story):
    """It was evicted in its sleep and told to stop; the partition came back to it when it took nothing any more."""
    story.handle(1, range(6), 2)
    story.log(3, "freeze", 1, "-")
    story.log(4, "term", 1, "-")
    story.log(11, "thaw", 1, "-")
    story.revoked(1, 11.1)
    story.assigned(1, 12)
    story.left(1, 12.1)
    story.assigned(2, 13)
    story.handle(2, range(4, 10), 14)
    assert again(story.findings()) == {Cause.FROZEN: 2}


def test_a_stop_that_a_rebalance_meets_is_still_a_clean_stop(story):
    """Told to stop, revoked, assigned once more, gone: what had finished was to be committed."""
    story.handle(1, range(6), 2)
    story.log(2.5, "term", 1, "-")
    story.revoked(1, 3)
    story.assigned(1, 3.1)
    story.left(1, 3.2)
    story.assigned(2, 4)
    story.handle(2, range(5, 10), 5)
    assert again(story.findings()) == {Cause.CLEAN_STOP: 1}


def test_what_was_unfinished_at_the_drains_deadline_is_handled_again_with_what_is_behind_it(story):
    """Record 4 held the offset; 5 had finished behind it, 3 before it."""
    story.handle(1, range(4), 2)
    story.begin(1, 4, 2.1)
    story.handle(1, [5], 2.2)
    story.says(1, 5.5, GAVE_UP)
    story.revoked(1, 5.6)
    story.end(1, 4, 6)
    story.assigned(2, 5.8)
    story.handle(2, range(4, 10), 7)
    findings = story.findings()
    assert again(findings) == {Cause.REBALANCE: 2}
    assert not findings.broken()


def test_a_drain_that_gave_up_excuses_only_what_was_behind_something_unfinished(story):
    """Record 3 had finished, and all before it."""
    story.handle(1, range(4), 2)
    story.begin(1, 4, 2.1)
    story.says(1, 5.5, GAVE_UP)
    story.revoked(1, 5.6)
    story.end(1, 4, 6)
    story.assigned(2, 5.8)
    story.handle(2, range(3, 10), 7)
    assert again(story.findings()) == {Cause.UNEXPLAINED: 1, Cause.REBALANCE: 1}


def test_a_rebalance_whose_drain_came_to_its_end_excuses_nothing(story):
    """All had finished, so all should have been committed."""
    story.handle(1, range(6), 2)
    story.revoked(1, 3)
    story.assigned(1, 3.1, "-")
    story.assigned(2, 3.1)
    story.handle(2, range(5, 10), 4)
    findings = story.findings()
    assert again(findings) == {Cause.UNEXPLAINED: 1}
    assert findings.broken() == ["again, unexplained: 1"]


def test_what_waited_behind_what_came_again_is_unfinished_too(tmp_path):
    """Worker 2 had record 0, which 1 had handled before, still waiting when it had to let go: 1 was done behind it."""
    story = Story(tmp_path, records=4)
    story.assigned(1, 1)
    story.handle(1, [0], 1.5)
    story.log(2, "kill", 1, "-")
    story.assigned(2, 8)
    story.handle(2, [1], 8.1)
    story.says(2, 12, GAVE_UP)
    story.revoked(2, 12.1)
    story.assigned(3, 12.2)
    story.handle(3, range(4), 13)
    assert again(story.findings()) == {Cause.KILL: 1, Cause.REBALANCE: 1}


def test_processes_that_end_unasked_and_stops_that_do_not_end_are_broken_promises(story):
    """Both by the log of the nemesis."""
    story.handle(1, range(10), 2)
    story.log(4, "died", 1)
    story.log(5, "stubborn", 1)
    assert story.findings().broken() == [
        "processes that ended by themselves: 1",
        "stops that had to be killed: 1",
    ]


def test_pauses_are_told_in_all_and_by_the_fault_that_hit(tmp_path):
    """Partition 0 stands still around the kill of its worker, partition 1 does not."""
    story = Story(tmp_path, records=100, keys=100)
    story.numbers = [array("I", range(0, 100, 2)), array("I", range(1, 100, 2))]
    story.assigned(1, 0.5, "0")
    story.assigned(2, 0.5, "1")
    story.handle(1, range(0, 50, 2), 1, 0.1)
    story.handle(2, range(1, 100, 2), 1, 0.2)
    story.log(3.5, "fault", 0, "kill")
    story.log(3.5, "kill", 1, 0)
    story.log(4, "over", 0)
    story.log(4, "fault", 1, "broker pause")
    story.log(9, "over", 1)
    story.log(4.5, "fault", 2, "stop")
    story.log(5, "skipped", 2)
    story.assigned(3, 9, "0")
    story.handle(3, range(50, 100, 2), 9.5, 0.2)
    findings = story.findings()
    assert findings.faults == {"kill": 1, "broker pause": 1}
    assert {kind: [round(sec, 1) for sec in pauses] for kind, pauses in findings.pauses_sec.items()} == {
        "kill": [6.1],
        "broker pause": [6.1],
    }
    assert 0.1 <= findings.stall_sec <= 0.3
