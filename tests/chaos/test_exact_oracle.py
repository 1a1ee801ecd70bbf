"""The oracle, on histories that are exact, accepts what is allowed, and names each thing that is not."""

import json
from pathlib import Path

import pytest

from testkit.causes import Cause
from testkit.history import History, Letter, Topic
from testkit.journal import Journal
from testkit.load import Load
from testkit.log import Log
from testkit.oracle import Claim, Oracle


# In this load, by its seed: what the tests need of each kind is looked up, not assumed.
LOAD = Load(seed=7, count=6_000, keys=40, partitions=2, storms=True)
MS = 1_000_000
KEPT = f"again, {Cause.KEPT}"


class Story:
    """What some processes did, told step by step; a millisecond passes with each."""

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
        """Take the partitions away from the process."""
        self._say("r")

    def give_up(self):
        """Let the drain of a rebalance run out of time."""
        self._say("w", "Rebalance: 1 records are still being handled after 3 s")

    def start(self, number, attempt=1):
        """Begin an attempt."""
        self._say("s", "topic", self.load.partition(number), self.topic.place_of[number], number, attempt)
        self._runs[number, attempt] = len(self.journals[-1].runs) - 1

    def end(self, number, attempt=1, outcome=None):
        """End it as the load says, or otherwise."""
        self._say("e", self._runs[number, attempt], outcome or self.load.steps(number)[attempt - 1].does)

    def handle(self, *numbers, letters=True):
        """Take records to their ends."""
        for number in numbers:
            for attempt in range(1, len(self.load.steps(number)) + 1):
                self.start(number, attempt)
                self.end(number, attempt)
            if letters and self.load.is_dead(number):
                self.letters.append(self.letter(number))

    def letter(self, number):
        """Return the dead letter of a record."""
        load, place = self.load, self.topic.place_of[number]
        about = load.value(number), load.key(number), load.partition(number), place
        return Letter(number, *about, load.attempts(number), load.error(number), 0)

    def restart(self):
        """Let the next process take over."""
        self.journals.append(Journal(Path(f"process {len(self.journals) + 1}")))

    def kill(self, committed):
        """Kill the process, and note what it had committed."""
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
        """Ask the oracle; commits tell what has finished behind an unfinished record, or do not."""
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
    """Return the records of a load."""
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
    """Failures, dead letters and records that no handler sees included."""
    story = Story()
    story.handle(*range(LOAD.count))
    dead = [number for number in range(LOAD.count) if LOAD.is_dead(number)]
    assert len(story.letters) == len(dead)
    assert any(LOAD.steps(number) for number in dead)
    assert any(not LOAD.steps(number) for number in dead)
    assert not story.kinds


def test_an_inversion_is_caught():
    """Two records of one key that swap their places."""
    story = Story(short())
    first, second = of_one_key(story.load)[3:5]
    swapped = {first: second, second: first}
    story.handle(*(swapped.get(number, number) for number in range(60)))
    assert {Claim.INVERSIONS, Claim.ORDER} <= story.kinds


def test_records_of_different_keys_may_swap_their_places():
    """Order is by key."""
    story = Story(short())
    numbers = sorted(range(60), key=lambda number: (number != 0, story.load.lane(number), number))
    story.handle(*numbers)
    assert not story.kinds


@pytest.mark.parametrize("ordering", ["key", "partition"])
def test_an_overlap_is_caught(ordering):
    """A record that begins while the one before it in its key, or in its partition, goes on."""
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
    """Delivered twice at once."""
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
    """Never handled, though what comes after it was."""
    story = Story(short())
    story.handle(*(number for number in range(60) if number != 20))
    assert Claim.LOST in story.kinds


def test_a_record_that_a_kill_interrupted_and_nobody_took_up_is_lost():
    """Begun is not done."""
    story = Story(short())
    story.handle(*range(59))
    story.start(59)
    story.kill({0: 59})
    assert story.kinds == {Claim.LOST}


def test_a_missing_dead_letter_is_caught():
    """Its handler failed to the last, and it is nowhere."""
    story = Story()
    story.handle(*range(LOAD.count))
    story.letters.pop()
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_a_dead_letter_too_many_is_caught():
    """Without a second delivery there is no second letter."""
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
    """It has to be the record, and to say where it comes from and why."""
    story = Story()
    story.handle(*range(LOAD.count))
    story.letters[-1] = story.letters[-1]._replace(**wrong)
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_a_dead_letter_of_a_record_that_was_handled_is_caught():
    """It was not to be there."""
    story = Story()
    story.handle(*range(LOAD.count))
    story.letters.append(story.letters[-1]._replace(number=numbers_of(LOAD, handled_only=True)[0]))
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_dead_letters_of_one_lane_in_another_order_are_caught():
    """Where their order can be seen, they have that of the records."""
    load = Load(seed=7, count=6_000, keys=40, partitions=1, ordering="partition", storms=True)
    story = Story(load)
    story.handle(*range(load.count))
    story.letters[0], story.letters[1] = story.letters[1], story.letters[0]
    assert story.kinds == {Claim.DEAD_LETTERS}


def test_an_attempt_after_the_last_and_one_that_is_left_out_are_caught():
    """Three are three."""
    for attempts in ((1, 2), (2,)):
        story = Story(short())
        story.handle(*range(59))
        for attempt in attempts:
            story.start(59, attempt)
            story.end(59, attempt, "ok")
        assert Claim.OUTCOMES in story.kinds


def test_an_outcome_that_is_not_in_the_load_is_caught():
    """A handler that was cancelled, for instance."""
    story = Story(short())
    story.handle(*range(59))
    story.start(59)
    story.end(59, outcome="cancelled")
    assert story.kinds == {Claim.OUTCOMES, Claim.LOST}


@pytest.mark.parametrize(
    ("begins_at", "kinds"), [(30, set()), (29, {Claim.OFFSETS}), (31, {Claim.OFFSETS, Claim.LOST})]
)
def test_after_a_stop_the_next_begins_where_the_first_has_ended(begins_at, kinds):
    """Neither before nor behind that."""
    story = Story(short(ordering="partition"))
    story.handle(*range(30))
    story.restart()
    story.handle(*range(begins_at, 60))
    assert story.kinds - {Claim.INVERSIONS} == kinds


def test_what_was_finished_behind_an_undone_record_is_run_again_after_a_stop():
    """From the undone one on, and in order."""
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
    """And nothing may be committed that was not finished."""
    story = Story(short())
    story.handle(*range(30))
    story.start(30)
    story.kill({0: committed})
    story.handle(*range(begins_at, 60))
    assert story.kinds == kinds if kinds is not None else Claim.OFFSETS in story.kinds


def test_after_a_kill_a_dead_letter_may_be_missing_once_and_come_twice():
    """It may have been killed before it was published, and before it was committed."""
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
    """The next owner begins it again, while it goes on where it was."""
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
    """It was committed before the partitions went."""
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
    """The partition comes back to the process that has them: neither is run again, and nothing else is left out."""
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
    """The next process begins behind it."""
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
    """It begins at what had not ended in time."""
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
    """With metadata, another process may leave out what had come to its end, and nothing else."""
    story = Story(short())
    story.handle(*range(31), *range(31, 35))
    story.kill({0: 30})
    story.handle(*range(begins_at, 60))
    assert story.kinds_of(tells=True) - {Claim.INVERSIONS} == kinds
    assert Claim.OFFSETS in story.kinds


@pytest.mark.parametrize(("begins_at", "kinds"), [(30, set()), (31, set()), (29, {Claim.OFFSETS})])
def test_what_has_ended_between_a_drains_deadline_and_the_revocation_may_be_committed_or_not(begins_at, kinds):
    """The commit of the rebalance is under way then; what had ended before the deadline is committed."""
    story = Story(short(ordering="partition"))
    story.handle(*range(30))
    story.start(30)
    story.give_up()
    story.end(30)
    story.revoke()
    story.restart()
    story.handle(*range(begins_at, 60))
    assert story.kinds == kinds
