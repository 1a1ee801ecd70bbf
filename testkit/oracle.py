"""Judges a group of processes by its load, its topic, the journals and the log. Pure.

No record is lost; order holds; no record is handled twice by one process or after a clean stop; each repeat has a cause
that at-least-once allows. An *exact* history (no frozen process, no broker fault, and the committed offsets of each
kill are known) is judged more strictly: each owner of a partition begins where the one before it had to commit, and
each dead letter is accounted for. There, a stop and a rebalance commit everything up to the first record that was left
undone; after kill -9 the broker's offsets count. An attempt that outlasts a rebalance counts as undone, and may overlap
with the next owner's.
"""

import dataclasses
import enum
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from testkit.causes import ALLOWED, Cause, Causes
from testkit.history import NEVER, Delivery, History, Letter
from testkit.journal import CANCELLED, Journal, Run


_MOST_EXAMPLES = 5


class Claim(enum.StrEnum):
    """The promises, by the names of their violations; `again, <cause>`, with a forbidden cause, is another."""

    LOST = "lost"
    MISSING = "acknowledged to the producer, and not in the topic"
    INVERSIONS = "inversions"
    OVERLAPS = "overlaps"
    ORDER = "order within an assignment"
    OUTCOMES = "attempts and outcomes"
    OFFSETS = "offsets"
    DEAD_LETTERS = "dead letters"
    DIED = "processes that ended by themselves"
    STUBBORN = "stops that had to be killed"


@dataclasses.dataclass(slots=True)
class Verdict:
    """The findings of the oracle."""

    violations: Counter[str]
    """Violations, by promise."""
    again: Counter[Cause]
    """How many records were handled again, by cause, also allowed ones."""
    again_by: Counter[str]
    """How many finished records each process handled again."""
    examples: dict[str, list[str]]

    def broken(self) -> list[str]:
        """Name the promises that did not hold."""
        return [f"{what}: {times:,}" for what, times in self.violations.items() if times]

    def story(self) -> str:
        """Describe the violations, with examples, for a failed test."""
        return "\n".join("\n  ".join([each, *self.examples[each.rpartition(":")[0]]]) for each in self.broken())


class Oracle:
    """Judges one history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._load, self._topic, self._log = history.load, history.topic, history.log
        count = len(self._topic.partition_of)
        self.deliveries: dict[int, list[Delivery]] = {}
        """The deliveries of each record that has a handler call, in the order of time."""
        for worker, journal in history.journals.items():
            self._take(worker, journal)
        self._first_ends = array("q", [NEVER]) * count
        for number, deliveries in self.deliveries.items():
            deliveries.sort(key=lambda delivery: delivery.start_ns)
            ends = (each.end_ns for each in deliveries if each.is_final and each.end_ns is not None)
            self._first_ends[number] = min(ends, default=NEVER)
        # A record that its producer has written twice has to be handled twice, in any order.
        self._doubled = self._find_doubled()
        self._lanes: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._seen: dict[int, list[int]] = defaultdict(list)
        for partition, numbers in enumerate(self._topic.partitions):
            for number in numbers:
                if number not in self._doubled and self._load.steps(number):
                    self._seen[partition].append(number)
                    self._lanes[partition, self._load.lane(number)].append(number)
        self._stays: dict[int, list[dict[int, Delivery]]] = {}
        if history.exact:
            self._stays = {partition: self._stays_in(seen) for partition, seen in self._seen.items()}

    def _take(self, worker: int, journal: Journal) -> None:
        runs: dict[tuple[int, int], list[Run]] = {}
        for run in journal.runs:
            one = runs.get((run.epoch, run.number))
            if one is not None and run.attempt <= one[-1].attempt:
                self._deliver(worker, journal, runs.pop((run.epoch, run.number)))
                one = None
            if one is None:
                runs[run.epoch, run.number] = [run]
            else:
                one.append(run)
        for one in runs.values():
            self._deliver(worker, journal, one)

    def _deliver(self, worker: int, journal: Journal, runs: Sequence[Run]) -> None:
        delivery = Delivery(self._load, worker, journal, runs)
        self.deliveries.setdefault(delivery.number, []).append(delivery)

    def _find_doubled(self) -> frozenset[int]:
        if not self._topic.twice:
            return frozenset()
        times = Counter(number for numbers in self._topic.partitions for number in numbers)
        return frozenset(number for number, found in times.items() if found > 1)

    def verdict(self) -> Verdict:
        """Look."""
        again, violations, examples = Counter[Cause](), Counter[str](), defaultdict[str, list[str]](list)
        checks = [self._lost(), self._inversions(), self._overlaps(), self._order(), self._outcomes()]
        if self._history.exact:
            checks += [self._offsets(), self._wrong_letters(), self._unsorted_letters(), self._miscounted_letters()]
        for check in [*checks, self._again(again)]:
            for what, example in check:
                violations[what] += 1
                if len(examples[what]) < _MOST_EXAMPLES:
                    examples[what].append(example)
        there = sum(partition >= 0 for partition in self._topic.partition_of)
        violations[Claim.MISSING] = max(0, len(self._topic.partition_of) - there - self._history.failed)
        violations[Claim.DIED] = len(self._log.died)
        violations[Claim.STUBBORN] = len(self._log.stubborn)
        again_by = Counter(
            later.journal.name
            for deliveries in self.deliveries.values()
            for earlier, later in pairwise(deliveries)
            if earlier.is_final
        )
        return Verdict(violations, again, again_by, dict(examples))

    # -- one record --------------------------------------------------------------------------------------------------

    def _lost(self) -> Iterator[tuple[str, str]]:
        for number, (partition, end_ns) in enumerate(zip(self._topic.partition_of, self._first_ends, strict=True)):
            if partition >= 0 and end_ns == NEVER and self._load.steps(number):
                begun = len(self.deliveries.get(number, ()))
                yield Claim.LOST, f"record {number}, partition {partition}, begun {begun} times"

    def _outcomes(self) -> Iterator[tuple[str, str]]:
        """Check that attempts go from the first to the last, and end as the load says."""
        for number, deliveries in self.deliveries.items():
            steps = self._load.steps(number)
            for delivery in deliveries:
                attempts = [run.attempt for run in delivery.runs]
                if attempts != list(range(1, len(attempts) + 1)) or len(attempts) > len(steps):
                    yield Claim.OUTCOMES, f"{delivery} has {len(steps)} attempts in its load"
                    continue
                for run, step in zip(delivery.runs, steps, strict=False):
                    if run.outcome != step.does and not self._was_cut_off(delivery, run):
                        yield Claim.OUTCOMES, f"{delivery} was to do {step.does!r} at attempt {run.attempt}"

    def _was_cut_off(self, delivery: Delivery, run: Run) -> bool:
        """Whether the last attempt of a delivery was cut off: its process was killed, or its stop timed out."""
        if run is not delivery.runs[-1]:
            return False
        if self._history.exact:
            return run.outcome is None and self._was_killed(delivery)
        return run.outcome is None or (
            run.outcome == CANCELLED and self._log.fates[delivery.worker].term_ns is not None
        )

    def _again(self, again: Counter[Cause]) -> Iterator[tuple[str, str]]:
        """Find the cause of each repeated delivery; an exact history is judged by offsets instead."""
        causes = Causes(self._history, self.deliveries, self._first_ends)
        for number, deliveries in self.deliveries.items():
            if number in self._doubled:
                continue
            for place in range(1, len(deliveries)):
                cause = causes.of(deliveries[:place], deliveries[place])
                if cause is None or (self._history.exact and cause is not Cause.KEPT):
                    continue
                again[cause] += 1
                if cause not in ALLOWED:
                    yield f"again, {cause}", ", then ".join(map(str, deliveries[: place + 1]))

    # -- order -----------------------------------------------------------------------------------------------------

    def _inversions(self) -> Iterator[tuple[str, str]]:
        """Check that no record begins before its predecessor in its lane has ended at least once, in any process."""
        for (_, lane), numbers in self._lanes.items():
            for before, after in pairwise(numbers):
                if after in self.deliveries and self._first_ends[before] > self.deliveries[after][0].start_ns:
                    yield Claim.INVERSIONS, f"record {after} before {before}, {lane}"

    def _overlaps(self) -> Iterator[tuple[str, str]]:
        """Check that no two attempts in a lane overlap in one process, and in an exact history not in two either.

        An attempt that has outlasted a rebalance in another process may overlap.
        """
        for (_, lane), numbers in self._lanes.items():
            runs = [
                (run, delivery)
                for number in numbers
                for delivery in self.deliveries.get(number, ())
                for run in delivery.runs
            ]
            running: list[tuple[Run, Delivery]] = []
            for run, of in sorted(runs, key=lambda each: each[0].start_ns):
                running = [each for each in running if self._end_ns(*each) > run.start_ns]
                for other, its in running:
                    if its.worker == of.worker or (self._history.exact and not its.journal.outlasted(other)):
                        yield Claim.OVERLAPS, f"{lane}: {its}, and {of}"
                running.append((run, of))

    def _end_ns(self, run: Run, of: Delivery) -> int:
        if run.end_ns is not None:
            return run.end_ns
        return self._log.fates[of.worker].kill_ns or NEVER

    def _order(self) -> Iterator[tuple[str, str]]:
        """Check that in one assignment the records of a lane follow one another, and all but the last are finished.

        So repeated records are in order as well.
        """
        for (_, lane), numbers in self._lanes.items():
            follower = dict(pairwise(numbers))
            epochs: dict[tuple[int, int], list[Delivery]] = defaultdict(list)
            for number in numbers:
                for delivery in self.deliveries.get(number, ()):
                    epochs[delivery.worker, delivery.epoch].append(delivery)
            for deliveries in epochs.values():
                deliveries.sort(key=lambda delivery: delivery.start_ns)
                for one, next_ in pairwise(deliveries):
                    if follower.get(one.number) != next_.number:
                        yield Claim.ORDER, f"{lane}: {one}, then {next_}"
                    elif not one.is_final or one.end_ns is None or one.end_ns > next_.start_ns:
                        yield Claim.ORDER, f"{lane}: {one} was left undone, then {next_}"

    # -- offsets of an exact history -------------------------------------------------------------------------------

    def _was_killed(self, delivery: Delivery) -> bool:
        """Whether its process was killed before the next rebalance."""
        killed = self._log.fates[delivery.worker].kill_ns is not None
        return killed and delivery.epoch == len(delivery.journal.revoked_ns)

    def _offsets(self) -> Iterator[tuple[str, str]]:
        """Check that each owner of a partition begins exactly where the one before it had to commit."""
        for partition, seen in self._seen.items():
            place = earliest = 0
            for stay in self._stays[partition]:
                begin = min(stay)
                place = self._past_the_adopted(seen, place, stay[begin])
                expected = seen[place] if place < len(seen) else None
                begun = bisect_left(seen, begin)
                if not (earliest <= begun < place or begin == expected or self._was_told(seen, place, stay[begin])):
                    yield (
                        Claim.OFFSETS,
                        f"partition {partition}: {stay[begin]} is the first of its epoch, and not {expected}",
                    )
                place = self._next_to_read(partition, begun, stay)
                # A record that has ended between the drain's deadline and the revocation may be committed, or not.
                gave_up_ns = _gave_up_ns(stay[begin])
                earliest = place if gave_up_ns is None else self._next_to_read(partition, begun, stay, gave_up_ns)

    def _was_told(self, seen: Sequence[int], place: int, first: Delivery) -> bool:
        """Whether every record that a process left out at its beginning had been finished by then, in any process."""
        left_out = seen[place : bisect_left(seen, first.number)]
        may_skip = self._history.tells and bool(left_out)
        return may_skip and all(self._first_ends[each] < first.start_ns for each in left_out)

    def _past_the_adopted(self, seen: Sequence[int], place: int, first: Delivery) -> int:
        """Skip records that are delivered again to the process that has finished them: they are not run again."""
        while place < len(seen) and seen[place] != first.number and self._adopted(first, seen[place]):
            place += 1
        if place < len(seen) and seen[place] == first.number and (before := self._adopted(first, first.number)):
            # A record that failed for the last time between a rebalance and its delivery is not a dead letter yet.
            place += not (before.is_late and self._load.is_dead(first.number))
        return place

    def _adopted(self, of: Delivery, number: int) -> Delivery | None:
        """Return when the process finished a record in an epoch before that of a delivery."""
        for delivery in self.deliveries.get(number, ()):
            if delivery.worker == of.worker and delivery.epoch < of.epoch and delivery.is_final:
                return delivery
        return None

    def _stays_in(self, numbers: Sequence[int]) -> list[dict[int, Delivery]]:
        """Return the deliveries of each owner of a partition in one epoch, in the order of time."""
        stays: dict[tuple[int, int], dict[int, Delivery]] = defaultdict(dict)
        for number in numbers:
            for delivery in self.deliveries.get(number, ()):
                stays[delivery.worker, delivery.epoch][number] = delivery
        return sorted(stays.values(), key=lambda stay: min(delivery.start_ns for delivery in stay.values()))

    def _next_to_read(self, partition: int, place: int, stay: dict[int, Delivery], end_ns: int | None = None) -> int:
        """Return the place of the next owner's first record, by what had ended by then or in the epoch."""
        seen, first = self._seen[partition], stay[min(stay)]
        if end_ns is None:
            end_ns = first.journal.end_of(first.epoch)
        while place < len(seen) and _ended_by(stay.get(seen[place]) or self._adopted(first, seen[place]), end_ns):
            place += 1
        if self._was_killed(first):
            offset = (self._log.fates[first.worker].committed or {}).get(partition, 0)
            of_partition = self._topic.partitions[partition]
            committed = bisect_left(seen, of_partition[offset]) if offset < len(of_partition) else len(seen)
            # If more was committed, the next owner fails the check: it should have begun at the unfinished one.
            return min(place, committed)
        return place

    # -- dead letters of an exact history --------------------------------------------------------------------------

    def _wrong_letters(self) -> Iterator[tuple[str, str]]:
        load = self._load
        for letter in self._history.letters:
            number = letter.number
            if not load.is_dead(number):
                yield Claim.DEAD_LETTERS, f"record {number} was to be handled, and is in the dead letter topic"
                continue
            expected = Letter(
                number,
                load.value(number),
                load.key(number),
                load.partition(number),
                self._topic.place_of[number],
                load.attempts(number),
                load.error(number),
                letter.found_in,
            )
            if letter != expected:
                yield Claim.DEAD_LETTERS, f"{letter}, should have been {expected}"

    def _unsorted_letters(self) -> Iterator[tuple[str, str]]:
        """Check that the first dead letters of one lane arrive in order; those without a lane have no order."""
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for letter in self._history.letters:
            found[self._load.lane(letter.number), letter.found_in].append(letter.number)
        for (lane, _), numbers in found.items():
            first = list(dict.fromkeys(numbers))
            if first != sorted(first):
                yield Claim.DEAD_LETTERS, f"{lane} in another order: {first}"

    def _miscounted_letters(self) -> Iterator[tuple[str, str]]:
        """Check for one dead letter each time that the record finished, unless the process was killed or too late."""
        copies = Counter(letter.number for letter in self._history.letters)
        for number in filter(self._load.is_dead, range(self._load.count)):
            ends = [each for each in self.deliveries.get(number, ()) if each.is_final]
            if self._load.steps(number):
                least = max(1, sum(not (self._was_killed(each) or each.is_late) for each in ends))
                most = len(ends)
            else:
                least, most = 1, self._most_deliveries(number)
            if not least <= copies[number] <= max(most, 1):
                yield Claim.DEAD_LETTERS, f"{copies[number]} of record {number}, should have been {least} to {most}"

    def _most_deliveries(self, malformed: int) -> int:
        """Return how often a record without a handler call may have been delivered, by the records around it."""
        partition = self._load.partition(malformed)
        seen = self._seen[partition]
        place = bisect_left(seen, malformed)
        around = {malformed, *seen[max(place - 1, 0) : place + 1]}
        return sum(min(stay) <= max(around) and max(stay) >= min(around) for stay in self._stays[partition])


def _ended_by(delivery: Delivery | None, end_ns: int | None) -> bool:
    """Whether a record was finished, at all or by some time."""
    if delivery is None or not delivery.is_final or delivery.end_ns is None:
        return False
    return end_ns is None or delivery.end_ns <= end_ns


def _gave_up_ns(first: Delivery) -> int | None:
    """Return when the drain of the rebalance that ended an epoch reached its deadline, if it did."""
    revoked_ns = first.journal.end_of(first.epoch)
    said = [each.at_ns for each in first.journal.said if "Rebalance: " in each.text and each.at_ns > first.start_ns]
    return next((at_ns for at_ns in said if revoked_ns is not None and at_ns <= revoked_ns), None)
