"""The ledger of one partition: which offset may be committed. Pure: no asyncio, no clock, no Kafka types.

Three marks, all "next to read" offsets in delivery order:

    acked <= frontier <= admitted    (I1)

`frontier` is the first unfinished offset (or one past the last admitted one), so committing it never passes
unfinished work. `acked` is what the broker has confirmed; between the two lies what a crash would run again.

One ledger serves one epoch: an assignment of the partition up to its revocation, a seek back or a reset. The next
epoch gets a new ledger; the old one may still be completed by its running records, and commits nothing any more. Where
the position has moved within one assignment, they go on to pin the frontier, from behind.

Invariants: I1, I2, I3, I4, I5, I6, I7, I32.
"""

import bisect
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar


T = TypeVar("T")


class PartitionLedger(Generic[T]):
    """Offsets of one partition in one epoch; every operation is O(1) amortised.

    `T` is whatever the caller wants to find again by its unfinished offset. Offsets are admitted in delivery order,
    so gaps (transactions, compaction) are nothing special; only an offset at or below the last one is refused.
    """

    __slots__ = (
        "_behind",
        "_identities",
        "_next",
        "_timestamps",
        "_unacked",
        "_unfinished",
        "acked",
        "admitted",
        "closed",
        "finished",
        "finished_acked",
        "is_committed",
        "newest",
        "room_wanted",
        "sent",
        "stopped_at",
        "stopped_because",
    )

    def __init__(
        self, first_offset: int, *, is_committed: bool = True, behind: "PartitionLedger[T] | None" = None
    ) -> None:
        """Begin an epoch at an offset; `behind` is the last one of the same assignment, whose records may still run."""
        # Everything below belongs to others.
        self.acked: int = first_offset
        self.admitted: int = first_offset
        # Whether the broker has an offset of this epoch; else the first one is to be committed as it is.
        self.is_committed: bool = is_committed
        # The last offset that a commit was sent with: the broker may have it, without our knowing.
        self.sent: int = first_offset if is_committed else -1
        self.closed: bool = False
        # How many records have finished, and how many had when what the broker has confirmed was sent.
        self.finished: int = 0
        self.finished_acked: int = 0
        # How far a commit should go to be made at once, while the window is full; 0 = it is not.
        self.room_wanted: int = 0
        # The first record that was left undone, if any, and why.
        self.stopped_at: int | None = None
        self.stopped_because: str = ""
        # Offsets in delivery order, from the last acknowledged one on, and beside each what tells its record from
        # another one at the same offset: 120 bytes, which is all that is kept of a finished record while an older one
        # is stuck. A plain dict would do for `_unfinished`, but finding its first key again and again while keys are
        # removed from its front is quadratic.
        self._unacked: deque[int] = deque()
        self._identities: deque[int] = deque()
        # Their time stamps, by which the next owner of the partition recognises them, and the largest one of all.
        self._timestamps: deque[int | None] = deque()
        self.newest: int | None = None
        self._unfinished: OrderedDict[int, T] = OrderedDict()
        self._behind: PartitionLedger[T] | None = None
        self._next: PartitionLedger[T] | None = None
        if behind is not None and behind.stopped_at is None and behind.pin is not None:
            # What was left undone before the position moved was passed over on purpose; what still runs was not.
            self._behind, behind._next = behind, self  # noqa: SLF001 - its own class

    def admit(self, offset: int, entry: T, identity: int = 0, timestamp: int | None = None) -> None:
        """Note a delivered record that pins the frontier until it is completed.

        `identity` tells it from another record at the same offset, of a topic that was truncated or made anew; so does
        its `timestamp`, in milliseconds, in another process.

        Raises:
            ValueError: the offset was passed already in this epoch.

        """
        if offset < self.admitted:
            raise ValueError(f"offset {offset} comes after {self.admitted - 1} was admitted: a new epoch begins here")
        self.admitted = offset + 1
        self._unacked.append(offset)
        self._identities.append(identity)
        self._timestamps.append(timestamp)
        if timestamp is not None and (self.newest is None or timestamp > self.newest):
            self.newest = timestamp
        self._unfinished[offset] = entry

    def complete(self, offset: int) -> None:
        """Note that the record at `offset` needs no more work. Once only (I4).

        Raises:
            KeyError: the offset is not unfinished here.

        """
        del self._unfinished[offset]
        self.finished += 1

    def ack(self, offset: int, finished: int = 0) -> None:
        """Note that the broker has confirmed `offset` as committed; what lies below is forgotten (I32).

        `finished` is how many records had finished when that was sent.
        """
        self.is_committed = True
        self.finished_acked = max(self.finished_acked, finished)
        if offset <= self.acked:
            return
        self.acked = offset
        unacked = self._unacked
        while unacked and unacked[0] < offset:
            unacked.popleft()
            self._identities.popleft()
            self._timestamps.popleft()

    def stop_at(self, offset: int, reason: str = "it was left undone") -> None:
        """Note that the record at `offset` will not be finished: the frontier stays at or below it (I5)."""
        if self.stopped_at is None or offset < self.stopped_at:
            self.stopped_at = offset
            self.stopped_because = reason
        if self._next is not None:
            self._next.stop_at(offset, reason)

    def stops_before(self, offset: int) -> bool:
        """Whether a record below `offset` will not be finished, so that all from there on is delivered again."""
        return self.stopped_at is not None and self.stopped_at < offset

    @property
    def frontier(self) -> int:
        """The offset that may be committed: everything below it is finished (I2)."""
        pin = self.pin
        return self.admitted if pin is None else min(pin, self.admitted)

    @property
    def pin(self) -> int | None:
        """The first unfinished offset, also of the epochs before this one while their records run (I7)."""
        own = next(iter(self._unfinished), None)
        earlier = None if self._behind is None else self._behind.pin
        if earlier is None:
            self._behind = None
            return own
        return earlier if own is None else min(own, earlier)

    @property
    def is_held_back(self) -> bool:
        """Whether it is a record of an earlier epoch that pins the frontier."""
        return self._behind is not None and self.frontier < next(iter(self._unfinished), self.admitted)

    @property
    def window(self) -> int:
        """How many records were admitted and are not below an acknowledged offset."""
        return len(self._unacked)

    @property
    def unfinished(self) -> int:
        """How many admitted records still need work."""
        return len(self._unfinished)

    def unfinished_offsets(self) -> Iterator[int]:
        """Yield the offsets that need more work, in delivery order."""
        yield from self._unfinished

    def unacked(self) -> Iterator[tuple[int, int, T | None]]:
        """Yield offset, identity and, where it is unfinished, entry of what the broker has not confirmed."""
        for offset, identity in zip(self._unacked, self._identities, strict=True):
            yield offset, identity, self._unfinished.get(offset)

    def delivered_from(self, offset: int, most: int) -> tuple[list[tuple[int, int]], bool]:
        """Return offset and time stamp of so many unacknowledged records from `offset` on, and whether that is all.

        They are spread evenly, and end with the last one.
        """
        first, end = bisect.bisect_left(self._unacked, offset), len(self._unacked)
        step = max(1, -((first - end) // most))
        places = range(first + (end - 1 - first) % step, end, step)
        return [
            (self._unacked[place], timestamp) for place in places if (timestamp := self._timestamps[place]) is not None
        ], step == 1

    @property
    def last_timestamp(self) -> int | None:
        """That of the record that was admitted last, unless it is acknowledged."""
        return self._timestamps[-1] if self._timestamps else None

    def first_unfinished(self) -> T | None:
        """Return the entry that pins the frontier, if any."""
        for entry in self._unfinished.values():
            return entry
        return None
