"""Starts the services, feeds them, stops them, and compares what they did with what they were given."""

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
    """A process with the service in it; `forked` starts it sooner, and otherwise it is started as a user does."""

    def __init__(self, plan: Plan, *, forked: bool = True) -> None:
        self.plan = plan
        program: tuple[str, ...] = (_APP,)
        if plan.host.endswith("-uvicorn"):
            program = ("uvicorn", f"{_APP}:app", "--port", "0", "--loop", plan.loop, "--log-level", "error")
        super().__init__(program, Path(plan.journal), plan.environ(), forked=forked)

    async def ask(self) -> None:
        """Have it do what its plan says on request, and return when that is done."""
        self.send(signal.SIGUSR1)
        await self.until(lambda: "request done" in self.journal.notes, 30, "the request is done")

    @override
    def story(self, wanted: str) -> str:
        return f"{self.plan.host}, {self.plan.where}: {super().story(wanted)}"


class Feed:
    """Records that are produced, at once or while something else goes on."""

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
        """Let go of the broker, whatever becomes of it meanwhile."""
        await self._producer.stop()

    async def add(self, count: int, **work: Any) -> list[Place]:
        """Produce records, the partitions taking turns; without `seconds`, from 0.3 to 0.8."""
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
        """Go on adding records for as long as the block takes."""

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
    """Be able to produce."""
    feed = Feed(bootstrap_servers, topic, partitions)
    await feed.go_on()
    try:
        yield feed
    finally:
        await feed.pause()


@asynccontextmanager
async def bystander(bootstrap_servers: Sequence[str], group: str, topic: str) -> AsyncGenerator[None]:
    """Have another member in the group, which takes its partitions from another topic."""
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=list(bootstrap_servers),
        group_id=group,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=100,
        enable_auto_commit=False,
    ):
        yield
