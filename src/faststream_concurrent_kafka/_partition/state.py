"""Everything that is known of one partition of one consumer. Pure: no asyncio, clock, logging or Kafka types.

An epoch is one assignment of the partition, or the time since a seek or a reset in it. Each epoch has a ledger; the
other attributes hold what is known from earlier epochs and other members. Methods change the state at once and return
what the caller has to do.

Invariants for the ledger of the present epoch, in addition to I1 to I7 of `docs/invariants.md`, and to I8, I9 and I15
for records that are delivered again:

- `frontier <= admitted`, and all records below `frontier` are finished, also those of earlier epochs that still run.
- `acked <= frontier`, unless a record of an earlier epoch of the same assignment holds the frontier back.
- A commit acknowledges only records that had finished when it was sent: `acked` passes no unfinished record.
- `to_commit` never returns more than `frontier`, and within an epoch never less than was sent before, unless a record
  of an earlier epoch holds the frontier back.
- `redeliverable`, `restored` and `sent_map` are None after a seek: the user who has moved the position wants the
  records again.
- Without a ledger, the partition is not assigned: there is nothing to commit.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._partition.offset_map import MOST_SAMPLES, OffsetMap, rebased
from faststream_concurrent_kafka._partition.redelivery import Earlier, Redeliverable


# A refused commit is sent again after as long as it has been refused so far, within these seconds.
LEAST_AGAIN_SEC = 0.1
AGAIN_SEC = 5.0
# About how long it takes to make an offset map.
_SEC_PER_BYTE = 3e-8
_SEC_PER_RECORD = 5e-7


class Entry(Protocol):
    """What `Partition` needs of a delivered record."""

    offset: int
    identity: int
    timestamp: int | None
    is_finished: bool
    ledger: Any


E = TypeVar("E", bound=Entry)


class SentMap(NamedTuple):
    """What commit metadata says of the records above the committed offset."""

    metadata: str
    last: int
    """The last offset that it marks as finished."""
    finished: int
    """How many records of the ledger had finished."""
    made_at: float
    cost_sec: float


class Sent(NamedTuple, Generic[E]):
    """What a request commits of a partition."""

    ledger: PartitionLedger[E]
    frontier: int
    finished: int
    """How many records of the ledger had finished."""
    metadata: str
    is_new: bool
    """Whether this offset was not sent before: if the broker has it, it comes from this request."""

    def value(self) -> int | tuple[int, str]:
        """Return it as `consumer.commit` takes it."""
        return (self.frontier, self.metadata) if self.metadata else self.frontier


@dataclasses.dataclass(slots=True)
class Refusal:
    """The broker refuses commits of this partition while it takes those of others."""

    since: float
    again_at: float
    error: str


class Partition(Generic[E]):
    """Admits records, says what to commit, and recognises records that were delivered before."""

    __slots__ = ("ledger", "missing", "redeliverable", "refusal", "restored", "sent_map", "sought")

    def __init__(self) -> None:
        # The ledger of the present epoch; None while the partition is not assigned, or its position is not known.
        self.ledger: PartitionLedger[E] | None = None
        # The records that may be delivered again since the partition was revoked.
        self.redeliverable: Redeliverable[E] | None = None
        # Read from commit metadata at the assignment: which records above the committed offset have finished.
        self.restored: OffsetMap | None = None
        # What the last commit has said of the records above its offset.
        self.sent_map: SentMap | None = None
        # Whether the user has sought to the beginning or the end, and aiokafka has not found that offset yet.
        self.sought: bool = False
        self.refusal: Refusal | None = None
        # The highest offset of the commits that have failed since the last success.
        self.missing: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether this object holds nothing that has to be kept."""
        known = (self.ledger, self.redeliverable, self.restored, self.refusal, self.missing)
        return not self.sought and all(each is None for each in known)

    # -- epochs --------------------------------------------------------------------------------------------------

    def begin(self, offset: int, *, is_committed: bool) -> PartitionLedger[E]:
        """Begin an epoch at an offset that is committed, or that has to be committed first.

        A second epoch in the same assignment follows from a seek or a reset: its records are handled even if they had
        finished.
        """
        last = self.ledger
        if last is not None:
            # Its records that still run go on to pin the frontier.
            last.closed = True
            self.forget()
        elif self.redeliverable is not None:
            self.redeliverable.begin(offset)
            self._drop_redelivered()
        if is_committed and self.missing is not None and offset >= self.missing:
            # Another member has committed that offset.
            self.missing = None
        self.ledger = PartitionLedger[E](offset, is_committed=is_committed, behind=last)
        return self.ledger

    def end_epoch(self) -> None:
        """End the epoch: records that still run are committed only if they are delivered to this process again."""
        if self.ledger is not None:
            self.ledger.closed = True
            self.redeliverable = self.redeliverable or Redeliverable()
            self.redeliverable.absorb(self.ledger)
            self._drop_redelivered()
        self.ledger = self.restored = self.sent_map = None
        self.sought = False

    def restore(self, offset_map: OffsetMap) -> None:
        """Take the offset map of the committed offset: finished offsets that it lists need not be committed again."""
        self.restored = offset_map
        if self.ledger is not None:
            self.ledger.finished_acked = sum(offset in offset_map for offset in self._finished_beyond(self.ledger))

    def forget(self) -> None:
        """Forget which records were handled: the user has moved the position, and wants them handled again."""
        self.redeliverable = self.restored = self.sent_map = None

    def _drop_redelivered(self) -> None:
        if self.redeliverable is not None and not self.redeliverable:
            self.redeliverable = None

    # -- records -------------------------------------------------------------------------------------------------

    def admit(self, entry: E) -> Earlier[E] | None:
        """Admit a record, in delivery order; return what is known of it if it was delivered before (a rebalance)."""
        ledger = self.ledger
        if ledger is None or entry.offset < ledger.admitted:
            # A new assignment, or a position that went back.
            ledger = self.begin(entry.offset, is_committed=True)
        entry.ledger = ledger
        ledger.admit(entry.offset, entry, entry.identity, entry.timestamp)
        return None if self.redeliverable is self.restored is None else self._recall(entry)

    def _recall(self, entry: E) -> Earlier[E] | None:
        earlier = None
        if (redeliverable := self.redeliverable) is not None:
            earlier = redeliverable.claim(entry.offset, entry.identity)
            if not redeliverable:
                self.redeliverable = self.sent_map = None
        if (restored := self.restored) is not None:
            had_finished = restored.claim(entry.offset, entry.timestamp)
            if restored.ends_before(entry.offset + 1):
                # All of its records have been delivered; or it does not match the log, and must not be sent again.
                self.restored = self.sent_map = None
            if had_finished:
                # Even if this process left it undone or still runs it: another member has finished it since.
                return Earlier(None)
        return earlier

    def _finished_beyond(self, ledger: PartitionLedger[E]) -> Iterator[int]:
        """Yield the offsets that finished here in an earlier epoch and were not delivered in this one."""
        if self.redeliverable is not None:
            for offset, entry in self.redeliverable.remaining(ledger.admitted):
                if entry is None or entry.is_finished:
                    yield offset

    def _finished(self, ledger: PartitionLedger[E]) -> int:
        """Return how many records have finished that were delivered in this epoch, or may be delivered again."""
        return ledger.finished + sum(1 for _ in self._finished_beyond(ledger))

    # -- commits -------------------------------------------------------------------------------------------------

    def to_commit(self, *, with_metadata: bool) -> int | None:
        """Return the offset to commit; None if the broker has it already, with up-to-date metadata."""
        ledger = self.ledger
        if ledger is None:
            return None
        offset = self._offset(ledger, with_metadata=with_metadata)
        # With metadata, any newly finished record makes the partition dirty, once a map can be recognised.
        is_up_to_date = (
            not with_metadata
            or self._finished(ledger) == ledger.finished_acked
            or self._timestamp_at(offset, ledger) is None
        )
        return None if offset <= ledger.acked and is_up_to_date and ledger.is_committed else offset

    def _offset(self, ledger: PartitionLedger[E], *, with_metadata: bool) -> int:
        """Return the frontier; or the last delivered offset, if records beyond it are known to have finished."""
        if not with_metadata or ledger.unfinished or self.redeliverable is self.restored is None:
            return ledger.frontier
        if ledger.is_held_back or ledger.newest is None:
            # Without a delivered record there is none to recognise a map by.
            return ledger.frontier
        if ledger.room_wanted and ledger.admitted - 1 <= ledger.acked:
            # With a window of one record, that record has to be acknowledged before the next one is fetched.
            return ledger.frontier
        is_restored_over = self.restored is None or self.restored.ends_before(ledger.admitted)
        if is_restored_over and next(self._finished_beyond(ledger), None) is None:
            return ledger.frontier
        # The map of what has finished further on is recognised by the record at the committed offset. All delivered
        # records have finished, so the last of them serves: it is committed as not read, and marked as finished in the
        # map.
        return max(ledger.admitted - 1, ledger.sent)

    def prepare(self, *, metadata_limit: int, with_metadata: bool, made_since: float, now: float) -> Sent[E] | None:
        """Return what to send for the partition, and note it as sent; None if the partition is not assigned any more.

        The metadata takes up to `metadata_limit` bytes. A map that was made at `made_since` or later is sent again,
        because it takes time to make one.
        """
        ledger = self.ledger
        if ledger is None:
            return None
        frontier, sent_map = self._offset(ledger, with_metadata=metadata_limit > 0), None
        if with_metadata and metadata_limit:
            sent_map = self._map_to_send(ledger, frontier, metadata_limit, made_since=made_since, now=now)
        is_new, ledger.sent = frontier != ledger.sent, frontier
        if sent_map is None:
            return Sent(ledger, frontier, ledger.finished, "", is_new)
        return Sent(ledger, frontier, sent_map.finished, sent_map.metadata, is_new)

    def _map_to_send(
        self, ledger: PartitionLedger[E], frontier: int, limit: int, *, made_since: float, now: float
    ) -> SentMap | None:
        """Return the map of what has finished above the frontier; None if nothing has, or no record identifies it."""
        restored, redeliverable = self.restored, self.redeliverable
        timestamp = self._timestamp_at(frontier, ledger)
        if timestamp is None or ledger.is_held_back:
            return None
        sent_map = self.sent_map
        if sent_map is not None and sent_map.made_at >= made_since:
            is_over = not sent_map.metadata or sent_map.last < frontier
            return sent_map._replace(metadata="" if is_over else rebased(sent_map.metadata, frontier, timestamp))
        if restored is redeliverable is None and not ledger.has_finished_behind(frontier):
            # So it is while handlers end in order, and a map takes longer than all the rest of a commit.
            self.sent_map = SentMap("", frontier, ledger.finished, now, 0.0)
            return self.sent_map
        known = (ledger.newest, None if redeliverable is None else redeliverable.newest)
        delivered, all_delivered = ledger.delivered_from(frontier, MOST_SAMPLES)
        offset_map = OffsetMap.of(
            frontier,
            timestamp,
            admitted=ledger.admitted,
            unfinished=ledger.unfinished_offsets(),
            beyond=self._finished_beyond(ledger),
            earlier=restored,
            delivered=delivered,
            newest=max((each for each in known if each is not None), default=None),
            all_delivered=all_delivered and redeliverable is None,
        )
        cost_sec = offset_map.size * _SEC_PER_BYTE + (ledger.unfinished + len(redeliverable or ())) * _SEC_PER_RECORD
        self.sent_map = SentMap(offset_map.dump(limit), offset_map.last, self._finished(ledger), now, cost_sec)
        return self.sent_map

    def _timestamp_at(self, frontier: int, ledger: PartitionLedger[E]) -> int | None:
        """Return the time stamp of the record at the frontier: the first unfinished, the last, or the next one."""
        if (first := ledger.first_unfinished()) is not None:
            return first.timestamp
        if frontier < ledger.admitted:
            return ledger.last_timestamp
        timestamp = None if self.redeliverable is None else self.redeliverable.timestamp_at(frontier)
        if timestamp is None and self.restored is not None:
            return self.restored.timestamp_at(frontier)
        return timestamp

    def refuse(self, error: str, *, since: float, now: float) -> bool:
        """Note that the broker has refused an attempt that began at `since`; return whether it is the first refusal."""
        is_new = self.refusal is None
        if self.refusal is not None:
            since = self.refusal.since
        self.refusal = Refusal(since, now + min(max(now - since, LEAST_AGAIN_SEC), AGAIN_SEC), error)
        return is_new
