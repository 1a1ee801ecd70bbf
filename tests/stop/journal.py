"""A file of lines that a process appends to, whatever becomes of it, and that the test reads meanwhile."""

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Self

from tests.lines import Appender, Follower


class Place(NamedTuple):
    """Where a record is."""

    topic: str
    partition: int
    offset: int


class Writer:
    """Appends to a journal, whatever becomes of the process."""

    def __init__(self, path: str) -> None:
        self._lines = Appender(path)

    def record(self, event: str, place: Place) -> None:
        """Write down what happens to a record: it starts, it ends, it is cancelled."""
        self._write(event, place.topic, place.partition, place.offset)

    def note(self, text: str) -> None:
        """Write down anything else."""
        self._write("note", text)

    def _write(self, event: str, *parts: object) -> None:
        self._lines.write("\t".join(map(str, (event, f"{time.monotonic():.3f}", *parts))))


class Journal:
    """What a process has written down up to now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Counter[Place]] = {"start": Counter(), "end": Counter(), "cancelled": Counter()}
        self.notes: list[str] = []
        self.last_at = 0.0
        self._lines = Follower(path)

    def read(self) -> Self:
        """Take in what is new."""
        for line in self._lines.new_lines():
            self._take(*line.split("\t"))
        return self

    def _take(self, event: str, at: str, *parts: str) -> None:
        if event == "note":
            self.notes.append(parts[0])
        else:
            topic, partition, offset = parts
            self.records[event][Place(topic, int(partition), int(offset))] += 1
            self.last_at = float(at)

    @property
    def started(self) -> Counter[Place]:
        """How often the handling of each record has begun."""
        return self.records["start"]

    @property
    def ended(self) -> Counter[Place]:
        """How often the handling of each record has come to its end."""
        return self.records["end"]

    @property
    def cancelled(self) -> Counter[Place]:
        """How often the handling of each record was cancelled."""
        return self.records["cancelled"]

    @property
    def in_flight(self) -> int:
        """How many records are being handled."""
        return self.started.total() - self.ended.total() - self.cancelled.total()
