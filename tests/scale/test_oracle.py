"""The oracle bites: it accepts what is allowed, and names each thing that is not."""

from pathlib import Path

import pytest

from tests.scale.journal import Life
from tests.scale.oracle import Letter, Oracle, first_of_each
from tests.scale.script import Script


# In this script, by its seed: what the tests need of each kind is looked up, not assumed.
SCRIPT = Script(7, count=6_000, keys=40, partitions=2, ordering="key")
MS = 1_000_000


class Story:
    """What some processes did, told line by line; a millisecond passes with each."""

    def __init__(self, script=SCRIPT):
        self.script = script
        self.lives = [Life(Path("first"))]
        self.letters = []
        self.now_ns = 0

    def say(self, line):
        """Let a process write something down."""
        self.now_ns += MS
        self.lives[-1].take(f"{self.now_ns} 1 {line}")

    def start(self, number, attempt=1):
        """Begin an attempt."""
        self.say(f"start {number}/{attempt} {number} {attempt}")

    def end(self, number, attempt=1, outcome=None):
        """End it as scripted, or otherwise."""
        self.say(f"end {number}/{attempt} {outcome or self.script.steps(number)[attempt - 1].does}")

    def handle(self, *numbers, letters=True):
        """Take records to their ends."""
        for number in numbers:
            for attempt in range(1, len(self.script.steps(number)) + 1):
                self.start(number, attempt)
                self.end(number, attempt)
            if letters and self.script.is_dead(number):
                self.letters.append(self.letter(number))

    def letter(self, number):
        """Return the dead letter of a record."""
        script, partition = self.script, self.script.partition(number)
        offset = sum(script.partition(each) == partition for each in range(number))
        return Letter(
            number,
            script.value(number),
            script.key(number),
            partition,
            offset,
            script.attempts(number),
            script.error(number),
            0,
        )

    def restart(self):
        """Let the next process take over."""
        self.lives.append(Life(Path(f"process {len(self.lives) + 1}")))

    def kill(self, committed):
        """Kill the process."""
        self.lives[-1].killed_ns = self.now_ns
        self.lives[-1].committed = committed
        self.restart()

    @property
    def kinds(self):
        """What the oracle says, by the first words."""
        return self.kinds_of(tells=False)

    def kinds_of(self, *, tells):
        """The same, for commits that tell what has finished behind an unfinished record, or do not."""
        oracle = Oracle(self.script, self.lives, self.letters, tells=tells)
        return {each.split(" ")[0].rstrip(":") for each in oracle.violations()}


def numbers_of(script, partition=None, *, handled_only=False):
    """Return the records of a script."""
    return [
        number
        for number in range(script.count)
        if partition in {None, script.partition(number)}
        and not (handled_only and (script.is_dead(number) or len(script.steps(number)) > 1))
    ]


def short(count=60, ordering="key"):
    """Return a script in calm weather: all is handled at once."""
    script = Script(1, count=count, keys=5, partitions=1, ordering=ordering)
    assert len(numbers_of(script, handled_only=True)) == count
    return script


def of_one_key(script):
    """Return the records of the first key that there is."""
    key = next(script.key(number) for number in range(script.count) if script.key(number) is not None)
    return [number for number in range(script.count) if script.key(number) == key]


def test_what_goes_by_the_script_is_accepted():
    """Failures, dead letters and records that no handler sees included."""
    story = Story()
    story.handle(*range(SCRIPT.count))
    dead = [number for number in range(SCRIPT.count) if SCRIPT.is_dead(number)]
    assert len(story.letters) == len(dead)
    assert any(SCRIPT.steps(number) for number in dead)
    assert any(not SCRIPT.steps(number) for number in dead)
    assert not story.kinds


def test_an_inversion_is_caught():
    """Two records of one key that swap their places."""
    story = Story(short())
    first, second = of_one_key(story.script)[3:5]
    swapped = {first: second, second: first}
    story.handle(*(swapped.get(number, number) for number in range(60)))
    assert {"inversion", "order"} <= story.kinds


def test_records_of_different_keys_may_swap_their_places():
    """Order is by key."""
    story = Story(short())
    numbers = sorted(range(60), key=lambda number: (number != 0, story.script.lane(number), number))
    story.handle(*numbers)
    assert not story.kinds


@pytest.mark.parametrize("ordering", ["key", "partition"])
def test_an_overlap_is_caught(ordering):
    """A record that begins while the one before it in its key, or in its partition, goes on."""
    story = Story(short(ordering=ordering))
    first, second = of_one_key(story.script)[3:5] if ordering == "key" else (7, 8)
    story.handle(*range(first))
    story.start(first)
    between = range(first + 1, second)
    story.handle(*between)
    story.start(second)
    story.end(first)
    story.end(second)
    story.handle(*range(second + 1, 60))
    assert {"overlap", "inversion", "order"} <= story.kinds


def test_a_record_that_overlaps_itself_is_caught_without_a_key_too():
    """Delivered twice at once."""
    story = Story(short(400))
    number = next(number for number in range(400) if story.script.key(number) is None)
    story.handle(*range(number))
    story.start(number)
    story.say(f"start again {number} 1")
    story.end(number)
    story.say("end again ok")
    story.handle(*range(number + 1, 400))
    assert story.kinds == {"overlap", "attempts"}


def test_a_lost_record_is_caught():
    """Never handled, though what comes after it was."""
    story = Story(short())
    story.handle(*(number for number in range(60) if number != 20))
    assert "lost" in story.kinds


def test_a_record_that_a_kill_interrupted_and_nobody_took_up_is_lost():
    """Begun is not done."""
    story = Story(short())
    story.handle(*range(59))
    story.start(59)
    story.kill({0: 59})
    assert story.kinds == {"lost"}


def test_a_missing_dead_letter_is_caught():
    """Its handler failed to the last, and it is nowhere."""
    story = Story()
    story.handle(*range(SCRIPT.count))
    story.letters.pop()
    assert story.kinds == {"dead"}


def test_a_dead_letter_too_many_is_caught():
    """Without a second delivery there is no second letter."""
    story = Story()
    story.handle(*range(SCRIPT.count))
    story.letters.append(story.letters[-1])
    assert story.kinds == {"dead"}


@pytest.mark.parametrize(
    "wrong",
    [{"value": b"0"}, {"key": b"x"}, {"partition": 9}, {"offset": 10**6}, {"attempts": 4}, {"error": "KeyError"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_dead_letter_is_caught(wrong):
    """It has to be the record, and to say where it comes from and why."""
    story = Story()
    story.handle(*range(SCRIPT.count))
    story.letters[-1] = story.letters[-1]._replace(**wrong)
    assert story.kinds == {"dead"}


def test_a_dead_letter_of_a_record_that_was_handled_is_caught():
    """It was not to be there."""
    story = Story()
    story.handle(*range(SCRIPT.count))
    story.letters.append(story.letters[-1]._replace(number=numbers_of(SCRIPT, handled_only=True)[0]))
    assert story.kinds == {"dead"}


def test_dead_letters_of_one_lane_in_another_order_are_caught():
    """Where their order can be seen, they have that of the records."""
    script = Script(7, count=6_000, keys=40, partitions=1, ordering="partition")
    story = Story(script)
    story.handle(*range(script.count))
    story.letters[0], story.letters[1] = story.letters[1], story.letters[0]
    assert story.kinds == {"dead"}


def test_an_attempt_after_the_last_and_one_that_is_left_out_are_caught():
    """Three are three."""
    for attempts in ((1, 2), (2,)):
        story = Story(short())
        story.handle(*range(59))
        for attempt in attempts:
            story.start(59, attempt)
            story.end(59, attempt, "ok")
        assert "attempts" in story.kinds


def test_an_outcome_that_is_not_in_the_script_is_caught():
    """A handler that was cancelled, for instance."""
    story = Story(short())
    story.handle(*range(59))
    story.start(59)
    story.end(59, outcome="cancelled")
    assert story.kinds == {"script", "lost"}


@pytest.mark.parametrize(("begins_at", "kinds"), [(30, set()), (29, {"offsets"}), (31, {"offsets", "lost"})])
def test_after_a_stop_the_next_begins_where_the_first_has_ended(begins_at, kinds):
    """Neither before nor behind that."""
    story = Story(short(ordering="partition"))
    story.handle(*range(30))
    story.restart()
    story.handle(*range(begins_at, 60))
    assert story.kinds - {"inversion"} == kinds


def test_what_was_finished_behind_an_undone_record_is_run_again_after_a_stop():
    """From the undone one on, and in order."""
    script = Script(7, count=6_000, keys=6_000, partitions=1, ordering="key")
    undone = next(number for number in range(script.count) if len(script.steps(number)) == 2)
    story = Story(script)
    story.handle(*range(undone))
    story.start(undone)
    story.end(undone)
    behind = range(undone + 1, undone + 10)
    assert all(script.lane(number) != script.lane(undone) for number in behind)
    story.handle(*behind)
    story.restart()
    story.handle(*range(undone, script.count))
    oracle = Oracle(script, story.lives, story.letters)
    assert not first_of_each(oracle.violations())
    assert oracle.again == {"process 2": sum(bool(script.steps(number)) for number in behind)}


@pytest.mark.parametrize(("committed", "begins_at", "kinds"), [(25, 25, set()), (25, 20, {"offsets"}), (31, 31, None)])
def test_after_a_kill_the_next_begins_at_what_was_committed(committed, begins_at, kinds):
    """And nothing may be committed that was not finished."""
    story = Story(short())
    story.handle(*range(30))
    story.start(30)
    story.kill({0: committed})
    story.handle(*range(begins_at, 60))
    assert story.kinds == kinds if kinds is not None else "offsets" in story.kinds


def test_after_a_kill_a_dead_letter_may_be_missing_once_and_come_twice():
    """It may have been killed before it was published, and before it was committed."""
    script = Script(7, count=6_000, keys=40, partitions=1, ordering="key")
    dead = next(number for number in range(script.count) if script.is_dead(number) and script.steps(number))
    for published in (True, False):
        story = Story(script)
        story.handle(*range(dead + 1), letters=False)
        story.letters = [story.letter(number) for number in range(dead + published) if script.is_dead(number)]
        story.kill({0: dead})
        story.handle(*range(dead, script.count))
        assert not story.kinds


def test_a_rebalance_gives_away_what_is_committed_and_an_attempt_that_outlasts_it_may_overlap():
    """The next owner begins it again, while it goes on where it was."""
    story = Story(short())
    first = story.lives[0]
    story.handle(*range(30))
    story.start(30)
    story.say("revoked")
    story.restart()
    story.handle(30)
    first.take(f"{story.now_ns - MS // 2} 1 end 30/1 ok")
    story.handle(*range(31, 60))
    assert not story.kinds


def test_after_a_rebalance_what_was_finished_is_not_run_again():
    """It was committed before the partitions went."""
    story = Story(short())
    story.handle(*range(30))
    story.say("revoked")
    story.handle(*range(29, 60))
    assert story.kinds == {"offsets"}


@pytest.mark.parametrize(
    ("begins_at", "kinds"), [(35, set()), (30, {"offsets"}), (34, {"offsets"}), (36, {"offsets", "lost"})]
)
def test_what_outlasts_a_rebalance_and_what_has_finished_behind_it_is_adopted(begins_at, kinds):
    """The partition comes back to the process that has them: neither is run again, and nothing else is left out."""
    story = Story(short(ordering="partition"))
    story.handle(*range(30))
    story.start(30)
    story.say("revoked")
    story.lives[0].take(f"{story.now_ns + MS // 2} 1 end 30/1 ok")
    story.handle(*range(31, 35))
    story.say("revoked")
    story.handle(*range(begins_at, 60))
    assert story.kinds - {"inversion", "overlap"} == kinds


def test_who_adopts_commits_past_what_was_adopted():
    """The next process begins behind it."""
    story = Story(short())
    story.handle(*range(30))
    story.start(30)
    story.say("revoked")
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
    story.say("revoked")
    story.end(30)
    story.restart()
    story.handle(*range(31, 60))
    assert "offsets" in story.kinds


@pytest.mark.parametrize(
    ("begins_at", "kinds"), [(35, set()), (31, set()), (36, {"offsets", "lost"}), (29, {"offsets"})]
)
def test_who_is_told_begins_behind_what_has_finished(begins_at, kinds):
    """With metadata, another process may leave out what had come to its end, and nothing else."""
    story = Story(short())
    story.handle(*range(31), *range(31, 35))
    story.lives[0].killed_ns = story.now_ns
    story.lives[0].committed = {0: 30}
    story.restart()
    story.handle(*range(begins_at, 60))
    assert story.kinds_of(tells=True) - {"inversion"} == kinds
    assert "offsets" in story.kinds
