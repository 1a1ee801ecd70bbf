"""What a worker process writes down of its handlers, outside of Kafka, and how it is read: one file per process.

A line is one write, so that kill -9 loses none. Times are nanoseconds of the machine's monotonic clock.
"""

import time
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.lines import Appender


class Writer:
    """Appends to the ledger of this process."""

    def __init__(self, path: str) -> None:
        self._lines = Appender(path)

    def starts(self, number: int) -> None:
        """Note that a handler begins."""
        self._lines.write(f"s {number} {time.monotonic_ns()}")

    def ends(self, number: int) -> None:
        """Note that it has done its work."""
        self._lines.write(f"e {number} {time.monotonic_ns()}")

    def assigned(self, partitions: Collection[int]) -> None:
        """Note which partitions this process has from now on."""
        self._lines.write(f"a {','.join(map(str, sorted(partitions))) or '-'} {time.monotonic_ns()}")

    def revoked(self) -> None:
        """Note that the library has let go of all of them."""
        self._lines.write(f"r - {time.monotonic_ns()}")

    def says(self, text: str) -> None:
        """Note what was logged."""
        self._lines.write(f"w - {time.monotonic_ns()} {' '.join(text.split())[:300]}")

    def leaves(self) -> None:
        """Note that the application has ended by itself, as it was told to."""
        self._lines.write(f"x - {time.monotonic_ns()}")


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


class Handlings:
    """All handlings of all processes, those of one process in a row, in the order in which they began."""

    def __init__(self) -> None:
        self.numbers = array("I")
        self.lives = array("H")
        self.starts = array("q")
        self.ends = array("q")
        """0 = it never came to its end."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.numbers)


class Life:
    """What one process has done."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.handlings = range(0)
        self.epochs: list[Epoch] = []
        self.said: list[Said] = []
        self.left_ns: int | None = None
        """When its application had ended by itself."""

    def epoch_at(self, at_ns: int, partition: int) -> Epoch | None:
        """Return the epoch in which it had a partition at some time, as far as it knew.

        Records may come before the assignment is called out, so an epoch begins with the revocation before it.
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


def path_of(folder: Path, index: int) -> Path:
    """Return the ledger of a process."""
    return folder / f"worker-{index:04d}.ledger"


def read_life(path: Path, index: int, into: Handlings) -> Life:
    """Read the ledger of a process; a file that is not there is that of one that has done nothing."""
    life = Life(index)
    running: dict[int, int] = {}
    first = len(into)
    for event, what, at_ns, text in _lines(path):
        if event == b"s":
            number = int(what)
            running[number] = len(into.numbers)
            into.numbers.append(number)
            into.lives.append(index)
            into.starts.append(at_ns)
            into.ends.append(0)
        elif event == b"e":
            into.ends[running.pop(int(what))] = at_ns
        elif event == b"a":
            partitions = frozenset() if what == b"-" else frozenset(map(int, what.split(b",")))
            life.epochs.append(Epoch(at_ns, partitions))
        elif event == b"r":
            if life.epochs and life.epochs[-1].revoked_ns is None:
                life.epochs[-1].revoked_ns = at_ns
        elif event == b"w":
            life.said.append(Said(at_ns, text.decode(errors="replace")))
        elif event == b"x":
            life.left_ns = at_ns
        else:
            raise ValueError(f"{path}: {event!r}")
    life.handlings = range(first, len(into))
    return life


def _lines(path: Path) -> Iterator[tuple[bytes, bytes, int, bytes]]:
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                event, what, at_ns, *text = line.rstrip(b"\n").split(b" ", 3)
                yield event, what, int(at_ns), text[0] if text else b""
