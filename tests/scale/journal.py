"""What a process writes down of its handlers, and how it is read: one file per process, which survives kill -9."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Self

from tests.lines import Appender, Follower


class Writer:
    """Appends to a journal; a kill loses no line but the one that was not written yet."""

    def __init__(self, path: str) -> None:
        self._lines = Appender(path)
        self._pid = os.getpid()
        self._runs = 0

    def start(self, number: int, attempt: int) -> int:
        """Note that an attempt begins; return what to call it."""
        self._runs += 1
        self._write(f"start {self._runs} {number} {attempt}")
        return self._runs

    def end(self, run: int, outcome: str) -> None:
        """Note how an attempt has ended."""
        self._write(f"end {run} {outcome}")

    def revoked(self) -> None:
        """Note that all partitions were taken away."""
        self._write("revoked")

    def _write(self, line: str) -> None:
        self._lines.write(f"{time.monotonic_ns()} {self._pid} {line}")


@dataclasses.dataclass(slots=True, eq=False)
class Run:
    """One attempt of a handler at a record."""

    number: int
    attempt: int
    start_ns: int
    epoch: int = 0
    """How many rebalances the process had seen when it began."""
    end_ns: int | None = None
    outcome: str | None = None


class Life:
    """What one process has done up to now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = []
        self.ended: list[Run] = []
        self.revoked_ns: list[int] = []
        self.killed_ns: int | None = None
        """When it was killed, if it was."""
        self.committed: dict[int, int] = {}
        """For a process that was killed: what was committed by then, per partition."""
        self._by_name: dict[str, Run] = {}
        self._lines = Follower(path)

    @property
    def name(self) -> str:
        """How violations call it."""
        return self.path.stem

    @property
    def in_flight(self) -> int:
        """How many handlers are running."""
        return len(self._by_name)

    def read(self) -> Self:
        """Take in what is new."""
        for line in self._lines.new_lines():
            self.take(line)
        return self

    def take(self, line: str) -> None:
        """Take in one line."""
        at, _pid, event, *rest = line.split(" ", 4)
        match event, rest:
            case "start", [name, numbers]:
                number, attempt = numbers.split()
                run = Run(int(number), int(attempt), int(at), len(self.revoked_ns))
                self.runs.append(run)
                self._by_name[name] = run
            case "end", [name, outcome]:
                run = self._by_name.pop(name)
                run.end_ns, run.outcome = int(at), outcome
                self.ended.append(run)
            case "revoked", []:
                self.revoked_ns.append(int(at))
            case _:
                raise ValueError(line)

    def end_of(self, epoch: int) -> int | None:
        """Return when an epoch was over by a rebalance; None if it was not."""
        return self.revoked_ns[epoch] if epoch < len(self.revoked_ns) else None

    def was_killed_in(self, epoch: int) -> bool:
        """Whether it was killed in this epoch."""
        return self.killed_ns is not None and epoch == len(self.revoked_ns)

    def outlasted(self, run: Run) -> bool:
        """Whether an attempt went on when the rebalance that it began before was over."""
        revoked_ns = self.end_of(run.epoch)
        return revoked_ns is not None and (run.end_ns is None or run.end_ns > revoked_ns)
