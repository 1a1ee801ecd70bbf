"""A consumer of the in-memory Kafka that behaves as `AIOKafkaConsumer` does."""

import asyncio
import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from aiokafka import errors
from aiokafka.util import commit_structure_validate

from faststream_concurrent_kafka._kafka_types import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from faststream_concurrent_kafka.testing.broker import FakeKafka, Group, Member, Offsets, Record


_RETRY_BACKOFF_SEC = 0.1  # aiokafka's default

_logger = logging.getLogger(__name__)


class _Coordinator:
    """The part of an aiokafka consumer's coordinator that the library uses: commits and committed offsets."""

    def __init__(self, group: Group, member: Member, send_commit: Callable[[Any, Offsets], Awaitable[None]]) -> None:
        self._group = group
        self._member = member
        self._commit_lock = asyncio.Lock()
        self._do_commit_offsets = send_commit

    async def commit_offsets(self, assignment: Any, offsets: Offsets) -> None:
        """Commit offsets; retries a retriable error for ever, under the membership of that moment."""
        while offsets:
            try:
                async with self._commit_lock:
                    request = asyncio.ensure_future(self._do_commit_offsets(assignment, offsets))
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

    @property
    def generation(self) -> int:
        """Return the generation of the consumer; -1 while it is not a member."""
        return self._member.generation

    async def fetch_committed_offsets(self, partitions: Iterable[TopicPartition]) -> Offsets:
        """Return committed offsets with their metadata."""
        await asyncio.sleep(0)  # the network
        return {key: self._group.committed[key] for key in partitions if key in self._group.committed}


class _PartitionState:
    """aiokafka's state of an assigned partition. The library watches how its position is found."""

    lso = None

    def __init__(self, kafka: FakeKafka, partition: TopicPartition) -> None:
        self._kafka = kafka
        self._partition = partition
        self.position: int | None = None
        self.paused = False
        self.reset: Literal["earliest", "latest"] | None = None

    @property
    def has_valid_position(self) -> bool:
        """Whether the position is known."""
        return self.position is not None

    @property
    def highwater(self) -> int:
        """Return the end of the log, which is always known here."""
        return self._kafka.end(self._partition)

    @property
    def timestamp(self) -> float:
        """Return when the broker last answered a fetch: now."""
        return asyncio.get_running_loop().time()

    @property
    def is_out_of_range(self) -> bool:
        """Whether the position is below the beginning of the log, or above its end."""
        position = self.position
        return position is not None and not self._kafka.starts[self._partition] <= position <= self.highwater

    def update_committed(self, committed: OffsetAndMetadata) -> None:
        """Note the committed offset; -1 where none is committed."""

    def await_reset(self, strategy: Literal["earliest", "latest"]) -> None:
        """Forget the position until the broker has returned the beginning or the end of the log."""
        self.position, self.reset = None, strategy

    def reset_to(self, position: int) -> None:
        """Go on at the position that the broker has returned."""
        self.position, self.reset = position, None

    def seek(self, position: int) -> None:
        """Go on at the user's position."""
        self.position, self.reset = position, None

    def find(self) -> None:
        """Get the beginning or the end of the log from the broker."""
        self.reset_to(self.highwater if self.reset == "latest" else self._kafka.starts[self._partition])


class _Assignment:
    """The partitions that one rebalance has assigned to a consumer."""

    def __init__(self, kafka: FakeKafka, partitions: Iterable[TopicPartition]) -> None:
        self.states = {partition: _PartitionState(kafka, partition) for partition in partitions}

    @property
    def tps(self) -> frozenset[TopicPartition]:
        """Return the assigned partitions."""
        return frozenset(self.states)

    def state_value(self, partition: TopicPartition) -> _PartitionState | None:
        """Return the state of a partition."""
        return self.states.get(partition)


class _Subscription:
    """The topics or partitions of a consumer, and its assignment."""

    def __init__(self) -> None:
        self.is_manual: bool | None = None
        self.assignment: _Assignment | None = None
        self._listener: ConsumerRebalanceListener | None = None
        # aiokafka's bookkeeping of fetches; this fake evicts no member that does not fetch.
        self.fetch_context: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def subscription(self) -> "_Subscription | None":
        """Return the object with the assignment: this one."""
        return None if self.is_manual is None else self

    @property
    def listener(self) -> ConsumerRebalanceListener | None:
        """Return the rebalance listener."""
        return self._listener

    def partitions_auto_assigned(self) -> bool:
        """Whether the group assigns the partitions."""
        return self.is_manual is False

    def take(self, *, is_manual: bool | None, listener: ConsumerRebalanceListener | None = None) -> None:
        """Change the subscription; the assignment is dropped at once."""
        if self.is_manual is not None and is_manual is not None and self.is_manual != is_manual:
            raise errors.IllegalStateError("Subscription to topics, partitions and pattern are mutually exclusive")
        self.is_manual, self.assignment, self._listener = is_manual, None, listener


class FakeKafkaConsumer:
    """The part of `AIOKafkaConsumer` that FastStream and this library use, on a `FakeKafka`; never commits by itself.

    Methods, defaults and errors are aiokafka's.
    """

    def __init__(
        self,
        *topics: str,
        kafka: FakeKafka,
        group_id: str | None = None,
        auto_offset_reset: Literal["earliest", "latest"] = "latest",
        heartbeat_interval_ms: int = 3000,
    ) -> None:
        self._kafka = kafka
        self._group_id = group_id
        self._group = kafka.groups[group_id or ""]
        self._heartbeat_sec = heartbeat_interval_ms / 1000
        self._auto_offset_reset: Literal["earliest", "latest"] = auto_offset_reset
        self._member = Member(self._request_rejoin)
        self._subscription = _Subscription()
        self._revoked: frozenset[TopicPartition] = frozenset()  # the partitions that the next rebalance revokes
        self._turns: deque[TopicPartition] = deque()  # the partition that is read next
        self._reassigning = True
        self._closed = False
        self._coordination: asyncio.Task[None] | None = None
        self._finding: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection = asyncio.Lock()  # requests are answered in the order in which they were sent
        self._coordinator: Any = None
        if topics:
            self.subscribe(topics)

    def subscribe(self, topics: Iterable[str], listener: ConsumerRebalanceListener | None = None) -> None:
        """Subscribe to these topics, in place of earlier ones."""
        if listener is not None and not isinstance(listener, ConsumerRebalanceListener):
            raise TypeError("listener should be an instance of ConsumerRebalanceListener")
        self._subscription.take(is_manual=False, listener=listener)
        self._member.topics = frozenset(topics)
        self._reassigning = True
        if self._loop is not None:
            self._share_topics()

    def unsubscribe(self) -> None:
        """Leave the group and drop the assignment, without the revoke callback."""
        self._subscription.take(is_manual=None)
        self._member.topics, self._member.rejoin_needed = frozenset(), False
        self._reassigning = True
        self._leave()

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these partitions, without a group assignment."""
        self._subscription.take(is_manual=True)
        self._set_assignment(partitions)

    async def start(self) -> None:
        """Join the group; return when partitions are assigned, possibly before the listener has ended."""
        self._loop = asyncio.get_running_loop()
        self._coordinator = _Coordinator(self._group, self._member, self._send_commit)
        if self._subscription.partitions_auto_assigned():
            self._share_topics()
            while self._reassigning:
                await self._kafka.next_change()
        elif self._subscription.assignment is not None:
            self._find_positions(self._subscription.assignment)

    async def stop(self) -> None:
        """Leave the group after a rebalance in progress, without the revoke callback."""
        if not self._closed:
            self._closed = True
            await asyncio.sleep(0)  # if cancelled, a ghost stays in the group, as aiokafka's does
            if self._coordination is not None:
                await self._coordination
            if self._finding is not None:
                self._finding.cancel()
                await asyncio.wait({self._finding})
            self._leave()
            self._kafka.wake()

    def lose_membership(self) -> None:
        """Let the broker drop this member, as after a session timeout; it learns that by a commit or a heartbeat."""
        self._group.drop(self._member.id)
        if self._loop is not None:
            self._loop.call_later(self._heartbeat_sec, self._heartbeat)

    def assignment(self) -> frozenset[TopicPartition]:
        """Return the assigned partitions; during a rebalance, the earlier ones."""
        assignment = self._subscription.assignment
        return frozenset() if assignment is None else assignment.tps

    async def getone(self, *partitions: TopicPartition) -> Record:
        """Return the next record; does not suspend if there is one."""
        while True:
            self._check_open()
            if not self._reassigning:
                for records in self._take(partitions, 1).values():
                    return records[0]
            await self._kafka.next_change()

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Record]]:
        """Return the next records by partition; waits for a rebalance, even beyond the timeout."""
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
        """Commit offsets, by default the positions; retries a retriable error for ever."""
        if self._group_id is None:
            raise errors.IllegalOperation("Requires group_id")
        assignment = self._subscription.assignment
        if assignment is None:
            raise errors.IllegalStateError("No partitions assigned")
        if offsets is None:
            states = assignment.states
            wanted = {tp: OffsetAndMetadata(at, "") for tp in states if (at := states[tp].position) is not None}
        else:
            wanted = commit_structure_validate(dict(offsets))
        if strangers := wanted.keys() - assignment.tps:
            raise errors.IllegalStateError(f"Partition {min(strangers)} is not assigned")
        await self._coordinator.commit_offsets(assignment, wanted)

    async def committed(self, partition: TopicPartition) -> int | None:
        """Return the group's committed offset."""
        if self._group_id is None:
            raise errors.IllegalOperation("Requires group_id")
        await asyncio.sleep(0)  # the network
        entry = self._group.committed.get(partition)
        return None if entry is None else entry.offset

    async def position(self, partition: TopicPartition) -> int:
        """Return the offset of the next record; waits until it is known."""
        while (position := self._assigned(partition).position) is None:
            await self._kafka.next_change()
        return position

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go on from this offset."""
        if offset < 0:
            raise ValueError("Offset must be a positive integer")
        self._assigned(partition).seek(offset)
        self._kafka.wake()

    async def seek_to_beginning(self, *partitions: TopicPartition) -> bool:
        """Go on with the first record of the log."""
        return await self._reset(partitions, "earliest")

    async def seek_to_end(self, *partitions: TopicPartition) -> bool:
        """Go on at the end of the log."""
        return await self._reset(partitions, "latest")

    async def _reset(self, partitions: Iterable[TopicPartition], strategy: Literal["earliest", "latest"]) -> bool:
        assignment = self._subscription.assignment
        chosen = tuple(partitions) or self.assignment()
        for tp in chosen:
            self._assigned(tp).await_reset(strategy)
        if assignment is not None:
            self._find_positions(assignment)
        for tp in chosen:
            await self.position(tp)
        return True

    def pause(self, *partitions: TopicPartition) -> None:
        """Deliver no record of these partitions until they are resumed or assigned again."""
        for tp in partitions:
            self._assigned(tp).paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        """Deliver from these partitions again."""
        for tp in partitions:
            self._assigned(tp).paused = False
        self._kafka.wake()

    def paused(self) -> set[TopicPartition]:
        """Return the paused partitions."""
        return {tp for tp in self.assignment() if self._assigned(tp).paused}

    def _check_open(self) -> None:
        if self._closed:
            raise errors.ConsumerStoppedError

    def _assigned(self, tp: TopicPartition) -> _PartitionState:
        assignment = self._subscription.assignment
        state = None if assignment is None else assignment.state_value(tp)
        if state is None:
            raise errors.IllegalStateError(f"No current assignment for partition {tp}")
        return state

    def _take(self, partitions: Sequence[TopicPartition], limit: int | None) -> dict[TopicPartition, list[Record]]:
        """Read from one partition after the other, until there are no more or `limit` records."""
        taken: dict[TopicPartition, list[Record]] = {}
        for _ in range(len(self._turns)):
            tp = self._turns[0]
            state = self._assigned(tp)
            if not state.paused and (not partitions or tp in partitions):
                self._check_range(state)
                if records := self._records(tp, state.position, limit):
                    taken[tp] = records
                    state.position = records[-1].offset + 1
                    limit = None if limit is None else limit - len(records)
                    if limit == 0:
                        break
            self._turns.rotate(-1)
        return taken

    def _records(self, tp: TopicPartition, position: int | None, limit: int | None) -> list[Record]:
        if position is None:
            return []
        log = self._kafka.logs[tp]
        start = bisect_left(log, position, key=lambda record: record.offset)
        return log[start : None if limit is None else start + limit]

    def _check_range(self, state: _PartitionState) -> None:
        if state.is_out_of_range and self._subscription.assignment is not None:
            state.await_reset(self._auto_offset_reset)
            self._find_positions(self._subscription.assignment)

    def _set_assignment(self, partitions: Iterable[TopicPartition]) -> None:
        self._subscription.assignment = assignment = _Assignment(self._kafka, partitions)
        self._revoked = assignment.tps
        self._turns = deque(assignment.states)
        self._reassigning = False
        if self._loop is not None:
            self._find_positions(assignment)
        self._kafka.wake()

    def _find_positions(self, assignment: _Assignment) -> None:
        if self._finding is not None:
            self._finding.cancel()
        self._finding = asyncio.get_running_loop().create_task(self._find(assignment))

    async def _find(self, assignment: _Assignment) -> None:
        """Request committed offsets, then the ends of the logs where nothing is committed, as aiokafka does."""
        await self._travel()
        for tp, state in assignment.states.items():
            if not state.has_valid_position and state.reset is None:
                entry = self._group.committed.get(tp) if self._group_id is not None else None
                state.update_committed(entry or OffsetAndMetadata(-1, ""))
                if entry is None:
                    state.await_reset(self._auto_offset_reset)
                else:
                    state.reset_to(entry.offset)
        self._kafka.wake()
        await self._travel()
        for state in assignment.states.values():
            if state.reset is not None:
                state.find()
        self._kafka.wake()

    async def _travel(self) -> None:
        await asyncio.sleep(0)  # the network

    def _share_topics(self) -> None:
        if self._group_id is None:
            self._set_assignment(sorted(tp for tp in self._kafka.logs if tp.topic in self._member.topics))
        else:
            self._request_rejoin()

    def _request_rejoin(self) -> None:
        self._member.rejoin_needed = True
        if not self._closed and self._loop is not None and (self._coordination is None or self._coordination.done()):
            # Another member may have requested it, from the event loop of another process.
            self._coordination = self._loop.create_task(self._coordinate())

    async def _coordinate(self) -> None:
        while self._member.rejoin_needed and not self._closed:
            self._reassigning = True
            revoked, self._revoked = self._revoked, frozenset()
            if self._subscription.listener is not None:
                await _call(self._subscription.listener.on_partitions_revoked, revoked)
            while (share := await self._group.join(self._member)) is None:
                pass
            self._member.generation = self._group.generation
            self._set_assignment(share)
            if self._subscription.listener is not None:
                await _call(self._subscription.listener.on_partitions_assigned, set(share))

    def _leave(self) -> None:
        self._group.drop(self._member.id)
        self._member.id, self._member.generation = "", -1

    def _heartbeat(self) -> None:
        if self._member.id not in self._group.members and not self._closed:
            self._leave()
            self._request_rejoin()

    async def _send_commit(self, _assignment: Any, offsets: Offsets) -> None:
        # The generation of now: a rebalance fences a commit in flight.
        member_id, generation = self._member.id, self._member.generation
        try:
            async with self._connection:
                await self._kafka.answer_commit(self._group_id or "", member_id, generation, offsets)
        except (errors.UnknownMemberIdError, errors.IllegalGenerationError):
            self._leave()
            if self._subscription.partitions_auto_assigned():
                self._request_rejoin()
            raise
        except errors.RebalanceInProgressError:
            self._request_rejoin()
            raise


def _retrieve(request: asyncio.Future[None]) -> None:
    """Retrieve the error of a request that is not awaited any more, so that asyncio does not report it."""
    if not request.cancelled():
        request.exception()


async def _call(callback: Callable[[Any], Any], partitions: Any) -> None:
    try:
        result = callback(partitions)
        if asyncio.iscoroutine(result):
            await result
    except Exception:
        _logger.exception("%r failed", callback)
