"""Order: which record may start next. Pure: no asyncio, no clock, no Kafka types.

Records that must not overlap share a lane, and go through it one at a time, in the order in which they entered. A
record may need several lanes at once (a batch with several keys): it enters all of them in one step, and goes on when
it is first in each. That can't deadlock, since any two records are in the same order in every lane they share.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar


T = TypeVar("T", bound=Hashable)


class Lanes(Generic[T]):
    """Who is in which lane; every operation is O(1) per lane, and no lane outlives the last record in it."""

    __slots__ = ("_blocked", "_waiting")

    def __init__(self) -> None:
        # Per lane, those behind the one that has it. Most lanes never have more than one record: None costs nothing.
        self._waiting: dict[Hashable, deque[T] | None] = {}
        # In how many lanes somebody is still behind others.
        self._blocked: dict[T, int] = {}

    def __len__(self) -> int:
        """Return how many lanes are in use."""
        return len(self._waiting)

    def enter(self, entry: T, lanes: Iterable[Hashable]) -> bool:
        """Put `entry` at the end of the given lanes (each once); return whether it may go on at once."""
        blocked = 0
        for lane in lanes:
            if lane not in self._waiting:
                self._waiting[lane] = None
                continue
            queue = self._waiting[lane]
            if queue is None:
                queue = self._waiting[lane] = deque()
            queue.append(entry)
            blocked += 1
        if blocked:
            self._blocked[entry] = blocked
        return not blocked

    def leave(self, lanes: Iterable[Hashable]) -> list[T]:
        """Take who has the given lanes out of them; return who may go on now."""
        ready = []
        for lane in lanes:
            queue = self._waiting[lane]
            if queue is None or len(queue) == 0:
                del self._waiting[lane]
                continue
            entry = queue.popleft()
            blocked = self._blocked.pop(entry) - 1
            if blocked:
                self._blocked[entry] = blocked
            else:
                ready.append(entry)
        return ready


def lanes_of(ordering: str, owner: Hashable, raw: Any) -> Sequence[Hashable]:
    """Return the lanes of a raw record, or of a batch (a tuple of them), of one owner."""
    if ordering == "unordered":
        return ()
    records = raw if isinstance(raw, tuple) else (raw,)
    lanes: list[Hashable]
    if ordering == "partition":
        lanes = [(owner, record.topic, record.partition) for record in records]
    else:
        # Nothing has to be in order with a record that has no key.
        lanes = [(owner, record.topic, record.partition, record.key) for record in records if record.key is not None]
    return lanes if len(lanes) == 1 else list(dict.fromkeys(lanes))
