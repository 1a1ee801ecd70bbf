"""A group on a topic with a load: members join and leave at given moments, and the oracle judges the journals."""

import json
import signal
from collections.abc import Sequence
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from testkit.brokers import committed, wait_until
from testkit.history import History, Letter, Topic
from testkit.journal import Journal
from testkit.load import Load
from testkit.log import Log, LogWriter
from testkit.member import Member
from testkit.oracle import Oracle
from testkit.worker import Task


DEAD_PARTITIONS = 4
_SUBSCRIBER = {"heartbeat_interval_ms": 100, "fetch_max_wait_ms": 100, "max_partition_fetch_bytes": 32_000}
# Small, so that a fetch returns records of each partition: with large fetches a member reads one after the other.
_BATCH_BYTES = 16_000


class ScriptedGroup:
    """The members of a group, one after the other or side by side, and how much they have handled."""

    def __init__(self, load: Load, *, bootstrap_servers, topics, folder, settings):
        self._load = load
        self._bootstrap_servers = bootstrap_servers
        self.topic, self._dead_topic = topics
        self._folder = folder
        self._settings = settings
        self._name = uuid4().hex
        self._path = folder / "log"
        self._log = LogWriter(self._path)
        self._progress: dict[Journal, int] = {}
        self.members: list[Member] = []
        self.finished: set[int] = set()

    def join(self) -> Member:
        """Start one more member."""
        task = Task(
            bootstrap_servers=list(self._bootstrap_servers),
            topic=self.topic,
            dead_topic=self._dead_topic,
            group=self._name,
            journal=str(self._folder / f"member-{len(self.members) + 1}.journal"),
            load=self._load,
            settings=self._settings,
            subscriber=_SUBSCRIBER,
        )
        self.members.append(task.start())
        self._log.write("start", len(self.members))
        return self.members[-1]

    def end(self) -> None:
        """Kill all members that still run."""
        for member in self.members:
            member.kill()

    async def until(self, share: float, *running: Member) -> None:
        """Wait until this share of the records that have handlers has finished."""
        count = sum(bool(self._load.steps(number)) for number in range(self._load.count))

        def reached() -> bool:
            for member in self.members:
                self._take_in(member.journal.read())
            for member in running:
                assert member.returncode is None, member.story("it goes on")
            return len(self.finished) >= int(share * count)

        await wait_until(
            reached,
            120,
            lambda: "\n".join(each.story(f"{share:.0%} of {count}, but {len(self.finished)}") for each in running),
        )

    def _take_in(self, journal: Journal) -> None:
        for run in journal.ended[self._progress.get(journal, 0) :]:
            if self._load.is_final(run.number, run.attempt, run.outcome):
                self.finished.add(run.number)
        self._progress[journal] = len(journal.ended)

    async def has_begun(self, member: Member) -> None:
        """Wait until a member has begun to handle records."""
        await member.until(lambda: len(member.journal.ended) > 100, 30, "it has begun")

    async def stop(self, member: Member) -> None:
        """Stop a member as an orchestrator does."""
        self._log.write("term", self._index(member), "-")
        member.send(signal.SIGTERM)
        assert await member.exit_code(40) == 0, member.story("it ends well")

    async def kill(self, member: Member) -> None:
        """Kill a member, and log the group's committed offsets."""
        member.kill()
        self._log.write("kill", self._index(member), "-")
        offsets = json.dumps(await self.committed(), separators=(",", ":"))
        self._log.write("committed", self._index(member), offsets)

    def _index(self, member: Member) -> int:
        return self.members.index(member) + 1

    async def committed(self) -> dict[int, int]:
        """Return the committed offsets."""
        return await committed(self._bootstrap_servers, self._name, self.topic)

    async def until_committed(self) -> None:
        """Wait until everything is committed."""
        ends: dict[int, int] = {}
        for number in range(self._load.count):
            partition = self._load.partition(number)
            ends[partition] = ends.get(partition, 0) + 1

        async def done() -> bool:
            return await self.committed() == ends

        await wait_until(done, 30, lambda: self.members[-1].story("everything is committed"))

    async def assert_all_is_as_the_load_says(self) -> None:
        """Return the findings of the oracle."""
        history = History(
            load=self._load,
            topic=Topic.of_load(self._load),
            journals={index: each.journal.read() for index, each in enumerate(self.members, 1)},
            log=Log(self._path.read_text().splitlines()),
            letters=await dead_letters(self._bootstrap_servers, self._dead_topic, DEAD_PARTITIONS),
            tells=self._settings.get("commit_metadata", True),
            exact=True,
        )
        verdict = Oracle(history).verdict()
        assert not verdict.broken(), f"SCALE_SEED={self._load.seed}\n{verdict.story()}"


async def feed(bootstrap_servers: Sequence[str], topic: str, load: Load) -> None:
    """Produce all records; in each partition, records have ascending numbers, and offsets begin at 0."""
    producer = AIOKafkaProducer(bootstrap_servers=list(bootstrap_servers), acks="all", max_batch_size=_BATCH_BYTES)
    async with producer:
        for partition in range(load.partitions):
            batch, first = producer.create_batch(), 0
            numbers = [number for number in range(load.count) if load.partition(number) == partition]
            sent = []
            for offset, number in enumerate(numbers):
                record = {"key": load.key(number), "value": load.value(number), "timestamp": None}
                if batch.append(**record) is None:
                    sent.append((first, await producer.send_batch(batch, topic, partition=partition)))
                    batch, first = producer.create_batch(), offset
                    batch.append(**record)
            sent.append((first, await producer.send_batch(batch, topic, partition=partition)))
            for first, each in sent:
                assert (await each).offset == first, "a record was produced twice"


async def dead_letters(bootstrap_servers: Sequence[str], topic: str, partitions: int) -> list[Letter]:
    """Return all records of the dead letter topic, each partition in order."""
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
