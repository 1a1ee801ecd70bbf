"""On exact histories, the oracle accepts each allowed behaviour and reports each broken promise."""

import json
from pathlib import Path

import pytest

from testkit.causes import Cause
from testkit.history import History, Letter, Topic
from testkit.journal import Journal
from testkit.load import Load
from testkit.log import Log
from testkit.oracle import Claim, Oracle


# The seed decides which records fail how; tests search for a record of the kind that they need.
LOAD = Load(seed=7, count=6_000, keys=40, partitions=2, storms=True)
MS = 1_000_000
KEPT = f"again, {Cause.KEPT}"


class Story:
    """Writes the journals of some processes step by step, with a millisecond between two steps."""

    def __init__(self, load=LOAD):
        self.load = load
        self.topic = Topic.of_load(load)
        self.journals = [Journal(Path("process 1"))]
        self.letters = []
        self.now_ns = 0
        self._log = []
        self._runs = {}

    def _say(self, event, *parts):
        self.now_ns += MS
        self.journals[-1].take(" ".join(map(str, (event, self.now_ns, *parts))))

    def revoke(self):
        """Revoke the partitions of the process."""
        self._say("r")

    def give_up(self):
        """Log that the drain of a rebalance has reached its deadline."""
        self._say("w", "Rebalance: 1 records are still being handled after 3 s")

    def start(self, number, attempt=1):
        """Note the beginning of an attempt."""
        self._say("s", "topic", self.load.partition(number), self.topic.place_of[number], number, attempt)
        self._runs[number, attempt] = len(self.journals[-1].runs) - 1

    def end(self, number, attempt=1, outcome=None):
        """Note the end of an attempt: the outcome of the load, or the given one."""
        self._say("e", self._runs[number, attempt], outcome or self.load.steps(number)[attempt - 1].does)

    def handle(self, *numbers, letters=True):
        """Note all attempts of these records, with the outcomes of the load."""
        for number in numbers:
            for attempt in range(1, len(self.load.steps(number)) + 1):
                self.start(number, attempt)
                self.end(number, attempt)
            if letters and self.load.is_dead(number):
                self.letters.append(self.letter(number))

    def letter(self, number):
        """Return the right dead letter of a record."""
        load, place = self.load, self.topic.place_of[number]
        about = load.value(number), load.key(number), load.partition(number), place
        return Letter(number, *about, load.attempts(number), load.error(number), 0)

    def restart(self):
        """Go on with the next process."""
        self.journals.append(Journal(Path(f"process {len(self.journals) + 1}")))

    def kill(self, committed):
        """Log that the process was killed, and the committed offsets."""
        worker = len(self.journals)
        self._log += [
            f"{self.now_ns} kill {worker} -",
            f"{self.now_ns} committed {worker} {json.dumps(committed, separators=(',', ':'))}",
        ]
        self.restart()

    @property
    def verdict(self):
        return self.verdict_of(tells=False)

    def verdict_of(self, *, tells):
        """Return the findings of the oracle; `tells`: commits had metadata."""
        return Oracle(
            History(
                load=self.load,
                topic=self.topic,
                journals=dict(enumerate(self.journals, 1)),
                log=Log(self._log),
                letters=self.letters,
                tells=tells,
                exact=True,
            )
        ).verdict()

    @property
    def kinds(self):
        """The claims that do not hold."""
        return self.kinds_of(tells=False)

    def kinds_of(self, *, tells):
        return {claim for claim, times in self.verdict_of(tells=tells).violations.items() if times}


def numbers_of(load, partition=None, *, handled_only=False):
    """Return a history in which failures and dead letters are expected."""
    return [
        number
        for number in range(load.count)
        if partition in {None, load.partition(number)}
        and not (handled_only and (load.is_dead(number) or len(load.steps(number)) > 1))
    ]


def short(count=60, ordering="key"):
    """Return a load in calm weather: all is handled at once."""
    load = Load(seed=1, count=count, keys=5, partitions=1, ordering=ordering, storms=True)
    assert len(numbers_of(load, handled_only=True)) == count
    return load


def of_one_key(load):
    """Return the records of the first key that there is."""
    key = next(load.key(number) for number in range(load.count) if load.key(number) is not None)
    return [number for number in range(load.count) if load.key(number) == key]


def test_what_goes_by_the_load_is_accepted():
    """Failures, dead letters and records without a handler call are as in the load: the oracle finds nothing."""
    story = Story()
    story.handle(*range(LOAD.count))
    dead = [number for number in range(LOAD.count) if LOAD.is_dead(number)]
    assert len(story.letters) == len(dead)
    assert any(LOAD.steps(number) for number in dead)
    assert any(not LOAD.steps(number) for number in dead)
    assert not story.kinds


def test_an_inversion_is_caught():
    """Two records of one key are handled in the wrong order."""
    story = Story(short())
    first, second = of_one_key(story.load)[3:5]
    swapped = {first: second, second: first}
    story.handle(*(swapped.get(number, number) for number in range(60)))
    assert {Claim.INVERSIONS, Claim.ORDER} <= story.kinds


def test_records_of_different_keys_may_swap_their_places():
    """With order by key, the oracle accepts any order of records with different keys."""
    story = Story(short())
    numbers = sorted(range(60), key=lambda number: (number != 0, story.load.lane(number), number))
    story.handle(*numbers)
    assert not story.kinds


@pytest.mark.parametrize("ordering", ["key", "partition"])
def test_an_overlap_is_caught(ordering):
    """A record begins while the one before it, of the same key or partition, is still handled."""
    story = Story(short(ordering=ordering))
    first, second = of_one_key(story.load)[3:5] if ordering == "key" else (7, 8)
    story.handle(*range(first))
    story.start(first)
    between = range(first + 1, second)
    story.handle(*between)
    story.start(second)
    story.end(first)
    story.end(second)
    story.handle(*range(second + 1, 60))
    assert {Claim.OVERLAPS, Claim.INVERSIONS, Claim.ORDER} <= story.kinds


def test_a_record_that_overlaps_itself_is_caught_without_a_key_too():
    """A record without a key is handled twice at the same time."""
    story = Story(short(400))
    number = next(number for number in range(400) if story.load.key(number) is None)
    story.handle(*range(number))
    story.start(number)
    first_run = len(story.journals[0].runs) - 1
    story.start(number)
    story.end(number)
    story.journals[0].take(f"e {story.now_ns} {first_run} ok")
    story.handle(*range(number + 1, 400))
    assert story.kinds == {Claim.OVERLAPS, KEPT, Claim.ORDER}


def test_a_lost_record_is_caught():
    """A record is never handled, and later ones are."""
    story = Story(short())
    story.handle(*(number for number in range(60) if number != 20))
    assert Claim.LOST in story.kinds


def test_a_record_that_a_kill_interrupted_and_no_process_handled_again_is_lost():
    """An attempt that a kill has interrupted does not count as handled."""
    story = Story(short())
    story.handle(*range(59))
    story.start(59)
    story.kill({0: 59})
    assert story.kinds == {Claim.LOST}


def test_a_missing_dead_letter_is_caught():
    """All attempts of a record failed, and the dead letter topic does not have it."""
    story = Story()
    story.handle(*range(LOAD.count))
    story.letters.pop()
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_a_dead_letter_too_many_is_caught():
    """A second dead letter needs a second delivery of the record."""
    story = Story()
    story.handle(*range(LOAD.count))
    story.letters.append(story.letters[-1])
    assert story.kinds == {Claim.DEAD_LETTERS}


@pytest.mark.parametrize(
    "wrong",
    [{"value": b"0"}, {"key": b"x"}, {"partition": 9}, {"offset": 10**6}, {"attempts": 4}, {"error": "KeyError"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_dead_letter_is_caught(wrong):
    """A dead letter must have the record's key and value, and headers that name its origin and its error."""
    story = Story()
    story.handle(*range(LOAD.count))
    story.letters[-1] = story.letters[-1]._replace(**wrong)
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_a_dead_letter_of_a_record_that_was_handled_is_caught():
    """A record that was handled must not be in the dead letter topic."""
    story = Story()
    story.handle(*range(LOAD.count))
    story.letters.append(story.letters[-1]._replace(number=numbers_of(LOAD, handled_only=True)[0]))
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_dead_letters_of_one_lane_in_another_order_are_caught():
    """Dead letters of one key, in one partition, must be in the order of the records."""
    load = Load(seed=7, count=6_000, keys=40, partitions=1, ordering="partition", storms=True)
    story = Story(load)
    story.handle(*range(load.count))
    story.letters[0], story.letters[1] = story.letters[1], story.letters[0]
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_an_attempt_after_the_last_and_one_that_is_left_out_are_caught():
    """With three attempts in the load, neither four nor two are accepted."""
    for attempts in ((1, 2), (2,)):
        story = Story(short())
        story.handle(*range(59))
        for attempt in attempts:
            story.start(59, attempt)
            story.end(59, attempt, "ok")
        assert Claim.OUTCOMES in story.kinds


def test_an_outcome_that_is_not_in_the_load_is_caught():
    """The load does not cancel a handler, so a cancelled attempt is reported."""
    story = Story(short())
    story.handle(*range(59))
    story.start(59)
    story.end(59, outcome="cancelled")
    assert story.kinds == {Claim.OUTCOMES, Claim.LOST}


@pytest.mark.parametrize(
    ("begins_at", "kinds"), [(30, set()), (29, {Claim.OFFSETS}), (31, {Claim.OFFSETS, Claim.LOST})]
)
def test_after_a_stop_the_next_begins_where_the_first_has_ended(begins_at, kinds):
    """The next process begins at the committed offset: a record before or behind it is reported."""
    story = Story(short(ordering="partition"))
    story.handle(*range(30))
    story.restart()
    story.handle(*range(begins_at, 60))
    assert story.kinds - {Claim.INVERSIONS} == kinds


def test_what_was_finished_behind_an_undone_record_is_run_again_after_a_stop():
    """The next process handles again, in order, the undone record and the finished ones behind it."""
    load = Load(seed=7, count=6_000, keys=6_000, partitions=1, ordering="key", storms=True)
    undone = next(number for number in range(load.count) if len(load.steps(number)) == 2)
    story = Story(load)
    story.handle(*range(undone))
    story.start(undone)
    story.end(undone)
    behind = range(undone + 1, undone + 10)
    assert all(load.lane(number) != load.lane(undone) for number in behind)
    story.handle(*behind)
    story.restart()
    story.handle(*range(undone, load.count))
    verdict = story.verdict
    assert not verdict.broken()
    assert verdict.again_by == {"process 2": sum(bool(load.steps(number)) for number in behind)}


@pytest.mark.parametrize(
    ("committed", "begins_at", "kinds"), [(25, 25, set()), (25, 20, {Claim.OFFSETS}), (31, 31, None)]
)
def test_after_a_kill_the_next_begins_at_what_was_committed(committed, begins_at, kinds):
    """The next process begins at the committed offset, which must not be past an unfinished record."""
    story = Story(short())
    story.handle(*range(30))
    story.start(30)
    story.kill({0: committed})
    story.handle(*range(begins_at, 60))
    assert story.kinds == kinds if kinds is not None else Claim.OFFSETS in story.kinds


def test_after_a_kill_a_dead_letter_may_be_missing_once_and_come_twice():
    """After a kill a dead letter may be missing (not published yet) or come twice (not committed yet)."""
    load = Load(seed=7, count=6_000, keys=40, partitions=1, ordering="key", storms=True)
    dead = next(number for number in range(load.count) if load.is_dead(number) and load.steps(number))
    for published in (True, False):
        story = Story(load)
        story.handle(*range(dead + 1), letters=False)
        story.letters = [story.letter(number) for number in range(dead + published) if load.is_dead(number)]
        story.kill({0: dead})
        story.handle(*range(dead, load.count))
        assert not story.kinds


def test_a_rebalance_gives_away_what_is_committed_and_an_attempt_that_outlasts_it_may_overlap():
    """The next owner handles the record again while the first process still handles it: this is accepted."""
    story = Story(short())
    first = story.journals[0]
    story.handle(*range(30))
    story.start(30)
    run = len(first.runs) - 1
    story.revoke()
    story.restart()
    story.handle(30)
    first.take(f"e {story.now_ns - MS // 2} {run} ok")
    story.handle(*range(31, 60))
    assert not story.kinds


def test_after_a_rebalance_what_was_finished_is_not_run_again():
    """The first owner has committed the finished record before the revocation, so a second handling is reported."""
    story = Story(short())
    story.handle(*range(30))
    story.revoke()
    story.handle(*range(29, 60))
    assert story.kinds == {Claim.OFFSETS, KEPT}


@pytest.mark.parametrize(
    ("begins_at", "kinds"),
    [(35, set()), (30, {Claim.OFFSETS, KEPT}), (34, {Claim.OFFSETS, KEPT}), (36, {Claim.OFFSETS, Claim.LOST})],
)
def test_what_outlasts_a_rebalance_and_what_has_finished_behind_it_is_adopted(begins_at, kinds):
    """The partition comes back to the same process: it handles neither record again, and leaves out no other."""
    story = Story(short(ordering="partition"))
    story.handle(*range(30))
    story.start(30)
    story.revoke()
    story.journals[0].take(f"e {story.now_ns + MS // 2} {len(story.journals[0].runs) - 1} ok")
    story.handle(*range(31, 35))
    story.revoke()
    story.handle(*range(begins_at, 60))
    assert story.kinds - {Claim.INVERSIONS, Claim.OVERLAPS} == kinds


def test_who_adopts_commits_past_what_was_adopted():
    """The next process begins behind the adopted records."""
    story = Story(short())
    story.handle(*range(30))
    story.start(30)
    story.revoke()
    story.end(30)
    story.handle(*range(31, 50))
    story.restart()
    story.handle(*range(50, 60))
    assert not story.kinds


def test_another_process_adopts_nothing():
    """Another process begins at the first record that had not ended by the drain's deadline."""
    story = Story(short())
    story.handle(*range(30))
    story.start(30)
    story.revoke()
    story.end(30)
    story.restart()
    story.handle(*range(31, 60))
    assert Claim.OFFSETS in story.kinds


@pytest.mark.parametrize(
    ("begins_at", "kinds"), [(35, set()), (31, set()), (36, {Claim.OFFSETS, Claim.LOST}), (29, {Claim.OFFSETS})]
)
def test_who_is_told_begins_behind_what_has_finished(begins_at, kinds):
    """With commit metadata, another process may leave out finished records, and no others."""
    story = Story(short())
    story.handle(*range(31), *range(31, 35))
    story.kill({0: 30})
    story.handle(*range(begins_at, 60))
    assert story.kinds_of(tells=True) - {Claim.INVERSIONS} == kinds
    assert Claim.OFFSETS in story.kinds


@pytest.mark.parametrize(("begins_at", "kinds"), [(30, set()), (31, set()), (29, {Claim.OFFSETS})])
def test_what_has_ended_between_a_drains_deadline_and_the_revocation_may_be_committed_or_not(begins_at, kinds):
    """A record that ends after the deadline, during the rebalance's commit, may or may not be part of that commit."""
    story = Story(short(ordering="partition"))
    story.handle(*range(30))
    story.start(30)
    story.give_up()
    story.end(30)
    story.revoke()
    story.restart()
    story.handle(*range(begins_at, 60))
    assert story.kinds == kinds
