"""Starts a program as a user would, produces records for it, reads its results, and stops it."""

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import TopicAlreadyExistsError

from testkit.brokers import Record, create_topic, end_offsets, produce, wait_until


ROOT = Path(__file__).parents[2]
# Tansu keeps a member that joins a group again waiting for twice the session timeout.
PATIENCE_SEC = 60
STOP_SEC = 30


class Program:
    """A process, its output in a file."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        bootstrap: Iterable[str],
        environ: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self._log = log
        environment = os.environ | {"KAFKA_BOOTSTRAP_SERVERS": ",".join(bootstrap)} | dict(environ or {})
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """Its output so far."""
        return self._log.read_text(errors="replace")

    def story(self) -> str:
        """A description of its state, for a failed test."""
        return f"exit status {self.process.poll()}, printed:\n{self.output[-5000:]}"

    def assert_alive(self) -> None:
        """Fail with its output if it has ended."""
        assert self.process.poll() is None, self.story()

    async def ended(self, timeout_sec: float = STOP_SEC) -> int:
        """Wait for its end; return its exit status."""
        await wait_until(lambda: self.process.poll() is not None, timeout_sec, self.story)
        status = self.process.poll()
        assert status is not None
        return status

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal; return its exit status."""
        self.process.send_signal(number)
        return await self.ended()


@contextmanager
def running(command: Sequence[str], log: Path, **options: Any):
    """Start a program; kill it at the end of the block."""
    program = Program(command, log, **options)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.wait()


async def ensure_topic(bootstrap: Sequence[str], name: str, partitions: int = 3) -> None:
    """Create a topic that a program knows by its name, unless an earlier run has left it."""
    with suppress(TopicAlreadyExistsError):
        await create_topic(bootstrap, name, partitions)


async def feed(bootstrap: Sequence[str], topic: str, values: Iterable[Any]) -> None:
    """Publish values as JSON."""
    await produce(bootstrap, topic, [Record(json.dumps(value).encode()) for value in values])


class Reader:
    """Reads the records of a topic from now on."""

    def __init__(self, consumer: AIOKafkaConsumer, decode: Callable[[bytes], Any]) -> None:
        self._consumer = consumer
        self._decode = decode
        self.values: list[Any] = []
        self.ends: dict[int, int] = {}
        """One past the last record, of each partition that has had any."""

    async def poll(self) -> list[Any]:
        """Return all values so far."""
        for place, records in (await self._consumer.getmany(timeout_ms=200)).items():
            self.values += [self._decode(record.value or b"null") for record in records]
            self.ends[place.partition] = records[-1].offset + 1
        return self.values

    async def until(self, field: str, expected: Iterable[Any], program: Program | None = None) -> list[Any]:
        """Wait until values with each of these in their field have come; return the values that have one of them."""
        wanted = set(expected)

        async def found() -> bool:
            if program is not None:
                program.assert_alive()
            return wanted <= {value[field] for value in await self.poll()}

        def missing() -> str:
            return f"still missing: {wanted - {value[field] for value in self.values}}; {program and program.story()}"

        await wait_until(found, PATIENCE_SEC, missing)
        return [value for value in self.values if value[field] in wanted]

    async def until_any(self, field: str, expected: Iterable[Any], program: Program) -> None:
        """Wait until the first of these values has arrived."""

        async def found() -> bool:
            program.assert_alive()
            await self.poll()
            return bool(self.counts(field, expected))

        await wait_until(found, PATIENCE_SEC, program.story)

    def counts(self, field: str, among: Iterable[Any]) -> Counter[Any]:
        """Return how often each of these values has arrived."""
        wanted = set(among)
        return Counter(value[field] for value in self.values if value[field] in wanted)


@asynccontextmanager
async def reading(
    bootstrap: Sequence[str], topic: str, decode: Callable[[bytes], Any] = json.loads
) -> AsyncGenerator[Reader, None]:
    """Read a topic from its end on."""
    ends = await end_offsets(bootstrap, topic)
    consumer = AIOKafkaConsumer(bootstrap_servers=list(bootstrap))
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, partition) for partition in ends]
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, ends[partition.partition])

        async def known() -> bool:
            # Tansu returns the true end only with the records: its answer to ListOffsets is too low.
            await consumer.getmany(timeout_ms=50)
            return all(consumer.highwater(partition) is not None for partition in partitions)

        await wait_until(known, PATIENCE_SEC, f"the ends of {topic}")
        for partition in partitions:
            consumer.seek(partition, consumer.highwater(partition))
        yield Reader(consumer, decode)
    finally:
        await consumer.stop()
