"""Checks the promises at every moment, by the plan and the events of the members, never by the library's state."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from tests.simulation.plan import Plan, Script
from tests.simulation.promises import numbered


# Without a fault, a commit arrives at the broker this long after it is due.
COMMIT_LATENCY_SEC = 0.9
NEVER = float("inf")


class ViolationError(AssertionError):
    """A promise was broken."""


class Oracle:
    """Knows which records were committed and finished, by any member, and keeps the trace."""

    def __init__(self, plan: Plan, now: Callable[[], float]) -> None:
        self.plan = plan
        self.now = now
        self.trace: list[tuple[Any, ...]] = []
        self.violations: list[str] = []
        self.offsets: dict[int, dict[int, Script]] = defaultdict(dict)
        self.by_key: dict[Any, list[Script]] = defaultdict(list)
        self.scripts = {script.number: script for script in plan.scripts + plan.epilogue}
        self.has_epilogue = False
        for script in self.scripts.values():
            self._place(script)
        # The group's offsets: committed ones, or positions of a reset while nothing is committed.
        self.committed = dict.fromkeys(range(plan.partitions), 0)
        self.has_commit: set[int] = set()
        # Where the group began; records below were never delivered.
        self.began = dict.fromkeys(range(plan.partitions), 0)
        # How far back the user has moved the position: one commit may go back each time.
        self._moved_back: dict[int, list[int]] = defaultdict(list)
        self.finished: set[int] = set()
        # By partition, the committed offset, the finished records that its metadata lists for sure, and those that it
        # may list: what happens in the moment in which a commit is sent comes before or after it.
        self.listed: dict[int, tuple[int, set[int], set[int]]] = {}
        self.passes = 0
        self.begun: set[int] = set()
        self.stopped_from_within = 0

    def _place(self, script: Script) -> None:
        self.offsets[script.partition][script.offset] = script
        if (key := self.order_key(script)) is not None:
            self.by_key[key].append(script)

    def replace(self, scripts: Iterable[Script]) -> None:
        """Note that other records have taken the offsets of lost ones."""
        for script in scripts:
            gone = self.offsets[script.partition][script.offset]
            del self.scripts[gone.number]
            if (key := self.order_key(gone)) is not None:
                self.by_key[key].remove(gone)
            self.scripts[script.number] = script
            self._place(script)
            # The next owner may or may not use the metadata now.
            self.listed.pop(script.partition, None)

    def moves_back(self, partition: int, to: int) -> None:
        """Note a seek back by the user."""
        self._moved_back[partition].append(to)

    def may_go_back(self, partition: int, to: int) -> bool:
        """Return whether a seek back by the user explains a commit of this offset; each seek does once."""
        moves = [move for move in self._moved_back[partition] if move <= to]
        if moves:
            self._moved_back[partition].remove(max(moves))
        return bool(moves)

    def resets(self, partition: int, offset: int) -> None:
        """Note the position of a partition without a committed offset."""
        if partition not in self.has_commit:
            self.note("world", "has reset", partition, offset)
            skipped = [
                number
                for at, script in self.offsets[partition].items()
                if self.began[partition] <= at < offset and (number := script.number) in self.begun
            ]
            if skipped:
                self.violated("world", "nothing is skipped by a reset", partition, "to", offset, "with", skipped)
            self.committed[partition] = self.began[partition] = offset

    def note(self, who: str, what: str, *more: Any) -> None:
        """Add an event to the trace."""
        self.trace.append((self.now(), who, what, *more))

    def violated(self, who: str, promise: str, *more: Any) -> None:
        """Note that a promise was broken; the scheduler stops at the end of this turn."""
        self.note(who, f"VIOLATED {numbered(promise)}", *more)
        self.violations.append(f"{numbered(promise)}: {who} {' '.join(map(str, more))}")

    def order_key(self, script: Script) -> Any:
        """Return the lane of a record, which records that must not overlap share; None if it has no order."""
        ordering = self.plan.settings.ordering
        if ordering == "unordered" or (ordering == "key" and script.key is None):
            return None
        return (script.partition, script.key if ordering == "key" else None)

    def check(self) -> None:
        """Raise if a promise was broken."""
        if self.violations:
            raise ViolationError(self.violations[0])

    def expected(self) -> dict[int, int]:
        """Return the offsets to be committed in the end: everything, or up to the first record that halts."""
        return {
            partition: next(
                (offset for offset, script in sorted(scripts.items()) if self.plan.is_wall(script)),
                # Without the epilogue's records.
                max(scripts) + self.has_epilogue,
            )
            for partition, scripts in self.offsets.items()
        }

    def walls(self) -> set[int]:
        """Return the partitions with a record that halts."""
        return {script.partition for script in self.scripts.values() if self.plan.is_wall(script)}

    def missing(self) -> list[Script]:
        """Return the offsets that are not committed yet, of those to be committed in the end."""
        return [
            script
            for partition, end in self.expected().items()
            for offset, script in sorted(self.offsets[partition].items())
            if self.committed[partition] <= offset < end
        ]

    def check_all_handled(self) -> None:
        """Check at the end that every record was handled."""
        expected = self.expected()
        for script in self.scripts.values():
            place = self.began[script.partition] <= script.offset < expected[script.partition]
            if place and script.number not in self.finished:
                self.violated("world", "handled at least once", script)
