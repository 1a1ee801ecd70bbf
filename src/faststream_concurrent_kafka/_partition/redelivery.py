"""Records that may be delivered again: their partition was revoked before their offsets were committed. Pure.

aiokafka revokes every partition at a rebalance, also those that this consumer keeps, and delivers their records again
from the committed offset on. This process must not run a record again that it has finished or still runs, whether or
not another member owned the partition meanwhile.

Only deliveries after a rebalance count as that. If they begin below the acknowledged offset, the position was moved
back (a seek, a reset, a truncation), and every record is run; so is a record that is not the one that was at its
offset.

Invariants: I8, I9.
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from faststream_concurrent_kafka._partition.ledger import PartitionLedger


T = TypeVar("T")


class _Left(NamedTuple, Generic[T]):
    identity: int
    timestamp: int | None
    entry: T | None


class Earlier(NamedTuple, Generic[T]):
    """What is known of a record that was delivered before."""

    entry: T | None
    """The entry of the record if it had not finished when its partition was revoked; None if it had."""


class Redeliverable(Generic[T]):
    """The records of one partition that may come back: admitted and not acknowledged, so bounded by the window."""

    __slots__ = ("_acked", "_begun", "_left", "newest")

    def __init__(self) -> None:
        self._acked = 0
        self._begun = False
        self._left: dict[int, _Left[T]] = {}
        self.newest: int | None = None
        """The largest time stamp of all delivered records."""

    def __len__(self) -> int:
        """Return how many records may come back."""
        return len(self._left)

    def absorb(self, ledger: PartitionLedger[T]) -> None:
        """Take over the uncommitted records of an epoch that ends."""
        # The ledger has everything that was delivered in its epoch; only offsets beyond that can be of an earlier one.
        self._left = {offset: left for offset, left in self._left.items() if offset >= ledger.admitted}
        self._left |= {offset: _Left(*known) for offset, known in ledger.unacked()}
        self._acked = ledger.acked
        if self.newest is None or (ledger.newest is not None and ledger.newest > self.newest):
            self.newest = ledger.newest
        self._begun = False

    def remaining(self, offset: int) -> Iterator[tuple[int, T | None]]:
        """Yield offset and entry (as in `Earlier`) of the records from `offset` on that may still come back."""
        return ((left, record.entry) for left, record in self._left.items() if left >= offset)

    def timestamp_at(self, offset: int) -> int | None:
        """Return the time stamp of the record at an offset, if it may come back."""
        left = self._left.get(offset)
        return None if left is None else left.timestamp

    def begin(self, offset: int) -> None:
        """Keep the records that can come back when deliveries begin at this offset."""
        if offset < self._acked:
            self._left.clear()
        else:
            # These lie below the position: another owner has committed them.
            self._left = {left: record for left, record in self._left.items() if left >= offset}

    def claim(self, offset: int, identity: int) -> Earlier[T] | None:
        """Return what is known of a record that is delivered now (in delivery order); each at most once."""
        if not self._begun:
            self._begun = True
            self.begin(offset)
        left = self._left.pop(offset, None)
        if left is None:
            return None
        if left.identity != identity:
            self._left.clear()
            return None
        return Earlier(left.entry)
