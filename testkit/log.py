"""The log of what was done to processes and brokers, written by the program that does it; and how it is read."""

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from testkit.journal import Appender


class LogWriter:
    """Appends to the log, each line before the event happens."""

    def __init__(self, path: Path) -> None:
        self._lines = Appender(str(path))

    def write(self, word: str, *what: object) -> None:
        """Append `<nanoseconds> <word> <what> ...`."""
        self._lines.write(" ".join(map(str, (time.monotonic_ns(), word, *what))))


@dataclasses.dataclass(slots=True)
class FaultRun:
    """A fault, carried out."""

    kind: str
    begin_ns: int
    end_ns: int
    hits: list[int] = dataclasses.field(default_factory=list)
    """The worker processes that it hit."""


@dataclasses.dataclass(slots=True)
class Fate:
    """What was done to one process."""

    term_ns: int | None = None
    kill_ns: int | None = None
    frozen: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """From when to when it was frozen; if it was killed meanwhile, the end is the largest number."""
    committed: dict[int, int] | None = None
    """The committed offset of each partition when it was killed, if that was recorded."""
    memory_mb: float = 0.0

    def was_frozen_between(self, begin_ns: int, end_ns: int) -> bool:
        """Whether it was frozen for a part of the given time."""
        return any(freeze < end_ns and thaw > begin_ns for freeze, thaw in self.frozen)


_NEVER = 2**63 - 1


class Log:
    """The whole log."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.faults: dict[int, FaultRun] = {}
        self.fates: dict[int, Fate] = defaultdict(Fate)
        self.started: list[int] = []
        self.died: list[int] = []
        """Processes that ended without a signal."""
        self.stubborn: list[int] = []
        """Processes that had to be killed because they did not stop."""
        self.skipped = 0
        self._down: dict[int, int] = {}
        self.troubles: list[tuple[int, int]] = []
        """When brokers were down or silent: begin and end of each time."""
        for line in lines:
            at, word, *what = line.split()
            self._take(int(at), word, what)

    def _take(self, at_ns: int, word: str, what: list[str]) -> None:
        index = int(what[0])
        match word:
            case "fault":
                self.faults[index] = FaultRun(" ".join(what[1:]), at_ns, at_ns)
            case "over":
                self.faults[index].end_ns = at_ns
            case "skipped":
                self.skipped += 1
                del self.faults[index]
            case "start" | "died" | "stubborn":
                {"start": self.started, "died": self.died, "stubborn": self.stubborn}[word].append(index)
            case "down":
                self._down[index] = at_ns
            case "up":
                self.troubles.append((self._down.pop(index), at_ns))
            case "committed":
                read = json.loads(what[1])
                self.fates[index].committed = {int(partition): offset for partition, offset in read.items()}
            case "memory":
                self.fates[index].memory_mb = float(what[1])
            case _:
                self._take_blow(at_ns, word, index, what[1])

    def _take_blow(self, at_ns: int, word: str, index: int, fault: str) -> None:
        fate = self.fates[index]
        if fault != "-" and word != "thaw":
            self.faults[int(fault)].hits.append(index)
        match word:
            case "term":
                fate.term_ns = at_ns
            case "kill":
                fate.kill_ns = at_ns
            case "freeze":
                fate.frozen.append((at_ns, _NEVER))
            case "thaw":
                fate.frozen[-1] = (fate.frozen[-1][0], at_ns)
            case _:
                raise ValueError(word)

    def has_trouble_between(self, begin_ns: int, end_ns: int, tail_ns: int) -> bool:
        """Whether a broker was down or silent for a part of the given time, or less than `tail_ns` before it."""
        return any(down < end_ns and up + tail_ns > begin_ns for down, up in self.troubles)
