"""A worker that writes down what it does: in the test's process, or as `python -m tests.integration.second_worker`."""

import asyncio
import dataclasses
import json
import random
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from typing_extensions import override

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from tests.lines import Appender, Follower, die_with_the_starter


_ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker is to do."""

    bootstrap_servers: list[str]
    topic: str
    journal: str
    settings: dict[str, Any]


@dataclasses.dataclass(eq=False)
class Run:
    """One run of one record; times in seconds of a clock that all processes share."""

    partition: int
    offset: int
    began: float
    ended: float | None = None


class Life:
    """What one process has done."""

    def __init__(self, path: Path) -> None:
        self.runs: list[Run] = []
        self.revoked_at: list[float] = []
        self._lines = Follower(path)

    def read(self) -> "Life":
        """Take in what is new in its journal."""
        for line in self._lines.new_lines():
            self._take(*json.loads(line))
        return self

    def _take(self, event: str, at: float, *numbers: int) -> None:
        if event == "revoked":
            self.revoked_at.append(at)
        elif event == "began":
            self.runs.append(Run(*numbers, began=at))
        else:
            self.runs[numbers[0]].ended = at

    @property
    def running(self) -> int:
        """How many are being handled."""
        return sum(run.ended is None for run in self.runs)


class Writer(ConsumerRebalanceListener):
    """The handler and the listener of a worker, which write into its journal."""

    def __init__(self, path: str) -> None:
        self._lines = Appender(path)
        self._runs = 0

    def _write(self, event: str, *numbers: int) -> None:
        self._lines.write(json.dumps([event, time.monotonic(), *numbers]))

    async def handle(self, number: int, message: KafkaMessage) -> None:
        """Take 0.3 to 2 seconds over a record."""
        run, self._runs = self._runs, self._runs + 1
        raw: Any = message.raw_message
        self._write("began", raw.partition, raw.offset)
        await asyncio.sleep(random.Random(number).uniform(0.3, 2))  # handler  # noqa: S311
        self._write("ended", run)

    @override
    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if revoked:
            self._write("revoked")

    @override
    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Nothing to write down."""


def new_app(plan: Plan) -> FastStream:
    """Return an application that handles the topic concurrently."""
    broker = KafkaBroker(plan.bootstrap_servers, middlewares=[KafkaConcurrentProcessingMiddleware], logger=None)
    writer = Writer(plan.journal)
    subscriber: Any = broker.subscriber(
        plan.topic,
        group_id=f"{plan.topic}-group",
        ack_policy=AckPolicy.MANUAL,
        auto_offset_reset="earliest",
        listener=writer,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=200,
    )
    subscriber(writer.handle)
    app = FastStream(broker, logger=None)

    async def begin() -> None:
        await initialize_concurrent_processing(app.context, **plan.settings)

    async def end() -> None:
        await stop_concurrent_processing(app.context)

    app.on_startup(begin)
    app.after_shutdown(end)
    return app


class Process:
    """The worker in a process of its own."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._process: asyncio.subprocess.Process
        self.life = Life(Path(plan.journal))

    async def start(self) -> None:
        """Start it."""
        arguments = ("-m", "tests.integration.second_worker", json.dumps(dataclasses.asdict(self._plan)))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=_ROOT, stdin=asyncio.subprocess.PIPE
        )

    async def stop(self) -> None:
        """Stop it as an orchestrator does."""
        self._process.send_signal(signal.SIGTERM)
        assert await self._process.wait() == 0

    async def kill(self) -> None:
        """End it in any case."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


if __name__ == "__main__":
    die_with_the_starter()
    asyncio.run(new_app(Plan(**json.loads(sys.argv[1]))).run())
