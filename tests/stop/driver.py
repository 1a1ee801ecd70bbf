"""Starts the services, feeds them, stops them, and compares what they did with what they were given."""

import asyncio
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from typing_extensions import override

from testkit.brokers import wait_until
from tests.stop.journal import Journal, Place
from tests.stop.plan import Plan


_ROOT = Path(__file__).parents[2]
_APP = "tests.stop.apps.hosts"


class Service:
    """A process with the service in it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.journal = Journal(Path(plan.journal))
        self._log = Path(plan.journal).with_suffix(".log")
        self._start()

    def _start(self) -> None:
        plan = self.plan
        program = (_APP,)
        if plan.host.endswith("-uvicorn"):
            program = ("uvicorn", f"{_APP}:app", "--port", "0", "--loop", plan.loop, "--log-level", "error")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore::DeprecationWarning:tests", "-m", *program],
                cwd=_ROOT,
                env=os.environ | plan.environ(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ask(self) -> None:
        """Have it do what its plan says on request, and return when that is done."""
        self.send(signal.SIGUSR1)
        await self.until(lambda: "request done" in self.journal.notes, 30, "the request is done")

    async def exit_code(self, timeout_sec: float = 30) -> int:
        """Return how it has ended."""
        await wait_until(lambda: self.returncode is not None, timeout_sec, lambda: self.story("it ends"))
        self.journal.read()
        assert self.returncode is not None
        return self.returncode

    @property
    def returncode(self) -> int | None:
        """How it has ended, if it has."""
        return self.process.poll()

    async def until(self, predicate: Any, timeout_sec: float, what: str) -> None:
        """Wait until something can be read from its journal."""

        def holds() -> bool:
            self.journal.read()
            if predicate():
                return True
            assert self.returncode is None, self.story(what)
            return False

        await wait_until(holds, timeout_sec, lambda: self.story(what))

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def story(self, wanted: str) -> str:
        """Tell where it stands, for a failed test."""
        journal = self.journal.read()
        return (
            f"{wanted}: {self.plan.host}, {self.plan.where}; exit code {self.returncode}; "
            f"{len(journal.started)} started, {len(journal.ended)} ended, {len(journal.cancelled)} cancelled; "
            f"notes {journal.notes}; output:\n{self.output[-6000:]}"
        )

    def kill(self) -> None:
        """End it in any case."""
        with self.process:
            self.process.kill()


class Successor(Service):
    """A service in a process that is forked off one that has imported everything already: it starts in no time."""

    @override
    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["faststream.kafka", "faststream_concurrent_kafka", "uvloop"])
        self._child = context.Process(target=_run, args=(self.plan.environ(), str(self._log)), daemon=True)
        self._child.start()

    @override
    def send(self, number: signal.Signals) -> None:
        assert self._child.pid is not None
        os.kill(self._child.pid, number)

    @property
    @override
    def returncode(self) -> int | None:
        return self._child.exitcode

    @override
    def kill(self) -> None:
        self._child.kill()
        self._child.join()
        self._child.close()


def _run(environ: dict[str, str], log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environ)
    runpy.run_module(_APP, run_name="__main__")


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
