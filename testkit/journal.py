"""The journal that a process keeps of its work, outside of Kafka, and how other processes read it.

One file per process, and one write per line, so that kill -9 loses none. Times are nanoseconds of the monotonic clock.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, Self


DONE, CANCELLED = "ok", "cancelled"


class Appender:
    """Appends lines to a file, each by one write, so that a kill of the process loses and tears none."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: str) -> None:
        """Append a line."""
        os.write(self._file, f"{line}\n".encode())


class Follower:
    """Reads a file to which another process appends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new_lines(self) -> list[str]:
        """Return what was appended since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        # A read may come in the middle of a write: keep an incomplete line for the next call.
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        return text.decode().splitlines()


def die_with_the_starter() -> None:
    """End this process when its parent has ended, which has given it a pipe as its stdin."""
    threading.Thread(target=_wait_for_the_end_of_stdin, daemon=True).start()


def _wait_for_the_end_of_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(99)


class Place(NamedTuple):
    """Where a record is."""

    topic: str
    partition: int
    offset: int


class Writer:
    """Appends to the journal of this process."""

    def __init__(self, path: str) -> None:
        self._lines = Appender(path)
        self._runs = 0

    def starts(self, place: Place, number: int = 0, attempt: int = 1) -> int:
        """Note that a handler begins with a record, which may have a number; return the number of the run."""
        self._write("s", *place, number, attempt)
        self._runs += 1
        return self._runs - 1

    def ends(self, run: int, outcome: str = DONE) -> None:
        """Note the outcome of a run."""
        self._write("e", run, outcome)

    def assigned(self, partitions: Collection[int]) -> None:
        """Note the partitions that this process was assigned."""
        self._write("a", *sorted(partitions))

    def revoked(self) -> None:
        """Note that all partitions were revoked."""
        self._write("r")

    def says(self, text: str) -> None:
        """Note a log line."""
        self._write("w", " ".join(text.split())[:300])

    def notes(self, text: str) -> None:
        """Note anything else."""
        self._write("n", text)

    def leaves(self) -> None:
        """Note that the application has ended after it was asked to stop."""
        self._write("x")

    def _write(self, event: str, *parts: object) -> None:
        self._lines.write(" ".join(map(str, (event, time.monotonic_ns(), *parts))))


class Run:
    """One attempt of a handler at a record."""

    __slots__ = ("attempt", "end_ns", "epoch", "number", "offset", "outcome", "partition", "start_ns", "topic")

    def __init__(self, start_ns: int, place: Place, number: int, attempt: int, epoch: int) -> None:
        self.start_ns = start_ns
        self.topic, self.partition, self.offset = place
        self.number = number
        self.attempt = attempt
        self.epoch = epoch
        """The number of revocations that the process had seen when the run began."""
        self.end_ns: int | None = None
        self.outcome: str | None = None

    @property
    def place(self) -> Place:
        """Where the record is."""
        return Place(self.topic, self.partition, self.offset)


class Epoch:
    """From an assignment to its revocation."""

    __slots__ = ("assigned_ns", "partitions", "revoked_ns")

    def __init__(self, assigned_ns: int, partitions: frozenset[int]) -> None:
        self.assigned_ns = assigned_ns
        self.partitions = partitions
        self.revoked_ns: int | None = None


class Said(NamedTuple):
    """A warning that was logged."""

    at_ns: int
    text: str


class Journal:
    """What one process has done up to now."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.runs: list[Run] = []
        self.ended: list[Run] = []
        """In the order of their ends."""
        self.epochs: list[Epoch] = []
        self.revoked_ns: list[int] = []
        self.said: list[Said] = []
        self.notes: list[str] = []
        self.left_ns: int | None = None
        """When its application had ended after a stop."""
        self._lines = Follower(path)

    def read(self) -> Self:
        """Read the new lines."""
        for line in self._lines.new_lines():
            self.take(line)
        return self

    def take(self, line: str) -> None:
        """Read one line."""
        event, at, *rest = line.split(" ", 2)
        at_ns, text = int(at), rest[0] if rest else ""
        match event:
            case "s":
                topic, *numbers = text.split()
                partition, offset, number, attempt = map(int, numbers)
                self.runs.append(Run(at_ns, Place(topic, partition, offset), number, attempt, len(self.revoked_ns)))
            case "e":
                index, _, outcome = text.partition(" ")
                run = self.runs[int(index)]
                run.end_ns, run.outcome = at_ns, outcome
                self.ended.append(run)
            case "a":
                self.epochs.append(Epoch(at_ns, frozenset(map(int, text.split()))))
            case "r":
                self.revoked_ns.append(at_ns)
                if self.epochs and self.epochs[-1].revoked_ns is None:
                    self.epochs[-1].revoked_ns = at_ns
            case "w":
                self.said.append(Said(at_ns, text))
            case "n":
                self.notes.append(text)
            case "x":
                self.left_ns = at_ns
            case _:
                raise ValueError(line)

    @property
    def in_flight(self) -> int:
        """How many handlers are running."""
        return len(self.runs) - len(self.ended)

    @property
    def started(self) -> Counter[Place]:
        """For each record, how often its handling has begun."""
        return Counter(run.place for run in self.runs)

    @property
    def handled(self) -> Counter[Place]:
        """For each record, how often its handling has ended."""
        return Counter(run.place for run in self.ended if run.outcome == DONE)

    @property
    def cancelled(self) -> Counter[Place]:
        """For each record, how often its handling was cancelled."""
        return Counter(run.place for run in self.ended if run.outcome == CANCELLED)

    def end_of(self, epoch: int) -> int | None:
        """Return when a rebalance ended an epoch; None if none did."""
        return self.revoked_ns[epoch] if epoch < len(self.revoked_ns) else None

    def outlasted(self, run: Run) -> bool:
        """Whether an attempt began before a rebalance and ended after it."""
        revoked_ns = self.end_of(run.epoch)
        return revoked_ns is not None and (run.end_ns is None or run.end_ns > revoked_ns)

    def epoch_at(self, at_ns: int, partition: int) -> Epoch | None:
        """Return the epoch in which the process owned a partition at some time, as far as it knew.

        Records may come before the assignment callback, so an epoch begins with the revocation before it.
        """
        after = None
        for epoch in reversed(self.epochs):
            if epoch.revoked_ns is not None and epoch.revoked_ns < at_ns:
                break
            after = epoch
        return after if after is not None and partition in after.partitions else None

    def last_epoch_before(self, at_ns: int, partition: int) -> Epoch | None:
        """Return the last epoch with a partition that began before some time."""
        for epoch in reversed(self.epochs):
            if epoch.assigned_ns < at_ns and partition in epoch.partitions:
                return epoch
        return None
