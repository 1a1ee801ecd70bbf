"""Says what has become of all records, given the topic, the ledgers and the log of the nemesis. Pure and streaming.

Everything of which there is one per record is in an array, so that a million of them take seconds and some 100 MB.
"""

import dataclasses
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from chaos.causes import ALLOWED, NS, Cause, Causes, Topic
from chaos.ledger import Handlings, Life
from chaos.log import Log


NEVER = 2**63 - 1
_MOST_EXAMPLES = 5
# Pauses are measured in such steps.
_STEP_NS = NS // 100


@dataclasses.dataclass(slots=True)
class Findings:
    """The result."""

    records: int
    seconds: float
    handlings: int
    lives: int
    killed: int
    frozen: int
    """Of those processes."""
    faults: Counter[str]
    troubles: int
    """How often a broker was away."""
    missing: int
    """Records that the producer was told are safe, and that are not in the topic: the brokers' doing."""
    produced_twice: int
    lost: int
    inversions: int
    overlaps: int
    again: Counter[Cause]
    died: int
    stubborn: int
    stall_sec: float
    pauses_sec: dict[str, list[float]]
    """By kind of fault: for how long a partition of those that it hit stood still at most, once per fault."""
    memory_mb: float
    warnings: Counter[str]
    examples: dict[str, list[str]]

    def broken(self) -> list[str]:
        """Name the promises that did not hold."""
        found = {
            "lost": self.lost,
            "inversions": self.inversions,
            "overlaps in one process": self.overlaps,
            "processes that ended by themselves": self.died,
            "stops that had to be killed": self.stubborn,
            "acknowledged to the producer, and not in the topic": self.missing,
        } | {f"again, {cause}": times for cause, times in self.again.items() if cause not in ALLOWED}
        return [f"{what}: {times:,}" for what, times in found.items() if times]


class Oracle:
    """Looks at everything once it is over."""

    def __init__(
        self, topic: Topic, key: Callable[[int], int], handlings: Handlings, lives: Mapping[int, Life], log: Log
    ) -> None:
        self._topic = topic
        self._handlings = handlings
        self._lives = lives
        self._log = log
        self._count = len(topic.partition_of)
        self._keys = array("I", map(key, range(self._count)))
        self._examples: dict[str, list[str]] = defaultdict(list)
        # Of the handling of each record that came to its end first.
        self._first_starts = array("q", [NEVER]) * self._count
        self._first_ends = array("q", [NEVER]) * self._count
        self._times = bytearray(self._count)
        for number, start, end in zip(handlings.numbers, handlings.starts, handlings.ends, strict=True):
            self._times[number] = min(self._times[number] + 1, 255)
            if 0 < end < self._first_ends[number]:
                self._first_starts[number], self._first_ends[number] = start, end

    def findings(self, *, failed: int = 0) -> Findings:
        """Look; `failed` records were never promised to the producer."""
        pauses = Pauses(self._topic, self._handlings)
        there = sum(partition >= 0 for partition in self._topic.partition_of)
        return Findings(
            records=there,
            seconds=pauses.seconds,
            handlings=len(self._handlings),
            lives=len(self._log.started),
            killed=sum(fate.kill_ns is not None for fate in self._log.fates.values()),
            frozen=sum(bool(fate.frozen) for fate in self._log.fates.values()),
            faults=Counter(fault.kind for fault in self._log.faults.values()),
            troubles=len(self._log.troubles),
            missing=max(0, self._count - there - failed),
            produced_twice=self._topic.twice,
            lost=self._lost(),
            inversions=self._inversions(),
            overlaps=sum(map(self._overlaps, self._lives.values())),
            again=Counter(self._again()),
            died=len(self._log.died),
            stubborn=len(self._log.stubborn),
            stall_sec=pauses.longest_sec(),
            pauses_sec=self._pauses_by_kind(pauses),
            memory_mb=max((fate.memory_mb for fate in self._log.fates.values()), default=0.0),
            warnings=Counter(_kind_of(said.text) for life in self._lives.values() for said in life.said),
            examples=dict(self._examples),
        )

    def _note(self, what: str, example: str) -> None:
        if len(self._examples[what]) < _MOST_EXAMPLES:
            self._examples[what].append(example)

    def _lost(self) -> int:
        lost = 0
        for number, (partition, end) in enumerate(zip(self._topic.partition_of, self._first_ends, strict=True)):
            if partition >= 0 and end == NEVER:
                lost += 1
                self._note("lost", f"record {number}, partition {partition}, begun {self._times[number]} times")
        return lost

    def _inversions(self) -> int:
        """Count the records whose first complete handling began before the one before it in its key had an end."""
        inversions = 0
        for numbers in self._topic.partitions:
            last: dict[int, int] = {}
            for number in numbers:
                before = last.get(self._keys[number])
                last[self._keys[number]] = number
                if before is not None and before != number and self._first_starts[number] < self._first_ends[before]:
                    inversions += 1
                    self._note("inversions", f"record {number} before {before}, key {self._keys[number]}")
        return inversions

    def _overlaps(self, life: Life) -> int:
        """Count what a process began while it had another record of the same key in hand."""
        overlaps, busy_until = 0, {}
        handled = self._handlings
        for index in life.handlings:
            key, start, end = self._keys[handled.numbers[index]], handled.starts[index], handled.ends[index] or NEVER
            if start < busy_until.get(key, 0):
                overlaps += 1
                self._note("overlaps", f"record {handled.numbers[index]}, key {key}, worker {life.index}")
            busy_until[key] = max(end, busy_until.get(key, 0))
        return overlaps

    def _again(self) -> Iterator[Cause]:
        """Say for each handling after the first of its record why it was."""
        causes = Causes(self._topic, self._handlings, self._lives, self._log, self._first_ends)
        handled, repeated = self._handlings, defaultdict(list)
        for index, number in enumerate(handled.numbers):
            if self._times[number] > 1:
                repeated[number].append(index)
        # A record that is twice in the topic has to be handled twice.
        doubled = {number for number in repeated if self._is_doubled(number)} if self._topic.twice else set()
        for number, indexes in repeated.items():
            if number in doubled:
                continue
            indexes.sort(key=handled.starts.__getitem__)
            for place in range(1, len(indexes)):
                cause = causes.of(number, indexes[:place], indexes[place])
                if cause not in ALLOWED:
                    self._note(cause, self._story(number, indexes[: place + 1]))
                yield cause

    def _is_doubled(self, number: int) -> bool:
        return sum(each == number for each in self._topic.partitions[self._topic.partition_of[number]]) > 1

    def _story(self, number: int, indexes: list[int]) -> str:
        handled = self._handlings
        times = ", ".join(
            f"worker {handled.lives[each]} {handled.starts[each] / NS:.3f}-{handled.ends[each] / NS:.3f}"
            for each in indexes
        )
        return f"record {number}, partition {self._topic.partition_of[number]}: {times}"

    def _pauses_by_kind(self, pauses: "Pauses") -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        everything = frozenset(range(len(self._topic.partitions)))
        for fault in self._log.faults.values():
            hit = everything
            if fault.hits:
                # Those that its victims had; a deployment takes them one after the other.
                hit = frozenset[int]().union(*(self._partitions_at(fault.begin_ns, each) for each in fault.hits))
            found[fault.kind].append(
                max((pauses.around(partition, fault.begin_ns, fault.end_ns) for partition in hit), default=0.0)
            )
        return dict(found)

    def _partitions_at(self, at_ns: int, index: int) -> frozenset[int]:
        epochs = self._lives[index].epochs if index in self._lives else []
        return next((each.partitions for each in reversed(epochs) if each.assigned_ns <= at_ns), frozenset())


class Pauses:
    """When nothing was begun or finished, in steps of 10 ms: in all, and in each partition."""

    def __init__(self, topic: Topic, handlings: Handlings) -> None:
        ends = max(handlings.ends, default=0)
        self._begin_ns = min(handlings.starts, default=0)
        steps = (max(max(handlings.starts, default=0), ends) - self._begin_ns) // _STEP_NS + 1
        self.seconds = steps * _STEP_NS / NS
        self._all = bytearray(steps)
        self._begun = [bytearray(steps) for _ in topic.partitions]
        for number, start, end in zip(handlings.numbers, handlings.starts, handlings.ends, strict=True):
            step = (start - self._begin_ns) // _STEP_NS
            self._all[step] = 1
            if topic.partition_of[number] >= 0:
                self._begun[topic.partition_of[number]][step] = 1
            if end:
                self._all[(end - self._begin_ns) // _STEP_NS] = 1

    def longest_sec(self) -> float:
        """Return the longest time in which no record was begun or finished in the whole group."""
        active = [step for step, is_active in enumerate(self._all) if is_active]
        return max((later - earlier for earlier, later in pairwise(active)), default=0) * _STEP_NS / NS

    def around(self, partition: int, begin_ns: int, end_ns: int) -> float:
        """Return the longest time between two records of a partition that has a part in the given one."""
        begun = self._begun[partition]
        step = begun.rfind(1, 0, max(0, (begin_ns - self._begin_ns) // _STEP_NS) + 1)
        last = (end_ns - self._begin_ns) // _STEP_NS
        longest = 0
        while 0 <= step <= last and (following := begun.find(1, step + 1)) >= 0:
            longest = max(longest, following - step)
            step = following
        return longest * _STEP_NS / NS


def _kind_of(text: str) -> str:
    """Return what a warning is about: its words up to the first that differs from time to time."""
    words = text.split()
    varying = next((place for place, word in enumerate(words) if any(map(str.isdigit, word)) or "[" in word), 12)
    return " ".join(words[: min(varying, 12)])
