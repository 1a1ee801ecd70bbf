"""What must hold at every moment, known from the plan and from what was seen of the members, never from the library."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.simulation.plan import Plan, Script


# A commit that nothing is in the way of is with the broker so long after it is due.
COMMIT_LATENCY_SEC = 0.9
NEVER = float("inf")


class ViolationError(AssertionError):
    """A promise was broken."""


class Oracle:
    """Knows what was committed and what was finished, by whomever, and keeps the trace."""

    def __init__(self, plan: Plan, now: Callable[[], float]) -> None:
        self.plan = plan
        self.now = now
        self.trace: list[tuple[Any, ...]] = []
        self.violations: list[str] = []
        self.offsets: dict[int, dict[int, Script]] = defaultdict(dict)
        self.lanes: dict[Any, list[Script]] = defaultdict(list)
        self.scripts = plan.scripts + plan.epilogue
        self.has_epilogue = False
        for script in self.scripts:
            self.offsets[script.partition][script.offset] = script
            if (lane := self.lane(script)) is not None:
                self.lanes[lane].append(script)
        self.committed = dict.fromkeys(range(plan.partitions), 0)
        self.finished: set[int] = set()
        # By partition, the committed offset and what its metadata tells to have finished above it.
        self.told: dict[int, tuple[int, set[int]]] = {}
        self.passes = 0

    def note(self, who: str, what: str, *more: Any) -> None:
        """Put something on the trace."""
        self.trace.append((self.now(), who, what, *more))

    def violated(self, who: str, invariant: str, *more: Any) -> None:
        """Note that a promise was broken; the scheduler stops at the end of this turn."""
        self.note(who, f"VIOLATED {invariant}", *more)
        self.violations.append(f"{invariant}: {who} {' '.join(map(str, more))}")

    def lane(self, script: Script) -> Any:
        """Return what a record is in order with; None if it is nobody."""
        ordering = self.plan.settings.ordering
        if ordering == "unordered" or (ordering == "key" and script.key is None):
            return None
        return (script.partition, script.key if ordering == "key" else None)

    def check(self) -> None:
        """Raise if a promise was broken."""
        if self.violations:
            raise ViolationError(self.violations[0])

    def expected(self) -> dict[int, int]:
        """Return what is to be committed in the end: everything, or up to the first record that halts."""
        return {
            partition: next(
                (offset for offset, script in sorted(scripts.items()) if self.plan.is_wall(script)),
                # Without the epilogue it ends where that begins.
                max(scripts) + self.has_epilogue,
            )
            for partition, scripts in self.offsets.items()
        }

    def missing(self) -> list[Script]:
        """Return what is to be committed in the end, and is not yet."""
        return [
            script
            for partition, end in self.expected().items()
            for offset, script in sorted(self.offsets[partition].items())
            if self.committed[partition] <= offset < end
        ]

    def check_all_handled(self) -> None:
        """Check at the end that nobody was forgotten."""
        expected = self.expected()
        for script in self.scripts:
            if script.offset < expected[script.partition] and script.number not in self.finished:
                self.violated("world", "handled at least once", script)
