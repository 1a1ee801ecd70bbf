"""Starts services, produces records for them, stops them, and compares their journals with these records."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from typing_extensions import override

from testkit.journal import Place
from testkit.member import Member
from tests.stop.plan import Plan


_APP = "tests.stop.apps.hosts"


class Service(Member):
    """A process that runs the service; forked, because that is faster, or started as a user does."""

    def __init__(self, plan: Plan, *, forked: bool = True) -> None:
        self.plan = plan
        program: tuple[str, ...] = (_APP,)
        if plan.host.endswith("-uvicorn"):
            program = ("uvicorn", f"{_APP}:app", "--port", "0", "--loop", plan.loop, "--log-level", "error")
        super().__init__(program, Path(plan.journal), plan.environ(), forked=forked)

    async def ask(self) -> None:
        """Send SIGUSR1, and return when the process has done what its plan requests."""
        self.send(signal.SIGUSR1)
        await self.until(lambda: "request done" in self.journal.notes, 30, "the request is done")

    @override
    def story(self, wanted: str) -> str:
        return f"{self.plan.host}, {self.plan.where}: {super().story(wanted)}"


class Feed:
    """Produces records, at once or in the background."""

    def __init__(self, bootstrap_servers: Sequence[str], topic: str, partitions: int) -> None:
        self._bootstrap_servers = list(bootstrap_servers)
        self._producer: AIOKafkaProducer
        self.topic = topic
        self._partitions = partitions
        self._taken = 0
        self.places: set[Place] = set()

    async def go_on(self) -> None:
        """Connect."""
        self._producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap_servers, acks="all", linger_ms=1)
        await self._producer.start()

    async def pause(self) -> None:
        """Close the producer, whatever state the broker is in."""
        await self._producer.stop()

    async def add(self, count: int, **work: Any) -> list[Place]:
        """Produce records to the partitions in turn; handlers take `seconds`, by default 0.3 to 0.8."""
        sent = []
        for _ in range(count):
            self._taken += 1
            value = json.dumps({"seconds": 0.3 + (self._taken * 7 % 6) / 10} | work).encode()
            sent.append(await self._producer.send(self.topic, value, partition=self._taken % self._partitions))
        places = [Place(each.topic, each.partition, each.offset) for each in [await each for each in sent]]
        self.places.update(places)
        return places

    @asynccontextmanager
    async def flowing(self, **work: Any) -> AsyncGenerator[None]:
        """Produce records until the end of the block."""

        enough = asyncio.Event()

        async def flow() -> None:
            while not enough.is_set():
                await self.add(4, **work)
                await asyncio.sleep(0.02)  # paced

        flowing = asyncio.create_task(flow())
        try:
            yield
        finally:
            enough.set()
            await flowing


@asynccontextmanager
async def feeding(bootstrap_servers: Sequence[str], topic: str, partitions: int) -> AsyncGenerator[Feed]:
    """Start the producer; close it at the end of the block."""
    feed = Feed(bootstrap_servers, topic, partitions)
    await feed.go_on()
    try:
        yield feed
    finally:
        await feed.pause()


@asynccontextmanager
async def bystander(bootstrap_servers: Sequence[str], group: str, topic: str) -> AsyncGenerator[None]:
    """Add another member to the group, which consumes another topic."""
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=list(bootstrap_servers),
        group_id=group,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=100,
        enable_auto_commit=False,
    ):
        yield
