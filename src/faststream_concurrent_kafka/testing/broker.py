"""The broker's side of the fake: topics, records, groups and committed offsets, in memory."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from aiokafka import errors

from faststream_concurrent_kafka._kafka_types import OffsetAndMetadata, Record, TopicPartition


Offsets: TypeAlias = Mapping[TopicPartition, OffsetAndMetadata]


class FakeKafka:
    """Topics, records, consumer groups and committed offsets, in memory. It outlives event loops, as brokers do.

    Attributes:
        logs: the records of each partition, by offset.
        starts: the offset at which each log begins.
        groups: consumer groups by id: `committed`, `members` and `rebalance()`.
        commits: every `(group_id, offsets)` that was accepted, in order.
        on_commit: called with `(group_id, offsets)` for every commit that arrives, before it is held, failed or
            accepted; its exception is the answer.

    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        """Make a broker that has the given number of partitions of each topic."""
        self.logs: dict[TopicPartition, list[Record]] = {
            TopicPartition(topic, partition): [] for topic, count in topics.items() for partition in range(count)
        }
        self.starts: dict[TopicPartition, int] = dict.fromkeys(self.logs, 0)
        self.groups: defaultdict[str, Group] = defaultdict(lambda: Group(self.logs))
        self.commits: list[tuple[str, Offsets]] = []
        self.on_commit: Callable[[str, Offsets], None] | None = None
        self._failures: Iterator[Exception] = iter(())
        self._hold: _Hold | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def append(  # noqa: PLR0913 - what a record has
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        offset: int | None = None,
        timestamp: int = 0,
    ) -> Record:
        """Append a record and return it; an `offset` above the next one leaves a gap, as compaction does."""
        log, end = self.logs[TopicPartition(topic, partition)], self.end(TopicPartition(topic, partition))
        offset = end if offset is None else offset
        if offset < end:
            raise ValueError(f"offset {offset} of {topic}[{partition}] is taken: the next one is {end}")
        sizes = (-1 if key is None else len(key), -1 if value is None else len(value))
        log.append(Record(topic, partition, offset, timestamp, 0, key, value, None, *sizes, tuple(headers)))
        self.wake()
        return log[-1]

    def end(self, partition: TopicPartition) -> int:
        """Return the end of a partition: one past its last record."""
        log = self.logs[partition]
        return log[-1].offset + 1 if log else self.starts[partition]

    def delete_records(self, partition: TopicPartition, before: int) -> None:
        """Delete the records below an offset, as retention does."""
        self.logs[partition] = [record for record in self.logs[partition] if record.offset >= before]
        self.starts[partition] = before
        self.wake()

    def fail_commits(self, error: Exception, times: int | None = 1) -> None:
        """Answer the next `times` commits with an error (None: all, until a call with 0).

        As in aiokafka, `commit()` itself retries a retriable error, under the membership of that moment.
        """
        self._failures = itertools.repeat(error) if times is None else itertools.repeat(error, times)

    @contextmanager
    def hold_commits(self) -> Generator[asyncio.Event]:
        """Answer no commit until the end of the block; the event is set as soon as one waits.

        A held commit has the generation under which it was sent, so a rebalance meanwhile fences it.
        """
        self._hold = hold = _Hold(asyncio.Event())
        try:
            yield hold.has_one
        finally:
            self._hold, hold.is_over = None, True
            self.wake()

    async def answer_commit(self, group_id: str, member_id: str, generation: int, offsets: Offsets) -> None:
        """Accept a commit, or raise the error of its answer: the broker's side of `FakeKafkaConsumer.commit`."""
        await asyncio.sleep(0)  # the network
        if self.on_commit is not None:
            self.on_commit(group_id, offsets)
        if (hold := self._hold) is not None:
            hold.has_one.set()
            while not hold.is_over:
                await self.next_change()
        if (error := next(self._failures, None)) is not None:
            raise error
        group = self.groups[group_id]
        if member_id not in group.members and (member_id or group.members):
            raise errors.UnknownMemberIdError  # a client that is no member may commit only while the group is empty
        if member_id and generation != group.generation:
            raise errors.IllegalGenerationError
        group.committed.update(offsets)
        self.commits.append((group_id, offsets))

    def wake(self) -> None:
        """Wake every consumer that waits for a change."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def next_change(self) -> asyncio.Future[None]:
        """Return a future that is done when there may be a change for a consumer."""
        waiter = asyncio.Future[None]()
        self._waiters.append(waiter)
        return waiter


@dataclass(eq=False)
class _Hold:
    """Commits that are not answered. Not an asyncio.Event, because the consumers may run in several event loops."""

    has_one: asyncio.Event
    is_over: bool = False


@dataclass(eq=False)
class Member:
    """A member of a group, as the broker and the consumer know it."""

    request_rejoin: Callable[[], None]
    topics: frozenset[str] = frozenset()
    id: str = ""
    generation: int = -1
    rejoin_needed: bool = False


class Group:
    """The broker's side of a consumer group."""

    def __init__(self, partitions: Iterable[TopicPartition]) -> None:
        self.committed: dict[TopicPartition, OffsetAndMetadata] = {}
        self.members: dict[str, Member] = {}
        self.generation: int = 0
        self._partitions = partitions
        self._joining: dict[str, asyncio.Future[list[TopicPartition] | None]] = {}
        self._ids = itertools.count(1)

    async def join(self, member: Member) -> list[TopicPartition] | None:
        """Return the member's partitions when all have joined; None if it was dropped from the group meanwhile."""
        if member.id not in self.members:
            member.id = f"member-{next(self._ids)}"
            self.members[member.id] = member
        joined = self._joining[member.id] = asyncio.Future[list[TopicPartition] | None]()
        self.rebalance()
        return await joined

    def drop(self, member_id: str) -> None:
        """Drop this member from the group."""
        joined = self._joining.pop(member_id, None)
        if joined is not None and not joined.done():
            joined.set_result(None)
        if self.members.pop(member_id, None) is not None:
            self.rebalance()

    def rebalance(self) -> None:
        """Make every member join again, and assign the partitions when all have joined."""
        for member_id, member in self.members.items():
            if member_id not in self._joining:
                member.request_rejoin()
        if not self.members or self._joining.keys() != self.members.keys():
            return
        self.generation += 1
        shares: dict[str, list[TopicPartition]] = {member_id: [] for member_id in self.members}
        turns = itertools.cycle(self.members.values())
        subscribed = frozenset[str]().union(*(member.topics for member in self.members.values()))
        for tp in sorted(tp for tp in self._partitions if tp.topic in subscribed):
            shares[next(member.id for member in turns if tp.topic in member.topics)].append(tp)
        joining, self._joining = self._joining, {}
        for member_id, joined in joining.items():
            self.members[member_id].rejoin_needed = False
            if not joined.done():
                joined.set_result(shares[member_id])
