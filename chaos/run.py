"""One run: brokers, producer, workers and faults, until everything is committed; leaves its evidence in a folder."""

import asyncio
import dataclasses
import json
import sys
from array import array
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from chaos.figures import Findings, findings_of
from chaos.group import Group, path_of, until
from chaos.nemesis import BROKERS, WORKERS, Nemesis
from chaos.plan import SESSION_TIMEOUT_SEC, plan
from testkit.brokers import ApacheKafka, committed, create_topic, end_offsets
from testkit.brokers.process import Process
from testkit.history import History, Topic
from testkit.journal import Journal
from testkit.load import Load
from testkit.log import Log, LogWriter
from testkit.worker import Task


TOPIC, GROUP, DEAD_TOPIC = "chaos", "chaos", "chaos-dead"
BROKER_SETTINGS = {"min.insync.replicas": 2}
HEAP_MB = 384
_FIRST_ASSIGNMENT_SEC = 60.0
# The time to catch up after the last fault, including the slowest restart of a broker.
_CATCH_UP_SEC = 150.0
_READ_SEC = 180.0
_LOG, _PRODUCER, _ABOUT = "nemesis.log", "producer.journal", "run.json"
_SUBSCRIBER = {
    "session_timeout_ms": int(SESSION_TIMEOUT_SEC * 1_000),
    "heartbeat_interval_ms": 500,
    # Small, so that a fetch returns records of each partition: with large fetches a member reads one after the other.
    "max_partition_fetch_bytes": 32_000,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The settings of a run."""

    seed: int
    minutes: float
    records: int
    gap_sec: float
    """Seconds from one fault to the next, on average."""
    storms: bool = False
    """Whether handlers also fail, so that there are retries, dead letters and time limits."""

    @property
    def load(self) -> Load:
        """The records: most are handled quickly, some slowly."""
        return Load(seed=self.seed, count=self.records, quick_sec=(0.0, 0.02), slow_share=0.002, storms=self.storms)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the settings of the run whose evidence is in a folder."""
        return cls(**json.loads((folder / _ABOUT).read_text())["settings"])


async def run(asked: RunSettings, kafka: ApacheKafka, folder: Path, say: Callable[[str], object]) -> str:
    """Make the run, and end all of its processes; return a description of what did not end in time, if anything."""
    log = LogWriter(folder / _LOG)
    where, load, seconds = kafka.bootstrap_servers, asked.load, asked.minutes * 60

    def task(journal: Path) -> str:
        return Task(
            bootstrap_servers=where,
            topic=TOPIC,
            group=GROUP,
            journal=str(journal),
            load=load,
            dead_topic=DEAD_TOPIC if asked.storms else None,
            subscriber=_SUBSCRIBER,
        ).to_json()

    group = Group(folder, log, task)
    said = folder / _PRODUCER
    producer = Process([sys.executable, "-m", "chaos.producer", task(said), str(seconds)], folder / "producer.log")
    for topic in (TOPIC, DEAD_TOPIC):
        await create_topic(
            where, topic, load.partitions, replication_factor=BROKERS, config={"min.insync.replicas": "2"}
        )
    keeper = asyncio.create_task(group.keep())
    try:
        group.wanted = WORKERS
        if not await group.whole(_FIRST_ASSIGNMENT_SEC):
            return "the workers did not join"
        producer.start()
        faults = plan(asked.seed, seconds=seconds, gap_sec=asked.gap_sec)
        if not await _within(seconds + _CATCH_UP_SEC, Nemesis(kafka, group, log, say).run(faults)):
            return "the faults did not come to their end"
        await until(lambda: not producer.alive, seconds + _CATCH_UP_SEC)
        if not any(line.startswith("x ") for line in _lines_of(said)):
            return f"the producer did not come to its end: {producer.log_tail()}"
        problem = await _everything_committed(where, say)
        group.wanted = 0
        for each in group.living:
            group.stop(each, "-")
        await asyncio.gather(*map(group.gone, group.living))
        await asyncio.wait({keeper}, timeout=0.3)
        numbers = await _read_back(where, load.partitions)
        for partition, each in enumerate(numbers):
            (folder / f"topic-{partition}.numbers").write_bytes(each.tobytes())
        about = {"settings": dataclasses.asdict(asked), "problem": problem}
        (folder / _ABOUT).write_text(json.dumps(about))
        return problem
    finally:
        keeper.cancel()
        group.end()
        producer.kill()


async def _within(timeout_sec: float, work: Coroutine[Any, Any, None]) -> bool:
    deadline = asyncio.timeout(timeout_sec)
    try:
        async with deadline:
            await work
    except TimeoutError:
        if not deadline.expired():
            raise
    return not deadline.expired()


async def _everything_committed(where: list[str], say: Callable[[str], object]) -> str:
    ends = {partition: end for partition, end in (await end_offsets(where, TOPIC)).items() if end}
    say(f"  everything is produced: {sum(ends.values()):,} records")
    deadline = asyncio.get_running_loop().time() + _CATCH_UP_SEC
    while (now := await committed(where, GROUP, TOPIC)) != ends:
        if asyncio.get_running_loop().time() > deadline:
            return f"not committed within {_CATCH_UP_SEC} s of the last fault: {now}, and not {ends}"
        await asyncio.sleep(0.2)
    return ""


async def _read_back(where: list[str], partitions: int) -> "list[array[int]]":
    found = [array("I") for _ in range(partitions)]
    consumer = AIOKafkaConsumer(bootstrap_servers=where, enable_auto_commit=False, auto_offset_reset="earliest")
    async with consumer, asyncio.timeout(_READ_SEC):
        everything = [TopicPartition(TOPIC, partition) for partition in range(partitions)]
        consumer.assign(everything)
        ends = await consumer.end_offsets(everything)
        while any([await consumer.position(each) < end for each, end in ends.items()]):
            for each, records in (await consumer.getmany(timeout_ms=200)).items():
                found[each.partition].extend(int((record.value or b"").split()[-1]) for record in records)
    return found


def _lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def analyse(folder: Path) -> Findings:
    """Evaluate the evidence in a run's folder."""
    load = RunSettings.of(folder).load
    log = Log((folder / _LOG).read_text().splitlines())
    numbers = []
    for partition in range(load.partitions):
        numbers.append(array("I"))
        numbers[-1].frombytes((folder / f"topic-{partition}.numbers").read_bytes())
    return findings_of(
        History(
            load=load,
            topic=Topic.of(numbers, load.count),
            journals={index: Journal(path_of(folder, index)).read() for index in log.started},
            log=log,
            failed=sum(line.startswith("f ") for line in _lines_of(folder / _PRODUCER)),
        )
    )
