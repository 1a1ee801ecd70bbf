"""For tests: an in-memory Kafka with consumers that behave as aiokafka's do, and an event loop whose time is virtual.

`FakeKafkaConsumer` passes the same contract suite as a real `AIOKafkaConsumer` on a real broker. Where it differs: a
rebalance is noticed at once and not at a heartbeat, a record can be fetched as soon as it is appended, and a cancelled
`getone` doesn't switch `max_poll_interval_ms` off.
"""

import asyncio
import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition, errors
from aiokafka.structs import OffsetAndMetadata
from aiokafka.util import commit_structure_validate

from faststream_concurrent_kafka.fake_kafka import FakeKafka, Group, Member, Offsets, Record
from faststream_concurrent_kafka.virtual_time import DeadlockError, LeftoverTasksError, VirtualTimeLoop, run_virtual


__all__ = ["DeadlockError", "FakeKafka", "FakeKafkaConsumer", "LeftoverTasksError", "VirtualTimeLoop", "run_virtual"]

_RETRY_BACKOFF_SEC = 0.1  # aiokafka's default

_logger = logging.getLogger(__name__)


class _Coordinator:
    """What the library asks of an aiokafka consumer's coordinator, which is where its commits and offsets pass."""

    def __init__(self, group: Group, member: Member, send_commit: Callable[[Any, Offsets], Awaitable[None]]) -> None:
        self._group = group
        self._member = member
        self._do_commit_offsets = send_commit

    @property
    def generation(self) -> int:
        """Return that of the consumer; -1 while it is no member."""
        return self._member.generation

    async def fetch_committed_offsets(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return what is committed, with its metadata."""
        await asyncio.sleep(0)  # the network
        return {key: self._group.committed[key] for key in partitions if key in self._group.committed}


class FakeKafkaConsumer:
    """The part of `AIOKafkaConsumer` that FastStream and this library use, on a `FakeKafka`; never commits by itself.

    Methods, defaults and errors are aiokafka's; subscribe or assign before `start`.
    """

    def __init__(
        self,
        *topics: str,
        kafka: FakeKafka,
        group_id: str | None = None,
        auto_offset_reset: str = "latest",
        heartbeat_interval_ms: int = 3000,
    ) -> None:
        self._kafka = kafka
        self._group_id = group_id
        self._group = kafka.groups[group_id or ""]
        self._heartbeat_sec = heartbeat_interval_ms / 1000
        self._from_end = auto_offset_reset == "latest"
        self._member = Member(self._request_rejoin, frozenset(topics))
        self._listener: ConsumerRebalanceListener | None = None
        self._positions: dict[TopicPartition, int] | None = None
        self._turns: deque[TopicPartition] = deque()  # which partition is read next
        self._paused: set[TopicPartition] = set()
        self._reassigning = True
        self._closed = False
        self._coordination: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._commit_lock = asyncio.Lock()
        self._connection = asyncio.Lock()  # requests are answered in the order in which they were sent
        self._coordinator = _Coordinator(self._group, self._member, self._send_commit)

    def subscribe(self, topics: Iterable[str], listener: ConsumerRebalanceListener | None = None) -> None:
        """Share these topics with the others of the group."""
        if listener is not None and not isinstance(listener, ConsumerRebalanceListener):
            raise TypeError("listener should be an instance of ConsumerRebalanceListener")
        if self._positions is not None:
            raise errors.IllegalStateError("Subscription to topics, partitions and pattern are mutually exclusive")
        self._member.topics = frozenset(topics)
        self._listener = listener

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these partitions, whoever else does."""
        if self._member.topics:
            raise errors.IllegalStateError("Subscription to topics, partitions and pattern are mutually exclusive")
        self._set_assignment(partitions)

    async def start(self) -> None:
        """Join the group; return once partitions are assigned, which may be before the listener is through."""
        self._loop = asyncio.get_running_loop()
        if self._group_id is None and self._member.topics:
            self._set_assignment(sorted(tp for tp in self._kafka.logs if tp.topic in self._member.topics))
        elif self._member.topics:
            self._request_rejoin()
            while self._reassigning:
                await self._kafka.next_change()

    async def stop(self) -> None:
        """Leave the group, once a rebalance that is under way has ended; without the revoke callback."""
        if not self._closed:
            self._closed = True
            await asyncio.sleep(0)  # if cancelled, a ghost stays in the group, as aiokafka's does
            if self._coordination is not None:
                await self._coordination
            self._leave()
            self._kafka.wake()

    def lose_membership(self) -> None:
        """Have the broker drop this member, as after a session timeout; a commit or a heartbeat will tell it."""
        self._group.drop(self._member.id)
        self._loop.call_later(self._heartbeat_sec, self._heartbeat)

    def assignment(self) -> frozenset[TopicPartition]:
        """Return what is assigned; during a rebalance, what was."""
        return frozenset(self._positions or ())

    async def getone(self, *partitions: TopicPartition) -> Record:
        """Return the next record, without suspending where there is one."""
        while True:
            self._check_open()
            if not self._reassigning:
                for records in self._take(partitions, 1).values():
                    return records[0]
            await self._kafka.next_change()

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Record]]:
        """Return the next records by partition; a rebalance is awaited whatever the timeout."""
        self._check_open()
        if max_records is not None and max_records < 1:
            raise ValueError("`max_records` must be a positive Integer")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        while not self._closed:
            while self._reassigning:
                await self._kafka.next_change()
            records = self._take(partitions, max_records)
            remaining_sec = deadline - loop.time()
            if records or remaining_sec <= 0:
                return records
            await asyncio.wait([self._kafka.next_change()], timeout=remaining_sec)
        return {}

    async def commit(
        self, offsets: Mapping[TopicPartition, int | tuple[int, str] | OffsetAndMetadata] | None = None
    ) -> None:
        """Commit offsets, by default the positions; after a retriable error again, for ever."""
        if self._group_id is None:
            raise errors.IllegalOperation("Requires group_id")
        if self._positions is None:
            raise errors.IllegalStateError("No partitions assigned")
        if offsets is None:
            wanted = {tp: OffsetAndMetadata(position, "") for tp, position in self._positions.items()}
        else:
            wanted = commit_structure_validate(dict(offsets))
        if strangers := wanted.keys() - self._positions.keys():
            raise errors.IllegalStateError(f"Partition {min(strangers)} is not assigned")
        while wanted:
            try:
                async with self._commit_lock:
                    request = asyncio.ensure_future(self._coordinator._do_commit_offsets(self._member, wanted))  # noqa: SLF001 - as aiokafka does
                    request.add_done_callback(_retrieve)
                    await asyncio.shield(request)
            except (errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError) as err:
                raise errors.CommitFailedError("the group has already rebalanced") from err
            except errors.KafkaError as err:
                if not err.retriable:
                    raise
            else:
                break
            await asyncio.sleep(_RETRY_BACKOFF_SEC)

    async def committed(self, partition: TopicPartition) -> int | None:
        """Return the group's committed offset."""
        if self._group_id is None:
            raise errors.IllegalOperation("Requires group_id")
        await asyncio.sleep(0)  # the network
        entry = self._group.committed.get(partition)
        return None if entry is None else entry.offset

    async def position(self, partition: TopicPartition) -> int:
        """Return the offset of the next record."""
        return self._assigned(partition)[partition]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on from this offset."""
        if offset < 0:
            raise ValueError("Offset must be a positive integer")
        self._assigned(partition)[partition] = offset
        self._kafka.wake()

    def pause(self, *partitions: TopicPartition) -> None:
        """Deliver nothing of these partitions until they are resumed or assigned anew."""
        for tp in partitions:
            self._assigned(tp)
            self._paused.add(tp)

    def resume(self, *partitions: TopicPartition) -> None:
        """Deliver from these partitions again."""
        for tp in partitions:
            self._assigned(tp)
            self._paused.discard(tp)
        self._kafka.wake()

    def paused(self) -> set[TopicPartition]:
        """Return what is paused."""
        return set(self._paused)

    def _check_open(self) -> None:
        if self._closed:
            raise errors.ConsumerStoppedError

    def _assigned(self, tp: TopicPartition) -> dict[TopicPartition, int]:
        if self._positions is None or tp not in self._positions:
            raise errors.IllegalStateError(f"No current assignment for partition {tp}")
        return self._positions

    def _take(self, partitions: Sequence[TopicPartition], limit: int | None) -> dict[TopicPartition, list[Record]]:
        """Read on, one partition after the other, until there is nothing more or there are `limit` records."""
        taken: dict[TopicPartition, list[Record]] = {}
        for _ in range(len(self._turns)):
            tp = self._turns[0]
            if tp not in self._paused and (not partitions or tp in partitions):
                log = self._kafka.logs[tp]
                start = bisect_left(log, self._assigned(tp)[tp], key=lambda record: record.offset)
                if records := log[start : None if limit is None else start + limit]:
                    taken[tp] = records
                    self._assigned(tp)[tp] = records[-1].offset + 1
                    limit = None if limit is None else limit - len(records)
                    if limit == 0:
                        break
            self._turns.rotate(-1)
        return taken

    def _set_assignment(self, partitions: Iterable[TopicPartition]) -> None:
        self._positions = {}
        for tp in partitions:
            log, entry = self._kafka.logs[tp], self._group.committed.get(tp)
            reset = log[-1].offset + 1 if log and self._from_end else 0
            self._positions[tp] = reset if entry is None else entry.offset
        self._turns = deque(self._positions)
        self._paused.clear()
        self._reassigning = False
        self._kafka.wake()

    def _request_rejoin(self) -> None:
        self._member.rejoin_needed = True
        if not self._closed and (self._coordination is None or self._coordination.done()):
            # Another member may have asked for it, from the event loop of another process.
            self._coordination = self._loop.create_task(self._coordinate())

    async def _coordinate(self) -> None:
        while self._member.rejoin_needed and not self._closed:
            self._reassigning = True
            if self._listener is not None:
                await _tell(self._listener.on_partitions_revoked, self.assignment())
            while (share := await self._group.join(self._member)) is None:
                pass
            self._member.generation = self._group.generation
            self._set_assignment(share)
            if self._listener is not None:
                await _tell(self._listener.on_partitions_assigned, set(share))

    def _leave(self) -> None:
        self._group.drop(self._member.id)
        self._member.id, self._member.generation = "", -1

    def _heartbeat(self) -> None:
        if self._member.id not in self._group.members and not self._closed:
            self._leave()
            self._request_rejoin()

    async def _send_commit(self, member: Member, offsets: Offsets) -> None:
        member_id, generation = member.id, member.generation  # of now: a rebalance fences what is under way
        try:
            async with self._connection:
                await self._kafka.answer_commit(self._group_id or "", member_id, generation, offsets)
        except (errors.UnknownMemberIdError, errors.IllegalGenerationError):
            self._leave()
            self._request_rejoin()
            raise
        except errors.RebalanceInProgressError:
            self._request_rejoin()
            raise


def _retrieve(request: asyncio.Future[None]) -> None:
    """Have nobody told of an error that nobody waits for any more."""
    if not request.cancelled():
        request.exception()


async def _tell(callback: Callable[[Any], Any], partitions: Any) -> None:
    try:
        result = callback(partitions)
        if asyncio.iscoroutine(result):
            await result
    except Exception:
        _logger.exception("%r failed", callback)
