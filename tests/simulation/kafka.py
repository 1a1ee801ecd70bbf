"""The simulated broker: the public fake behind a network that delays answers, fails and falls silent."""

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
"""A later answer may come after the timeout of the request."""
_RESOLUTION_SEC = 1e-6
# The number of the commit in flight: its offsets are of that moment, however often aiokafka retries it.
_sent_at: contextvars.ContextVar[float] = contextvars.ContextVar("sent_at")


class Witness(Protocol):
    """Is called for each event between one member and the broker."""

    def asks(self) -> int:
        """A request is sent; return its number."""
        ...

    def is_answered(self, request: int, error: Exception | None) -> None:
        """A request has ended."""

    def is_refused(self, partitions: Mapping[int, Exception]) -> None:
        """The broker takes a commit, except of these partitions."""

    def sends_commit(self) -> None:
        """The member sends a commit."""

    def has_committed(self, offsets: dict[TopicPartition, int], sent_at: float) -> None:
        """The broker accepts a commit."""

    def knows_committed(self, offsets: dict[TopicPartition, int], sent_at: float) -> None:
        """The member gets the broker's committed offsets."""

    def gets(self, record: Record) -> None:
        """A record is delivered to the member."""

    def revoking(self) -> None:
        """The revoke callback begins."""

    def revoked(self) -> None:
        """The revoke callback has ended."""

    def assigned(self, positions: dict[TopicPartition, int]) -> None:
        """Partitions are assigned, with these positions."""

    def resets(self, positions: dict[TopicPartition, int]) -> None:
        """A reset has found these positions, because nothing is committed."""

    def is_evicted(self) -> None:
        """The member leaves its group, because it has not fetched for too long."""

    def published(self, value: bytes | None) -> None:
        """The member gets the acknowledgement of a dead letter."""


class SimulatedKafka(FakeKafka):
    """A broker behind a network."""

    def __init__(self, partitions: int, rng: random.Random, witness: Callable[[], Witness]) -> None:
        super().__init__({TOPIC: partitions})
        self.rng = rng
        self._witness = witness
        self.silent_until = 0.0
        self.publishing_fails_until = 0.0
        self._refusals: dict[int, tuple[float, Exception]] = {}

    def refuse(self, partition: int, until: float, error: Exception) -> None:
        """Refuse commits of one partition with this error, until a moment."""
        self._refusals[partition] = (until, error)

    def refuse_no_more(self) -> None:
        """Take commits of all partitions again."""
        self._refusals.clear()

    def latency_sec(self) -> float:
        """Draw the delay of a message."""
        draw = self.rng.random()
        if draw < 0.4:
            return 0.0
        if draw < 0.98:
            return self.rng.random() * (0.02 if draw < 0.8 else 0.2)
        return self.rng.uniform(LATE_SEC, 4)

    async def travel(self) -> None:
        """Wait for the delay of a message, and while the broker is silent."""
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
    """A member's consumer, which reports its events to a witness; FastStream uses it like aiokafka's."""

    def __init__(self, kafka: SimulatedKafka, witness: Witness, plan: Plan, **options: Any) -> None:
        super().__init__(kafka=kafka, group_id=options["group_id"], auto_offset_reset=plan.reset)
        self._simulated = kafka
        self._witness = witness
        self._fetches_late = 0.1 if plan.delays_fetches else 0.0
        self._max_poll_interval_ms = plan.max_poll_sec * 1000
        # Heartbeats, which check the time since the last fetch, pause meanwhile.
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
            self._report_commit({partition: offset})
        return offset

    def _ask(self, fetch: Callable[[Any], Awaitable[Offsets]]) -> Any:
        async def ask(partitions: Iterable[TopicPartition]) -> Offsets:
            offsets = await fetch(partitions)
            self._report_commit({tp: entry.offset for tp, entry in offsets.items()})
            return offsets

        return ask

    def _report_commit(self, offsets: dict[TopicPartition, int]) -> None:
        self._witness.knows_committed(offsets, _sent_at.get(asyncio.get_running_loop().time()))

    def position_of(self, tp: TopicPartition) -> int | None:
        """Return the offset of the next record; None until it is found."""
        return self._assigned(tp).position

    def begins_at(self, tp: TopicPartition) -> int:
        """Return the positions of an assignment that is made now."""
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
        self._polls.check_later()

    @override
    async def _find(self, assignment: Any) -> None:
        await super()._find(assignment)
        states, committed = assignment.states, self._group.committed
        self._witness.resets({tp: states[tp].position for tp in states if tp not in committed})

    @override
    async def commit(self, offsets: Any = None) -> None:
        await self._witnessed(super().commit(offsets), commit_structure_validate(offsets))

    def _watch_outgoing(self, commit_offsets: Callable[[Any, Offsets], Awaitable[None]]) -> Any:
        """Report commits for an assignment that a `subscribe` at run time has given up."""

        async def commit(assignment: Any, offsets: Offsets) -> None:
            sending = commit_offsets(assignment, offsets)
            await (sending if assignment is self._subscription.assignment else self._witnessed(sending, offsets))

        return commit

    async def _witnessed(self, sending: Awaitable[None], offsets: Offsets) -> None:
        self._witness.sends_commit()
        _sent_at.set(asyncio.get_running_loop().time())
        await sending
        self._report_commit({tp: entry.offset for tp, entry in offsets.items()})


class _Polls:
    """When a consumer last fetched; as in aiokafka, a pending fetch counts as long as it is pending."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_sec: float, leave: Callable[[], None]) -> None:
        self._loop = loop
        self._limit_sec = limit_sec
        self._leave = leave
        self._waiting = 0
        self._last_ended = loop.time()
        self._timer = loop.call_later(limit_sec, self._check)

    @contextmanager
    def one(self) -> Generator[None]:
        """Count as a fetch until the end of the block."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._last_ended = self._loop.time()

    def _check(self) -> None:
        idle_sec = 0.0 if self._waiting else self._loop.time() - self._last_ended
        left_sec = self._limit_sec - idle_sec
        if left_sec < _RESOLUTION_SEC:
            self._leave()
            left_sec = self._limit_sec
        self._timer = self._loop.call_later(left_sec, self._check)

    def check_later(self) -> None:
        """Do not check at once: aiokafka sends the first heartbeat some time after it has joined."""
        self._timer.cancel()
        self._timer = self._loop.call_later(self._limit_sec, self._check)

    def end(self) -> None:
        """Stop checking."""
        self._timer.cancel()


class _Watched(ConsumerRebalanceListener):
    """A listener around that of FastStream and the library, which reports its calls."""

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
    """A producer of dead letters; sometimes the broker refuses."""

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
