"""The simulated broker: the public fake, with a network in between that is late, fails and falls silent."""

import asyncio
import contextvars
import random
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaTimeoutError
from aiokafka.util import commit_structure_validate
from typing_extensions import override

from faststream_concurrent_kafka.fake_kafka import Offsets, Record
from faststream_concurrent_kafka.testing import FakeKafka, FakeKafkaConsumer
from tests.simulation.plan import DEAD_TOPIC


TOPIC = "orders"
GROUP = "billing"
LATE_SEC = 0.5
"""An answer that is later than this may come too late for what waits for it."""
# Of the commit that is on its way: its offsets are of that moment, however often it is tried again.
_sent_at: contextvars.ContextVar[float] = contextvars.ContextVar("sent_at")


class Witness(Protocol):
    """Who is told what passes between one member and the broker."""

    def asks(self) -> int:
        """A request is on its way; return its number."""
        ...

    def is_answered(self, request: int, error: Exception | None) -> None:
        """It has come to its end."""

    def sends_commit(self) -> None:
        """A commit leaves the member."""

    def has_committed(self, offsets: dict[TopicPartition, int], sent_at: float) -> None:
        """The broker accepts a commit."""

    def is_told_of_commit(self, offsets: dict[TopicPartition, int]) -> None:
        """The member sees the answer."""

    def gets(self, record: Record) -> None:
        """A record is delivered."""

    def revoking(self) -> None:
        """The revoke callback begins."""

    def revoked(self) -> None:
        """The revoke callback has ended."""

    def assigned(self, positions: dict[TopicPartition, int]) -> None:
        """Partitions are assigned, and read from these offsets on."""

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
        request = witness.asks()
        try:
            await self.travel()
            await super().answer_commit(group_id, member_id, generation, offsets)
            witness.has_committed({tp: entry.offset for tp, entry in offsets.items()}, _sent_at.get())
            await self.travel()
        except Exception as error:
            failure = error
            raise
        finally:
            witness.is_answered(request, failure)


class SimulatedConsumer(FakeKafkaConsumer):
    """A member's consumer, which tells a witness what it does; FastStream takes it for aiokafka's."""

    def __init__(self, kafka: SimulatedKafka, witness: Witness, **options: Any) -> None:
        super().__init__(kafka=kafka, group_id=options["group_id"], auto_offset_reset="earliest")
        self._simulated = kafka
        self._witness = witness

    @override
    def subscribe(
        self, topics: Iterable[str], listener: ConsumerRebalanceListener | None = None, pattern: None = None
    ) -> None:
        super().subscribe(topics, _Watched(listener, self, self._witness))

    @override
    async def getone(self, *partitions: TopicPartition) -> Record:
        if self._simulated.rng.random() < 0.1:
            await self._simulated.travel()
        record = await super().getone(*partitions)
        self._witness.gets(record)
        return record

    @override
    async def commit(self, offsets: Any = None) -> None:
        self._witness.sends_commit()
        _sent_at.set(asyncio.get_running_loop().time())
        await super().commit(offsets)
        self._witness.is_told_of_commit({tp: entry.offset for tp, entry in commit_structure_validate(offsets).items()})


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
            await self._listener.on_partitions_revoked(revoked)
        finally:
            self._witness.revoked()

    @override
    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._witness.assigned({tp: await self._consumer.position(tp) for tp in sorted(assigned)})
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
