"""Loads the topics, and makes the measurements of a scenario in turn, each in a fresh process."""

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Self
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.keys import Keys, keys_of
from benchmarks.trial import Measured, Trial
from testkit.brokers import Record, create_topic, produce


ROOT = Path(__file__).parents[1]
_TRIAL_TIMEOUT_SEC = 600
# Producing keeps a future for each record.
_RECORDS_PER_PRODUCER = 50_000
_HEADERS = [("content-type", b"application/json")]  # as FastStream's own publishers send it


class Spread(NamedTuple):
    """The median of some rounds, and how far they differ."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Sum up at least one value."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known))


class Results(dict[Trial, list[Measured]]):
    """The measurements: one value per trial and round, so that values of the same round can be compared."""

    def rate(self, trial: Trial) -> list[float]:
        """Return records per second of wall time, of each round."""
        return [each.rate for each in self[trial]]

    def cpu_us(self, trial: Trial) -> list[float]:
        """Return microseconds of CPU per record, of each round."""
        return [each.cpu_us for each in self[trial]]

    def wall_ratio(self, trial: Trial, to: Trial) -> list[float]:
        """Return how many times as fast as another trial each round was."""
        return [mine / its for mine, its in zip(self.rate(trial), self.rate(to), strict=True)]

    def cpu_ratio(self, trial: Trial, to: Trial) -> list[float]:
        """Return how many times as many records per CPU second as another trial each round did."""
        return [its / mine for mine, its in zip(self.cpu_us(trial), self.cpu_us(to), strict=True)]


class Runner:
    """Runs trials on one Kafka; on exit it deletes its topics."""

    def __init__(self, bootstrap_servers: Sequence[str], say: Callable[[str], object] = print) -> None:
        self._bootstrap = list(bootstrap_servers)
        self._say = say
        self._topics: dict[tuple[int, int, Keys], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run(_delete(self._bootstrap, list(self._topics.values())))

    def run(self, trials: Sequence[Trial], rounds: int) -> Results:
        """Make every measurement once per round: A B C, A B C, ..."""
        results = Results({trial: [] for trial in trials})
        topics = {trial: self._topic_for(trial, trials) for trial in trials}
        for turn, trial in itertools.product(range(rounds), trials):
            measured = self._measure(trial, topics[trial])
            results[trial].append(measured)
            self._say(f"  {turn + 1}/{rounds} {_describe(trial)}: {measured.rate:,.0f}/s, {measured.cpu_us:.1f} us CPU")
        return results

    def _measure(self, trial: Trial, topic: str) -> Measured:
        command = [sys.executable, "-m", "benchmarks.worker", trial.to_json(self._bootstrap, topic)]
        done = subprocess.run(
            command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=_TRIAL_TIMEOUT_SEC
        )
        return Measured(**json.loads(done.stdout))

    def _topic_for(self, trial: Trial, trials: Sequence[Trial]) -> str:
        """Return a loaded topic: one for all trials on as many partitions, but of keyed records one for each size.

        With order, the records of hot keys at the end count as well, so the topic must not have more records than are
        measured.
        """
        if trial.system == "ledger":
            return ""
        size = trial.topic_size
        if trial.keys == "none":
            size = max(
                each.topic_size for each in trials if (each.partitions, each.keys) == (trial.partitions, trial.keys)
            )
        key = (trial.partitions, size, trial.keys)
        if key not in self._topics:
            self._say(f"  loading {size:,} records into {trial.partitions} partitions, keys: {trial.keys}")
            self._topics[key] = f"bench-{uuid4().hex[:8]}-{trial.partitions}"
            asyncio.run(_load(self._bootstrap, self._topics[key], *key))
        return self._topics[key]


async def _load(bootstrap: list[str], topic: str, partitions: int, size: int, keys: Keys) -> None:
    await create_topic(bootstrap, topic, partitions)
    records = (
        Record(b'{"i": %d}' % number, key, _HEADERS, number % partitions if key is None else None)
        for number, key in enumerate(itertools.islice(keys_of(keys), size))
    )
    while chunk := list(itertools.islice(records, _RECORDS_PER_PRODUCER)):
        await produce(bootstrap, topic, chunk)


async def _delete(bootstrap: list[str], topics: list[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        if topics:
            await admin.delete_topics(topics)
    finally:
        await admin.close()


def _describe(trial: Trial) -> str:
    """Name a trial by what differs from the default."""
    default = Trial()
    changed = (name for name in Trial.__slots__ if name != "system")
    differs = [f"{name}={getattr(trial, name)}" for name in changed if getattr(trial, name) != getattr(default, name)]
    return " ".join([trial.system, *differs])
