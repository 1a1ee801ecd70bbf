"""Says what was wrong with what some processes did, given the script, their journals and the dead letters.

Every record is handled again where the promises allow it, and nowhere else: its offset was not committed when its
process ended or its partitions were taken away. After a stop and a rebalance all is committed up to the first record
that was left undone; after kill -9 it is what the broker has. An attempt that outlasts a rebalance is undone, and
may overlap with what its next owner does. What comes back to the process that has handled it is not handled again.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from typing_extensions import override

from tests.scale.journal import Life, Run
from tests.scale.script import Script


class Letter(NamedTuple):
    """A record in the dead letter topic, and what its headers say."""

    number: int
    value: bytes | None
    key: bytes | None
    partition: int
    offset: int
    attempts: int
    error: str
    found_in: int
    """The partition of the dead letter topic."""


class Delivery:
    """All that one process did with a record between two rebalances."""

    def __init__(self, script: Script, life: Life, runs: Sequence[Run]) -> None:
        self.life = life
        self.runs = runs
        self.number = runs[0].number
        self.epoch = runs[0].epoch
        last = runs[-1]
        self.is_final = script.is_final(self.number, last.attempt, last.outcome)
        self.is_late = life.outlasted(last)
        self.start_ns = runs[0].start_ns
        self.end_ns = last.end_ns

    @property
    def was_killed(self) -> bool:
        """Whether the process was killed before the next rebalance."""
        return self.life.was_killed_in(self.epoch)

    @override
    def __str__(self) -> str:
        attempts = ", ".join(f"{run.attempt} {run.outcome or 'not ended'}" for run in self.runs)
        return f"record {self.number} in {self.life.name}, epoch {self.epoch} (attempts: {attempts})"


class Oracle:
    """Looks at everything once it is over."""

    def __init__(
        self, script: Script, lives: Sequence[Life], letters: Sequence[Letter], *, tells: bool = False
    ) -> None:
        self._script = script
        # Whether commits tell, in their metadata, what has finished behind an unfinished record.
        self._tells = tells
        self._lives = lives
        self._letters = letters
        self.deliveries: dict[int, list[Delivery]] = {}
        """Of each record that a handler saw, in the order of time."""
        for life in lives:
            self._take(life)
        for deliveries in self.deliveries.values():
            deliveries.sort(key=lambda delivery: delivery.start_ns)
        self._lanes: dict[str, list[int]] = defaultdict(list)
        self._partitions: dict[int, list[int]] = defaultdict(list)
        self._seen: dict[int, list[int]] = defaultdict(list)
        for number in range(script.count):
            partition = script.partition(number)
            self._partitions[partition].append(number)
            if script.steps(number):
                self._seen[partition].append(number)
                self._lanes[script.lane(number)].append(number)
        self._stays = {partition: self._stays_in(seen) for partition, seen in self._seen.items()}

    def _take(self, life: Life) -> None:
        runs: dict[tuple[int, int], list[Run]] = defaultdict(list)
        for run in life.runs:
            runs[run.epoch, run.number].append(run)
        for (_, number), of_one in runs.items():
            self.deliveries.setdefault(number, []).append(Delivery(self._script, life, of_one))

    @property
    def again(self) -> Counter[str]:
        """How many records each process handled that had come to their end before."""
        return Counter(
            later.life.name
            for deliveries in self.deliveries.values()
            for earlier, later in pairwise(deliveries)
            if earlier.is_final
        )

    def violations(self) -> Iterator[str]:
        """Say what was wrong; nothing if all was right."""
        for check in (self._unscripted, self._lost, self._overlaps, self._inversions, self._skips, self._offsets):
            yield from check()
        yield from self._wrong_letters()
        yield from self._unsorted_letters()
        yield from self._miscounted_letters()

    # -- what one record goes through ------------------------------------------------------------------------------

    def _unscripted(self) -> Iterator[str]:
        for number, deliveries in self.deliveries.items():
            steps = self._script.steps(number)
            for delivery in deliveries:
                attempts = [run.attempt for run in delivery.runs]
                if attempts != list(range(1, len(attempts) + 1)) or len(attempts) > len(steps):
                    yield f"attempts: {delivery} has {len(steps)} in its script"
                    continue
                for run, step in zip(delivery.runs, steps, strict=False):
                    if run.outcome is None and delivery.was_killed and run is delivery.runs[-1]:
                        continue
                    if run.outcome != step.does:
                        yield f"script: {delivery} was to do {step.does!r} at attempt {run.attempt}"

    def _lost(self) -> Iterator[str]:
        for number in range(self._script.count):
            if self._script.steps(number) and not any(each.is_final for each in self.deliveries.get(number, ())):
                yield f"lost: record {number} never came to its end"

    # -- order -----------------------------------------------------------------------------------------------------

    def _overlaps(self) -> Iterator[str]:
        """Nowhere do two attempts in a lane overlap, other than with one that has outlasted a rebalance elsewhere."""
        for lane, numbers in self._lanes.items():
            runs = [
                (run, delivery.life)
                for number in numbers
                for delivery in self.deliveries.get(number, ())
                for run in delivery.runs
            ]
            running: list[tuple[Run, Life]] = []
            for run, life in sorted(runs, key=lambda each: each[0].start_ns):
                running = [each for each in running if _end_ns(*each) > run.start_ns]
                for other, where in running:
                    if where is life or not where.outlasted(other):
                        yield f"overlap in {lane}: {other} in {where.name}, {run} in {life.name}"
                running.append((run, life))

    def _inversions(self) -> Iterator[str]:
        """A record never begins before the one before it in its lane has come to its end at least once."""
        for lane, numbers in self._lanes.items():
            for before, after in pairwise(numbers):
                if after not in self.deliveries:
                    continue
                begun_ns = self.deliveries[after][0].start_ns
                if self._first_end_ns(before) > begun_ns:
                    yield f"inversion in {lane}: {after} began before {before} had come to its end"

    def _first_end_ns(self, number: int) -> float:
        ends = (each.end_ns for each in self.deliveries.get(number, ()) if each.is_final)
        return min((end_ns for end_ns in ends if end_ns is not None), default=float("inf"))

    def _skips(self) -> Iterator[str]:
        """In one epoch a lane goes from record to record, and each but the last comes to its end.

        So records that are handled again are in order as well.
        """
        for lane, numbers in self._lanes.items():
            follower = dict(pairwise(numbers))
            epochs: dict[tuple[str, int], list[Delivery]] = defaultdict(list)
            for number in numbers:
                for delivery in self.deliveries.get(number, ()):
                    epochs[delivery.life.name, delivery.epoch].append(delivery)
            for deliveries in epochs.values():
                deliveries.sort(key=lambda delivery: delivery.start_ns)
                for one, next_ in pairwise(deliveries):
                    if follower.get(one.number) != next_.number:
                        yield f"order in {lane}: {one}, then {next_}"
                    elif not one.is_final or one.end_ns is None or one.end_ns > next_.start_ns:
                        yield f"order in {lane}: {one} was left undone, then {next_}"

    # -- offsets ---------------------------------------------------------------------------------------------------

    def _offsets(self) -> Iterator[str]:
        """Each owner of a partition begins where the one before it had to commit: there, and nowhere else."""
        for partition, seen in self._seen.items():
            place = 0
            for stay in self._stays[partition]:
                begin = min(stay)
                place = self._past_the_adopted(seen, place, stay[begin])
                expected = seen[place] if place < len(seen) else None
                if begin != expected and not self._was_told(seen, place, stay[begin]):
                    yield (
                        f"offsets of partition {partition}: {stay[begin]} is the first of its epoch, "
                        f"it should have been {expected}"
                    )
                place = self._next_to_read(partition, bisect_left(seen, begin), stay)

    def _was_told(self, seen: Sequence[int], place: int, first: Delivery) -> bool:
        """Whether all that a process has left out at its beginning had come to its end by then, somewhere."""
        left_out = seen[place : bisect_left(seen, first.number)]
        return self._tells and bool(left_out) and all(self._first_end_ns(each) < first.start_ns for each in left_out)

    def _past_the_adopted(self, seen: Sequence[int], place: int, first: Delivery) -> int:
        """Go past what is delivered again to the process that has handled it before: it is not run again."""
        while place < len(seen) and seen[place] != first.number and self._adopted(first, seen[place]):
            place += 1
        if place < len(seen) and seen[place] == first.number and (before := self._adopted(first, first.number)):
            # What failed for the last time between a rebalance and its delivery is not a dead letter yet.
            place += not (before.is_late and self._script.is_dead(first.number))
        return place

    def _adopted(self, of: Delivery, number: int) -> Delivery | None:
        """Return when the process, in an epoch before that of a delivery, has come to the end of a record."""
        for delivery in self.deliveries.get(number, ()):
            if delivery.life is of.life and delivery.epoch < of.epoch and delivery.is_final:
                return delivery
        return None

    def _stays_in(self, numbers: Sequence[int]) -> list[dict[int, Delivery]]:
        """Return what each owner of a partition did with its records in one epoch, in the order of time."""
        stays: dict[tuple[str, int], dict[int, Delivery]] = defaultdict(dict)
        for number in numbers:
            for delivery in self.deliveries.get(number, ()):
                stays[delivery.life.name, delivery.epoch][number] = delivery
        return sorted(stays.values(), key=lambda stay: min(delivery.start_ns for delivery in stay.values()))

    def _next_to_read(self, partition: int, place: int, stay: dict[int, Delivery]) -> int:
        """Return the place of the first record for whoever comes next."""
        seen, first = self._seen[partition], stay[min(stay)]
        while place < len(seen) and self._ended_in(stay.get(seen[place]) or self._adopted(first, seen[place]), first):
            place += 1
        if first.was_killed:
            offset = first.life.committed.get(partition, 0)
            of_partition = self._partitions[partition]
            committed = bisect_left(seen, of_partition[offset]) if offset < len(of_partition) else len(seen)
            # If more was committed, the next owner is told that it should have begun at the unfinished one.
            return min(place, committed)
        return place

    @staticmethod
    def _ended_in(delivery: Delivery | None, first: Delivery) -> bool:
        """Whether a record had come to its end by the end of the epoch of `first`."""
        if delivery is None or not delivery.is_final or delivery.end_ns is None:
            return False
        end_ns = first.life.end_of(first.epoch)
        return end_ns is None or delivery.end_ns <= end_ns

    # -- dead letters ----------------------------------------------------------------------------------------------

    def _wrong_letters(self) -> Iterator[str]:
        script = self._script
        for letter in self._letters:
            number = letter.number
            if not script.is_dead(number):
                yield f"dead letter: record {number} was to be handled, and is in the dead letter topic"
                continue
            expected = Letter(
                number,
                script.value(number),
                script.key(number),
                script.partition(number),
                bisect_left(self._partitions[script.partition(number)], number),
                script.attempts(number),
                script.error(number),
                letter.found_in,
            )
            if letter != expected:
                yield f"dead letter: {letter}, should have been {expected}"

    def _unsorted_letters(self) -> Iterator[str]:
        """Those of one lane arrive in order, each for the first time; who has no order does not tell."""
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for letter in self._letters:
            found[self._script.lane(letter.number), letter.found_in].append(letter.number)
        for (lane, _), numbers in found.items():
            first = list(dict.fromkeys(numbers))
            if first != sorted(first):
                yield f"dead letters of {lane} in another order: {first}"

    def _miscounted_letters(self) -> Iterator[str]:
        """One for each time that the record came to its end, but where that process was killed or too late."""
        copies = Counter(letter.number for letter in self._letters)
        for number in filter(self._script.is_dead, range(self._script.count)):
            ends = [each for each in self.deliveries.get(number, ()) if each.is_final]
            if self._script.steps(number):
                least = max(1, sum(not (each.was_killed or each.is_late) for each in ends))
                most = len(ends)
            else:
                least, most = 1, self._most_deliveries(number)
            if not least <= copies[number] <= max(most, 1):
                yield f"dead letters: {copies[number]} of record {number}, should have been {least} to {most}"

    def _most_deliveries(self, malformed: int) -> int:
        """Return how often a record may have been delivered that no handler sees, by those around it."""
        partition = self._script.partition(malformed)
        seen = self._seen[partition]
        place = bisect_left(seen, malformed)
        around = {malformed, *seen[max(place - 1, 0) : place + 1]}
        return sum(min(stay) <= max(around) and max(stay) >= min(around) for stay in self._stays[partition])


def _end_ns(run: Run, life: Life) -> float:
    if run.end_ns is not None:
        return run.end_ns
    return float("inf") if life.killed_ns is None else life.killed_ns


def first_of_each(violations: Iterable[str], most: int = 5) -> str:
    """Return how many there are of each kind, and the first of them, for a failed test."""
    by_kind = groupby(sorted(violations, key=_kind), key=_kind)
    found = {kind: list(each) for kind, each in by_kind}
    return "\n".join(f"{kind}: {len(each)}\n  " + "\n  ".join(each[:most]) for kind, each in found.items())


def _kind(violation: str) -> str:
    return violation.split(" ", 1)[0].rstrip(":")
