"""A started handler in virtual time, with a source and a consumer that only record their calls."""

import asyncio
import contextvars
from collections import defaultdict

from aiokafka import ConsumerRecord, TopicPartition

from faststream_concurrent_kafka import KafkaConcurrentHandler
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._record.ordering import order_keys_of
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.slots import Share
from faststream_concurrent_kafka.settings import Settings
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.scripted import ScriptedConsumer


TOPIC = "orders"
T0 = TopicPartition(TOPIC, 0)


def raw_record(*, partition=0, offset=0, key=None, value=b"", topic=TOPIC):
    return ConsumerRecord(topic, partition, offset, 1, 0, key, value, None, 0, len(value), ())


class Stopping:
    """A stop that no record awaits."""

    callers: tuple[asyncio.Task[None], ...] = ()

    def has_let_go(self, record):
        return record is None


class Source:
    """A source that only counts its calls."""

    name = "source"
    commits = True
    context: contextvars.Context | None = None
    share: Share

    def __init__(self, settings):
        self.settings = settings
        self.in_flight = 0
        self.stopping: Stopping | None = None
        self.halts: list[str] = []
        self.dead_letters: list[object] = []
        self.trouble: list[str] = []
        self.stops = 0
        self.application_stops = 0
        self.publishing_sec = 0.0
        self.logs = True

    async def process(self, raw):
        raise AssertionError(raw)

    def problems(self):
        return self.trouble

    def deaths(self):
        return []

    def sample(self):
        pass

    async def stop(self, *, to_the_end=False):
        self.stops += not to_the_end
        self.stopping = Stopping()
        return True

    def detach(self):
        pass

    def stop_application(self):
        self.application_stops += 1

    def has_logged(self, error):
        return self.logs or not isinstance(error, BaseException)

    def halt(self, record, reason, error=None):
        assert error is None or isinstance(error, BaseException)
        self.halts.append(f"{record!r}: {reason}")

    async def dead_letter(self, record, error):
        if self.publishing_sec:
            await asyncio.sleep(self.publishing_sec)
        self.dead_letters.append((record.raw, error))


class World:
    """A started handler, one source and a few partitions."""

    def __init__(self, **options):
        self.handler = KafkaConcurrentHandler(**Settings.of(**options).as_options())
        self.handler.start()
        self.consumer = ScriptedConsumer(*(TopicPartition(TOPIC, number) for number in range(3)))
        self.source = self.add_source()
        self.offset = 0
        self.offsets: defaultdict[int, int] = defaultdict(int)

    def add_source(self):
        """Add one more source."""
        source = Source(self.handler.settings)
        source.share = self.handler.slots.share()
        self.handler.sources.append(source)
        return source

    def handle(self, process, *, source=None):
        """Submit an unordered record of partition 0, whose raw record is a number, from 1 on."""
        admission = Admission(T0, self.offset)
        self.offset += 1
        self.handler.committer.admit(self.consumer, admission)
        record = Record(self.offset, process, source=source or self.source, admissions=[admission])
        self.handler.runner.submit(record)
        return record

    def deliver(self, process, *, partition=0, key=None):
        """Submit the next record of a partition, with the ordering of the settings."""
        raw = raw_record(partition=partition, offset=self.offsets[partition], key=key)
        self.offsets[partition] += 1
        admission = Admission((TOPIC, partition), raw.offset)
        self.handler.committer.admit(self.consumer, admission)
        order_keys = order_keys_of(self.source.settings.ordering, id(self.source), raw)
        record = Record(raw, process, source=self.source, admissions=[admission], order_keys=order_keys)
        self.handler.runner.submit(record)
        return record

    async def committed(self, partition=0):
        await self.handler.committer.commit_all()
        return self.consumer.committed.get(TopicPartition(TOPIC, partition), 0)

    async def until(self, condition, *, within_sec=600.0):
        """Wait until a condition holds."""
        deadline = self.handler.now() + within_sec
        while not condition():
            assert self.handler.now() < deadline, "it never came"
            await asyncio.sleep(0.05)


def play(scenario, **options):
    async def main() -> None:
        world = World(**options)
        try:
            await scenario(world)
        finally:
            await world.handler.stop()

    run_virtual(main())
