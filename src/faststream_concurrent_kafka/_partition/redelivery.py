"""What may come back: records of a partition that was revoked before their offsets were committed. Pure.

A rebalance revokes every partition, also those that this consumer keeps, and they are delivered again from the
committed offset on. What has finished here, or is still running, must not be run again by this process, whether or not
another member owned the partition meanwhile.

Only a delivery that follows from a rebalance is taken for one. If it begins below what the broker has confirmed,
the position was moved back (a seek, a reset, a truncation), and everything is run; so is a record that is not
the one that was at its offset.

Invariants: I8, I9.
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from faststream_concurrent_kafka._partition.ledger import PartitionLedger


T = TypeVar("T")


class _Left(NamedTuple, Generic[T]):
    identity: int
    entry: T | None


class Earlier(NamedTuple, Generic[T]):
    """A record that was delivered before."""

    entry: T | None
    """Of the record that had not finished when its partition was revoked; None if it had."""


class Redeliverable(Generic[T]):
    """Of one partition; holds at most what was admitted and not acknowledged, which the window bounds."""

    __slots__ = ("_acked", "_begun", "_left", "newest")

    def __init__(self) -> None:
        self._acked = 0
        self._begun = False
        self._left: dict[int, _Left[T]] = {}
        self.newest: int | None = None
        """The largest time stamp of what was delivered."""

    def __len__(self) -> int:
        """Return how many records may come back."""
        return len(self._left)

    def absorb(self, ledger: PartitionLedger[T]) -> None:
        """Take over what an epoch that ends has not committed."""
        # What was delivered in it is in it; only what lies behind can still be of an earlier one.
        self._left = {offset: left for offset, left in self._left.items() if offset >= ledger.admitted}
        self._left |= {offset: _Left(identity, entry) for offset, identity, entry in ledger.unacked()}
        self._acked = ledger.acked
        if self.newest is None or (ledger.newest is not None and ledger.newest > self.newest):
            self.newest = ledger.newest
        self._begun = False

    def remaining(self, offset: int) -> Iterator[tuple[int, T | None]]:
        """Yield offset and entry, as in `Earlier`, of what may still come back from `offset` on."""
        return ((left, record.entry) for left, record in self._left.items() if left >= offset)

    def begin(self, offset: int) -> None:
        """Keep what can come back when deliveries begin at this offset."""
        if offset < self._acked:
            self._left.clear()
        else:
            # The position lies behind these: another owner has committed them meanwhile.
            self._left = {left: record for left, record in self._left.items() if left >= offset}

    def claim(self, offset: int, identity: int) -> Earlier[T] | None:
        """Return what is known of a record that is delivered now, in delivery order; each at most once."""
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
