"""The ledger of one partition: which offset may be committed. Pure: no asyncio, no clock, no Kafka types.

Three marks, all "next to read" offsets in delivery order:

    acked <= frontier <= admitted    (I1)

`frontier` is the first unfinished offset (or one past the last admitted one), so committing it never passes unfinished
work. `acked` is what the broker has confirmed; after a crash, the records between the two are handled again.

One ledger serves one epoch: from the assignment of the partition to its revocation, a seek back or a reset. The next
epoch has a new ledger; records that still run complete the old one, from which nothing is committed any more. Where the
position has moved within one assignment, the unfinished records of the old ledger also hold back the frontier of the
new one.

Invariants: I1, I2, I3, I4, I5, I6, I7, I32.
"""

import bisect
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar


T = TypeVar("T")


class PartitionLedger(Generic[T]):
    """The offsets of one partition in one epoch; every operation is O(1) amortised.

    `T` is the caller's object for an unfinished offset. Offsets are admitted in delivery order; gaps (transactions,
    compaction) need no special case, and an offset at or below the last admitted one is refused.
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
        """Begin an epoch at an offset; records of `behind`, the last ledger of the assignment, may still run."""
        # Offsets below are committed, as far as is known: a position that has moved need not be.
        self.acked: int = first_offset if behind is None else min(first_offset, behind.acked)
        self.admitted: int = first_offset
        # Whether the broker has a committed offset of this epoch; if not, the first one has to be committed as it is.
        self.is_committed: bool = is_committed
        # The offset of the last commit that was sent: the broker may have it although no answer has come.
        self.sent: int = first_offset if is_committed else -1
        self.closed: bool = False
        # How many records have finished; and how many, those of earlier epochs included, had finished when the last
        # confirmed commit was sent.
        self.finished: int = 0
        self.finished_acked: int = 0
        # While the window is full: how many places a commit has to free to be sent at once; else 0.
        self.room_wanted: int = 0
        # The first record that was left undone, if any, and why.
        self.stopped_at: int | None = None
        self.stopped_because: str = ""
        # Unacknowledged offsets in delivery order, and the identity of each record. This is all that is kept of a
        # finished record while an older one is stuck: 120 bytes. `_unfinished` is no plain dict: to find the first key
        # of a dict is quadratic while keys are removed from its front.
        self._unacked: deque[int] = deque()
        self._identities: deque[int] = deque()
        # The time stamps of these records, by which the next owner of the partition recognises them, and the largest
        # one.
        self._timestamps: deque[int | None] = deque()
        self.newest: int | None = None
        self._unfinished: OrderedDict[int, T] = OrderedDict()
        self._behind: PartitionLedger[T] | None = None
        self._next: PartitionLedger[T] | None = None
        if behind is not None and behind.stopped_at is None and behind.pin is not None:
            # Where a record was left undone, the user has moved the position past it on purpose: then nothing is held
            # back.
            self._behind, behind._next = behind, self  # noqa: SLF001 - its own class

    def admit(self, offset: int, entry: T, identity: int = 0, timestamp: int | None = None) -> None:
        """Add a delivered record, which pins the frontier until it is completed.

        `identity` distinguishes it from another record at the same offset, in a topic that was truncated or recreated;
        its `timestamp` (milliseconds) does so in another process.

        Raises:
            ValueError: the offset is below one that was admitted in this epoch.

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
        """Mark the record at `offset` as finished; at most once (I4).

        Raises:
            KeyError: the ledger has no unfinished record at this offset.

        """
        del self._unfinished[offset]
        self.finished += 1

    def ack(self, offset: int, finished: int = 0) -> None:
        """Take `offset` as confirmed by the broker, and forget the records below it (I32).

        `finished` is how many records had finished when the commit was sent.
        """
        self.is_committed = True
        self.finished_acked = finished
        if offset <= self.acked:
            return
        self.acked = offset
        unacked = self._unacked
        while unacked and unacked[0] < offset:
            unacked.popleft()
            self._identities.popleft()
            self._timestamps.popleft()

    def stop_at(self, offset: int, reason: str = "it was left undone") -> None:
        """Mark the record at `offset` as left undone: the frontier stays at or below it (I5)."""
        if self.stopped_at is None or offset < self.stopped_at:
            self.stopped_at = offset
            self.stopped_because = reason
        if self._next is not None:
            self._next.stop_at(offset, reason)

    @property
    def frontier(self) -> int:
        """The offset that may be committed: everything below it is finished (I2)."""
        pin = self.pin
        return self.admitted if pin is None else min(pin, self.admitted)

    @property
    def pin(self) -> int | None:
        """The first unfinished offset, of this ledger or of the earlier ones of the same assignment (I7)."""
        own = next(iter(self._unfinished), None)
        earlier = None if self._behind is None else self._behind.pin
        if earlier is None:
            self._behind = None
            return own
        return earlier if own is None else min(own, earlier)

    @property
    def is_held_back(self) -> bool:
        """Whether an unfinished record of an earlier epoch pins the frontier."""
        return self._behind is not None and self.frontier < next(iter(self._unfinished), self.admitted)

    @property
    def window(self) -> int:
        """How many admitted records are not acknowledged."""
        return len(self._unacked)

    @property
    def unfinished(self) -> int:
        """How many admitted records are unfinished."""
        return len(self._unfinished)

    def unfinished_offsets(self) -> Iterator[int]:
        """Yield the unfinished offsets, in delivery order."""
        yield from self._unfinished

    def unacked(self) -> Iterator[tuple[int, tuple[int, int | None, T | None]]]:
        """Yield each unacknowledged offset, with identity, time stamp and, if it is unfinished, entry of its record."""
        for offset, identity, timestamp in zip(self._unacked, self._identities, self._timestamps, strict=True):
            yield offset, (identity, timestamp, self._unfinished.get(offset))

    def has_finished_behind(self, offset: int) -> bool:
        """Whether a delivered record behind `offset` has finished; `offset` is that of the first unfinished one."""
        return len(self._unacked) - bisect.bisect_left(self._unacked, offset) > len(self._unfinished)

    def delivered_from(self, offset: int, most: int) -> tuple[list[tuple[int, int]], bool]:
        """Return offset and time stamp of up to `most` unacknowledged records from `offset` on; whether these are all.

        They are evenly spaced, and the last one is always among them.
        """
        first, end = bisect.bisect_left(self._unacked, offset), len(self._unacked)
        step = max(1, -((first - end) // most))
        places = range(first + (end - 1 - first) % step, end, step)
        return [
            (self._unacked[place], timestamp) for place in places if (timestamp := self._timestamps[place]) is not None
        ], step == 1

    @property
    def last_timestamp(self) -> int | None:
        """The time stamp of the last admitted record; None if it is acknowledged."""
        return self._timestamps[-1] if self._timestamps else None

    def first_unfinished(self) -> T | None:
        """Return the entry that pins the frontier, if any."""
        for entry in self._unfinished.values():
            return entry
        return None
