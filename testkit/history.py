"""The history of a group that has ended: load, topic, what each process did, and what was done to it."""

import dataclasses
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from typing_extensions import override

from testkit.journal import CANCELLED, Journal, Run
from testkit.load import Load
from testkit.log import Log


NS = 1_000_000_000
NEVER = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Topic:
    """The contents of the topic: the numbers of each partition, in the order of their offsets."""

    partitions: "Sequence[array[int]]"
    partition_of: "array[int]"
    """The partition of each number; -1 = the number is missing."""
    place_of: "array[int]"
    """The place of each number in its partition: how many records come before it."""

    @classmethod
    def of(cls, partitions: "Sequence[array[int]]", records: int) -> Self:
        """Index the numbers; of one that occurs twice, the first counts."""
        partition_of, place_of = array("h", [-1]) * records, array("I", [0]) * records
        for partition, numbers in enumerate(partitions):
            for place, number in enumerate(numbers):
                if partition_of[number] < 0:
                    partition_of[number], place_of[number] = partition, place
        return cls(partitions, partition_of, place_of)

    @classmethod
    def of_load(cls, load: Load) -> Self:
        """Return the topic in which each record of a load is, in the order of the numbers."""
        partitions = [array("I") for _ in range(load.partitions)]
        for number in range(load.count):
            partitions[load.partition(number)].append(number)
        return cls.of(partitions, load.count)

    @property
    def twice(self) -> int:
        """How many records occur more than once."""
        return sum(map(len, self.partitions)) - sum(partition >= 0 for partition in self.partition_of)


class Delivery:
    """The attempts of one process at a record between two rebalances."""

    __slots__ = ("is_final", "journal", "runs", "worker")

    def __init__(self, load: Load, worker: int, journal: Journal, runs: Sequence[Run]) -> None:
        self.worker = worker
        self.journal = journal
        self.runs = runs
        self.is_final = load.is_final(runs[0].number, runs[-1].attempt, runs[-1].outcome)

    @property
    def number(self) -> int:
        """The record."""
        return self.runs[0].number

    @property
    def epoch(self) -> int:
        """The number of revocations that the process had seen before."""
        return self.runs[0].epoch

    @property
    def start_ns(self) -> int:
        """When its first attempt began."""
        return self.runs[0].start_ns

    @property
    def end_ns(self) -> int | None:
        """When its last attempt ended, if it has."""
        return self.runs[-1].end_ns

    @property
    def is_late(self) -> bool:
        """Whether an attempt went on after the rebalance."""
        return self.journal.outlasted(self.runs[-1])

    @property
    def needs_another(self) -> bool:
        """Whether its last attempt so far has failed and is not the final one, so that it may be handled again."""
        return not self.is_final and self.runs[-1].outcome not in {None, CANCELLED}

    @override
    def __str__(self) -> str:
        attempts = ", ".join(
            f"{run.attempt} {run.start_ns / NS:.3f}-{(run.end_ns or 0) / NS:.3f} {run.outcome or 'not ended'}"
            for run in self.runs
        )
        return f"record {self.number} in {self.journal.name}, epoch {self.epoch} (attempts: {attempts})"


class Letter(NamedTuple):
    """A record in the dead letter topic, with its headers."""

    number: int
    value: bytes | None
    key: bytes | None
    partition: int
    offset: int
    attempts: int
    error: str
    found_in: int
    """The partition of the dead letter topic."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """Everything that the oracle judges by."""

    load: Load
    topic: Topic
    journals: Mapping[int, Journal]
    log: Log
    failed: int = 0
    """How many records the brokers did not acknowledge to the producer."""
    letters: Sequence[Letter] = ()
    tells: bool = False
    """Whether each commit listed, in its metadata, what had finished behind an unfinished record."""
    exact: bool = False
    """Whether no process was frozen, no broker failed, and the log has the committed offsets of each kill."""
