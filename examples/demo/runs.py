"""Runs of the service as a process of its own, watched from outside."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from examples.demo.ledger import Buried, Evidence, Journal
from examples.demo.orders import Confirmation, Order, Place
from examples.demo.picture import Picture, Snapshot
from examples.demo.service import CONCURRENT


PARTITIONS = 6
"""The number of partitions of every topic of the demo."""
DEAD_LETTERS = "orders.dead"
"""The topic that all runs share for orders that can't be charged."""

_ROOT = Path(__file__).parents[2]
_LOOK_INTERVAL_SEC = 0.2
# A run counts as stuck if nothing changes for this long.
_STALLED_SEC = 20.0
_STOP_SEC = 25.0
_LOG_TAIL = 2000
_MARKER_KEY = b"read up to here"


class DemoError(Exception):
    """The demo could not be carried out, and proves nothing about the promises."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shop:
    """The broker, and the topic that all runs read."""

    servers: Sequence[str]
    topic: str
    placed: Mapping[str, Place]
    poison: Collection[str]
    """The orders that can't be charged."""
    directory: Path
    """The directory of journals and logs."""
    picture: Picture

    @property
    def chargeable(self) -> int:
        """How many orders can be charged."""
        return len(self.placed) - len(self.poison)

    @property
    def ends(self) -> dict[int, int]:
        """The end of each partition."""
        ends: dict[int, int] = collections.defaultdict(int)
        for partition, offset in self.placed.values():
            ends[partition] = max(ends[partition], offset + 1)
        return dict(sorted(ends.items()))


class Run:
    """One way of running the service, over one or more starts, under a consumer group of its own."""

    def __init__(self, shop: Shop, *, name: str, way: str, title: str) -> None:
        self.shop = shop
        self.name = name
        self.way = way
        self.title = title
        self.confirmations = f"confirmations-{name}"
        self.directory = shop.directory / name
        self.directory.mkdir(parents=True)
        self.in_flight = 0
        self._charged = self._refused = 0
        self._charged_before = self._refused_before = 0
        self._rates: collections.deque[tuple[float, int]] = collections.deque([(time.monotonic(), 0)])
        self._watcher: AIOKafkaConsumer

    @property
    def charged(self) -> int:
        """How many orders all starts together have charged."""
        return self._charged_before + self._charged

    @property
    def refused(self) -> int:
        """How many orders could not be charged, after their last attempt."""
        return self._refused_before + self._refused

    @property
    def handled(self) -> int:
        """How many orders are charged or refused."""
        return self.charged + self.refused

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncGenerator[None, None]:
        """Connect a client for the group's committed offsets, which is no member of the group and reads no records."""
        self._watcher = AIOKafkaConsumer(
            bootstrap_servers=list(self.shop.servers),
            group_id=self.name,
            enable_auto_commit=False,
        )
        await self._watcher.start()
        try:
            partitions = [TopicPartition(self.shop.topic, partition) for partition in self.shop.ends]
            self._watcher.assign(partitions)
            self._watcher.pause(*partitions)
            yield
        finally:
            await self._watcher.stop()
            self.shop.picture.clear()

    async def committed(self) -> dict[int, int]:
        """Return the group's committed offset of each partition."""
        partitions = [TopicPartition(self.shop.topic, partition) for partition in self.shop.ends]
        offsets = await asyncio.gather(*map(self._watcher.committed, partitions))
        return {key.partition: max(offset or 0, 0) for key, offset in zip(partitions, offsets, strict=True)}

    async def serve(self, *, until: Callable[[], bool]) -> float:
        """Start the service, let it work, send it SIGTERM when `until` holds; return how long its stop has taken.

        Raises:
            DemoError: the service has failed, or is stuck.

        """
        log = self.directory / "log"
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "examples.demo.service", "--way", self.way, "--group", self.name),
                *("--orders", self.shop.topic, "--confirmations", self.confirmations),
                *("--dead-letters", DEAD_LETTERS),
                *("--journal", str(self.directory / "journal")),
                cwd=_ROOT,
                env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": ",".join(self.shop.servers)},
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        reports = asyncio.create_task(self._take_reports(process))
        try:
            await self._watch(process, until)
            asked_at = time.monotonic()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(_STOP_SEC):
                status = await process.wait()
            took_sec = time.monotonic() - asked_at
            await reports
        except (DemoError, TimeoutError) as error:
            raise DemoError(f"{self.title}: {error}. Its log ends so:\n{log.read_text()[-_LOG_TAIL:]}") from error
        finally:
            reports.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()
        if status != 0:
            raise DemoError(f"{self.title}: the service ended with status {status} after SIGTERM")
        self._charged_before, self._charged = self.charged, 0
        self._refused_before, self._refused = self.refused, 0
        return took_sec

    async def _take_reports(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        async for line in process.stdout:
            report = json.loads(line)
            self._charged, self._refused = int(report["charged"]), int(report["refused"])
            self.in_flight = int(report["in_flight"])

    async def _watch(self, process: asyncio.subprocess.Process, until: Callable[[], bool]) -> None:
        last_change, last_seen = time.monotonic(), None
        while not until():
            committed = await self.committed()
            self.shop.picture.show(
                Snapshot(
                    title=self.title,
                    orders=self.shop.chargeable,
                    charged=self.charged,
                    refused=self.refused,
                    per_second=self._per_second(),
                    in_flight=self.in_flight,
                    committed=list(committed.values()),
                    ends=list(self.shop.ends.values()),
                ),
            )
            seen = (self.charged, self.refused, committed)
            if seen != last_seen:
                last_change, last_seen = time.monotonic(), seen
            if process.returncode is not None:
                raise DemoError(f"the service ended by itself, with status {process.returncode}")
            if time.monotonic() - last_change > _STALLED_SEC:
                raise DemoError(f"nothing has changed for {_STALLED_SEC:g} s, {self.charged} orders charged")
            await asyncio.sleep(_LOOK_INTERVAL_SEC)

    def _per_second(self) -> float:
        self._rates.append((time.monotonic(), self.charged))
        while len(self._rates) > 2 and self._rates[-1][0] - self._rates[0][0] > 1.0:  # noqa: PLR2004 - a second's worth
            self._rates.popleft()
        (first_at, first), (last_at, last) = self._rates[0], self._rates[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    async def evidence(self) -> Evidence:
        """Collect the evidence of the run after its last stop."""
        evidence = Evidence(
            placed=self.shop.placed,
            committed=await self.committed(),
            poison=self.shop.poison,
            confirmed=[
                Confirmation.model_validate_json(record.value or b"").order_id
                for record in await _read(self.shop.servers, self.confirmations)
            ],
            buried=await self._buried() if self.way == CONCURRENT else None,
            events=Journal.read(self.directory / "journal"),
        )
        evidence.write(self.directory)
        return evidence

    async def _buried(self) -> list[Buried]:
        """Return the dead letters of this run: other runs publish to the same topic."""
        letters = []
        for record in await _read(self.shop.servers, DEAD_LETTERS):
            says = {name.removeprefix("kafka_dlt-"): text.decode() for name, text in record.headers}
            if (says["original-topic"], says["original-consumer-group"]) == (self.shop.topic, self.name):
                order = Order.model_validate_json(record.value or b"")
                place = Place(int(says["original-partition"]), int(says["original-offset"]))
                letters.append(Buried(order.order_id, place, says["exception-fqcn"], int(says["attempts"])))
        return letters


async def _read(servers: Sequence[str], topic: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Return all present records of a topic."""
    # Up to a marker in each partition: the embedded broker reports an end that is too low.
    marker = uuid4().bytes
    async with AIOKafkaProducer(bootstrap_servers=list(servers)) as producer:
        for partition in range(PARTITIONS):
            await producer.send_and_wait(topic, marker, key=_MARKER_KEY, partition=partition)
    records: list[ConsumerRecord[bytes, bytes]] = []
    left = PARTITIONS
    async with AIOKafkaConsumer(bootstrap_servers=list(servers), auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
        while left:
            batches = await consumer.getmany(timeout_ms=1000)
            for record in (record for batch in batches.values() for record in batch):
                if record.key != _MARKER_KEY:
                    records.append(record)
                elif record.value == marker:
                    left -= 1
    return records
