"""Order: which record may start next. Pure: no asyncio, no clock, no Kafka types.

Records that must not overlap share an order key, and go through its queue one at a time, in the order in which they
entered. A record may have several keys (a batch): it enters all of their queues in one step, and may start when it is
first in each. That can't deadlock, since any two records are in the same order in every queue that they share.

Invariants: I19.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar


T = TypeVar("T", bound=Hashable)


class OrderQueues(Generic[T]):
    """One queue per order key; every operation is O(1) per key, and no queue outlives the last entry in it."""

    __slots__ = ("_blocked", "_waiting")

    def __init__(self) -> None:
        # Per key, the entries behind the first; None while there are none, as in most queues.
        self._waiting: dict[Hashable, deque[T] | None] = {}
        # For each entry that waits: in how many queues it is behind another one.
        self._blocked: dict[T, int] = {}

    def __len__(self) -> int:
        """Return how many keys are in use."""
        return len(self._waiting)

    def enter(self, entry: T, keys: Iterable[Hashable]) -> bool:
        """Put `entry` at the end of the queues of these keys (each once); return whether it may start at once."""
        blocked = 0
        for key in keys:
            if key not in self._waiting:
                self._waiting[key] = None
                continue
            queue = self._waiting[key]
            if queue is None:
                queue = self._waiting[key] = deque()
            queue.append(entry)
            blocked += 1
        if blocked:
            self._blocked[entry] = blocked
        return not blocked

    def leave(self, keys: Iterable[Hashable]) -> list[T]:
        """Take the first entry out of the queues of these keys; return the entries that may start now."""
        ready = []
        for key in keys:
            queue = self._waiting[key]
            if queue is None or len(queue) == 0:
                del self._waiting[key]
                continue
            entry = queue.popleft()
            blocked = self._blocked.pop(entry) - 1
            if blocked:
                self._blocked[entry] = blocked
            else:
                ready.append(entry)
        return ready


def order_keys_of(ordering: str, owner: Hashable, raw: Any) -> Sequence[Hashable]:
    """Return the order keys of a raw record, or of a batch (a tuple of them), of one owner."""
    if ordering == "unordered":
        return ()
    records = raw if isinstance(raw, tuple) else (raw,)
    keys: list[Hashable]
    if ordering == "partition":
        keys = [(owner, record.topic, record.partition) for record in records]
    else:
        # A record without a key has no order.
        keys = [(owner, record.topic, record.partition, record.key) for record in records if record.key is not None]
    return keys if len(keys) == 1 else list(dict.fromkeys(keys))
