"""The simulated broker: the public fake, with a network in between that is late, fails and falls silent."""

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaTimeoutError
from aiokafka.util import commit_structure_validate
from typing_extensions import override

from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer
from faststream_concurrent_kafka.testing.broker import Offsets, Record
from tests.simulation.plan import DEAD_TOPIC, Plan


TOPIC = "orders"
GROUP = "billing"
LATE_SEC = 0.5
"""An answer that is later than this may come too late for what waits for it."""
_RESOLUTION_SEC = 1e-6
# Of the commit that is on its way: its offsets are of that moment, however often it is tried again.
_sent_at: contextvars.ContextVar[float] = contextvars.ContextVar("sent_at")


class Witness(Protocol):
    """Sees what passes between one member and the broker."""

    def asks(self) -> int:
        """A request is on its way; return its number."""
        ...

    def is_answered(self, request: int, error: Exception | None) -> None:
        """It has come to its end."""

    def is_refused(self, partitions: Mapping[int, Exception]) -> None:
        """The broker takes it, but not of these partitions."""

    def sends_commit(self) -> None:
        """A commit leaves the member."""

    def has_committed(self, offsets: dict[TopicPartition, int], sent_at: float) -> None:
        """The broker accepts a commit."""

    def is_told_of_commit(self, offsets: dict[TopicPartition, int], sent_at: float) -> None:
        """The member learns what is committed, of what it has sent at that moment."""

    def gets(self, record: Record) -> None:
        """A record is delivered."""

    def revoking(self) -> None:
        """The revoke callback begins."""

    def revoked(self) -> None:
        """The revoke callback has ended."""

    def assigned(self, positions: dict[TopicPartition, int]) -> None:
        """Partitions are assigned, and read from these offsets on."""

    def resets(self, positions: dict[TopicPartition, int]) -> None:
        """Nothing is committed of these, and they are read from these offsets on."""

    def is_evicted(self) -> None:
        """It has not fetched for too long, and leaves its group."""

    def published(self, value: bytes | None) -> None:
        """A dead letter is acknowledged, and the member knows it."""


class SimulatedKafka(FakeKafka):
    """A broker at the other end of a network."""

    def __init__(self, partitions: int, rng: random.Random, witness: Callable[[], Witness]) -> None:
        super().__init__({TOPIC: partitions})
        self.rng = rng
        self._witness = witness
        self.silent_until = 0.0
        self.publishing_fails_until = 0.0
        self._refusals: dict[int, tuple[float, Exception]] = {}

    def refuse(self, partition: int, until: float, error: Exception) -> None:
        """Answer commits of one partition with an error for a while."""
        self._refusals[partition] = (until, error)

    def refuse_no_more(self) -> None:
        """Take commits of all partitions again."""
        self._refusals.clear()

    def latency_sec(self) -> float:
        """Draw how long something is on its way."""
        draw = self.rng.random()
        if draw < 0.4:
            return 0.0
        if draw < 0.98:
            return self.rng.random() * (0.02 if draw < 0.8 else 0.2)
        return self.rng.uniform(LATE_SEC, 4)

    async def travel(self) -> None:
        """Be on the way for a while, and wait for a broker that is silent."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.latency_sec())
        while self.silent_until > loop.time():  # noqa: ASYNC110 - it says until when
            await asyncio.sleep(self.silent_until - loop.time())

    @override
    async def answer_commit(self, group_id: str, member_id: str, generation: int, offsets: Offsets) -> None:
        witness, failure = self._witness(), None
        refusals: dict[int, Exception] = {}
        request = witness.asks()
        try:
            await self.travel()
            now = asyncio.get_running_loop().time()
            refusals = {place: error for place, (until, error) in self._refusals.items() if until > now}
            taken = {tp: entry for tp, entry in offsets.items() if tp.partition not in refusals}
            await super().answer_commit(group_id, member_id, generation, taken)
            witness.has_committed({tp: entry.offset for tp, entry in taken.items()}, _sent_at.get())
            await self.travel()
        except Exception as error:
            failure = error
            raise
        finally:
            witness.is_answered(request, failure)
        if refused := {tp.partition: refusals[tp.partition] for tp in sorted(offsets) if tp.partition in refusals}:
            witness.is_refused(refused)
            raise next(iter(refused.values()))


class SimulatedConsumer(FakeKafkaConsumer):
    """A member's consumer, which reports what it does to a witness; FastStream takes it for aiokafka's."""

    def __init__(self, kafka: SimulatedKafka, witness: Witness, plan: Plan, **options: Any) -> None:
        super().__init__(kafka=kafka, group_id=options["group_id"], auto_offset_reset=plan.reset)
        self._simulated = kafka
        self._witness = witness
        self._fetches_late = 0.1 if plan.delays_fetches else 0.0
        self._max_poll_interval_ms = plan.max_poll_sec * 1000
        # There are no heartbeats meanwhile, which is where aiokafka looks at the time since the last fetch.
        self.is_joining = True
        self._polls = _Polls(asyncio.get_running_loop(), plan.max_poll_sec, self._leave_idle)
        self._subscription.fetch_context = self._polls.one

    @override
    def subscribe(
        self, topics: Iterable[str], listener: ConsumerRebalanceListener | None = None, pattern: None = None
    ) -> None:
        super().subscribe(topics, _Watched(listener, self, self._witness))

    @override
    async def _travel(self) -> None:
        await self._simulated.travel()

    @override
    async def start(self) -> None:
        await super().start()
        self._coordinator.fetch_committed_offsets = self._ask(self._coordinator.fetch_committed_offsets)
        self._coordinator.commit_offsets = self._watch_outgoing(self._coordinator.commit_offsets)

    @override
    async def stop(self) -> None:
        self._polls.end()
        await super().stop()

    @override
    async def getone(self, *partitions: TopicPartition) -> Record:
        with self._polls.one():
            if self._simulated.rng.random() < self._fetches_late:
                await self._simulated.travel()
            record = await super().getone(*partitions)
        self._witness.gets(record)
        return record

    @override
    async def getmany(self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None) -> Any:
        with self._polls.one():
            return await super().getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)

    @override
    async def committed(self, partition: TopicPartition) -> int | None:
        offset = await super().committed(partition)
        if offset is not None:
            self._tell_of_commit({partition: offset})
        return offset

    def _ask(self, fetch: Callable[[Any], Awaitable[Offsets]]) -> Any:
        async def ask(partitions: Iterable[TopicPartition]) -> Offsets:
            offsets = await fetch(partitions)
            self._tell_of_commit({tp: entry.offset for tp, entry in offsets.items()})
            return offsets

        return ask

    def _tell_of_commit(self, offsets: dict[TopicPartition, int]) -> None:
        self._witness.is_told_of_commit(offsets, _sent_at.get(asyncio.get_running_loop().time()))

    def position_of(self, tp: TopicPartition) -> int | None:
        """Return the offset of the next record; None until it is found."""
        return self._assigned(tp).position

    def begins_at(self, tp: TopicPartition) -> int:
        """Return where an assignment of now will be read from."""
        if (entry := self._group.committed.get(tp)) is not None:
            return entry.offset
        return self._simulated.starts[tp] if self._auto_offset_reset == "earliest" else self._simulated.end(tp)

    def _leave_idle(self) -> None:
        if self._member.id in self._group.members and not self.is_joining:
            self._witness.is_evicted()
            self.lose_membership()

    @override
    def _set_assignment(self, partitions: Iterable[TopicPartition]) -> None:
        super()._set_assignment(partitions)
        self.is_joining = False

    @override
    async def _find(self, assignment: Any) -> None:
        await super()._find(assignment)
        states, committed = assignment.states, self._group.committed
        self._witness.resets({tp: states[tp].position for tp in states if tp not in committed})

    @override
    async def commit(self, offsets: Any = None) -> None:
        await self._witnessed(super().commit(offsets), commit_structure_validate(offsets))

    def _watch_outgoing(self, commit_offsets: Callable[[Any, Offsets], Awaitable[None]]) -> Any:
        """See what is committed for an assignment that a `subscribe` at run time has given up."""

        async def commit(assignment: Any, offsets: Offsets) -> None:
            sending = commit_offsets(assignment, offsets)
            await (sending if assignment is self._subscription.assignment else self._witnessed(sending, offsets))

        return commit

    async def _witnessed(self, sending: Awaitable[None], offsets: Offsets) -> None:
        self._witness.sends_commit()
        _sent_at.set(asyncio.get_running_loop().time())
        await sending
        self._tell_of_commit({tp: entry.offset for tp, entry in offsets.items()})


class _Polls:
    """When a consumer last fetched: as aiokafka has it, a fetch that waits counts for as long as it waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_sec: float, leave: Callable[[], None]) -> None:
        self._loop = loop
        self._limit_sec = limit_sec
        self._leave = leave
        self._waiting = 0
        self._last_ended = loop.time()
        self._timer = loop.call_later(limit_sec, self._look)

    @contextmanager
    def one(self) -> Generator[None]:
        """Be a fetch."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._last_ended = self._loop.time()

    def _look(self) -> None:
        idle_sec = 0.0 if self._waiting else self._loop.time() - self._last_ended
        left_sec = self._limit_sec - idle_sec
        if left_sec < _RESOLUTION_SEC:
            self._leave()
            left_sec = self._limit_sec
        self._timer = self._loop.call_later(left_sec, self._look)

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()


class _Watched(ConsumerRebalanceListener):
    """Around the listener that FastStream and the library have made."""

    def __init__(self, listener: ConsumerRebalanceListener | None, consumer: Any, witness: Witness) -> None:
        self._listener: Any = listener
        self._consumer = consumer
        self._witness = witness

    @override
    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        self._witness.revoking()
        try:
            if self._listener is not None:
                await self._listener.on_partitions_revoked(revoked)
        finally:
            self._witness.revoked()
            self._consumer.is_joining = True

    @override
    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._witness.assigned({tp: self._consumer.begins_at(tp) for tp in sorted(assigned)})
        if self._listener is not None:
            await self._listener.on_partitions_assigned(assigned)


class SimulatedProducer:
    """Publishes dead letters; now and then the broker refuses."""

    def __init__(self, kafka: SimulatedKafka, witness: Witness) -> None:
        self._kafka = kafka
        self._witness = witness

    async def start(self) -> None:
        await self._kafka.travel()

    async def stop(self) -> None:
        pass

    async def send_and_wait(self, topic: str, **record: Any) -> None:
        await self._kafka.travel()
        if self._kafka.publishing_fails_until > asyncio.get_running_loop().time():
            raise KafkaTimeoutError
        if topic != DEAD_TOPIC:
            raise AssertionError(topic)
        await self._kafka.travel()
        self._witness.published(record["value"])
