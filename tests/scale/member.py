"""Starts members of a group and ends them, feeds their topic, and reads what they leave behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from testkit.brokers import wait_until
from tests.scale.journal import Life
from tests.scale.oracle import Letter
from tests.scale.script import Script
from tests.scale.worker import Plan


_ROOT = Path(__file__).parents[2]
# Small, so that a fetch brings some of each partition: with large ones a member takes them one after the other.
_BATCH_BYTES = 16_000


class Member:
    """A process in the group."""

    def __init__(self, plan: Plan) -> None:
        path = Path(plan.journal)
        self.life = Life(path)
        self._log = path.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.scale.worker"],
                cwd=_ROOT,
                env=os.environ | plan.environ(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def has_ended(self) -> bool:
        """Whether it has gone."""
        return self._process.poll() is not None

    async def stop(self, timeout_sec: float = 40) -> None:
        """Stop it as an orchestrator does, and wait until it has gone."""
        self._process.send_signal(signal.SIGTERM)
        await wait_until(lambda: self.has_ended, timeout_sec, lambda: f"{self.story()} ends")
        self.life.read()
        assert self._process.returncode == 0, self.story()

    def kill(self) -> None:
        """End it at once, in any case."""
        with self._process:
            self._process.kill()

    def story(self) -> str:
        """Tell where it stands, for a failed test."""
        log = self._log.read_text(errors="replace")
        life = self.life.read()
        return (
            f"{life.name}: exit code {self._process.poll()}, {len(life.runs)} started, {life.in_flight} in flight; "
            f"its output ends:\n{log[-3000:]}"
        )


async def feed(bootstrap_servers: Sequence[str], topic: str, script: Script) -> None:
    """Produce all records: those of a partition in the order of their numbers, its offsets from 0 on."""
    producer = AIOKafkaProducer(bootstrap_servers=list(bootstrap_servers), acks="all", max_batch_size=_BATCH_BYTES)
    async with producer:
        for partition in range(script.partitions):
            batch, first = producer.create_batch(), 0
            numbers = [number for number in range(script.count) if script.partition(number) == partition]
            sent = []
            for offset, number in enumerate(numbers):
                record = {"key": script.key(number), "value": script.value(number), "timestamp": None}
                if batch.append(**record) is None:
                    sent.append((first, await producer.send_batch(batch, topic, partition=partition)))
                    batch, first = producer.create_batch(), offset
                    batch.append(**record)
            sent.append((first, await producer.send_batch(batch, topic, partition=partition)))
            for first, each in sent:
                assert (await each).offset == first, "a record was produced twice"


async def dead_letters(bootstrap_servers: Sequence[str], topic: str, partitions: int) -> list[Letter]:
    """Return everything in the dead letter topic, each of its partitions in order."""
    letters = []
    consumer = AIOKafkaConsumer(
        bootstrap_servers=list(bootstrap_servers), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    async with consumer:
        everything = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(everything)

        async def all_read() -> bool:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                letters.extend(map(_letter, records))
            ends = {each: consumer.highwater(each) for each in everything}
            return all([end is not None and await consumer.position(each) >= end for each, end in ends.items()])

        await wait_until(all_read, 30, f"all of {topic} is read")
    return letters


def _letter(raw) -> Letter:
    headers = {name.removeprefix("kafka_dlt-"): value.decode() for name, value in raw.headers}
    return Letter(
        int(raw.value.split()[-1]),
        raw.value,
        raw.key,
        int(headers["original-partition"]),
        int(headers["original-offset"]),
        int(headers["attempts"]),
        headers["exception-fqcn"],
        raw.partition,
    )
