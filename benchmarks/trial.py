"""One measurement and its result: exchanged by the parent and the measuring processes."""

import dataclasses
import json
from typing import Literal, Self

from benchmarks.keys import Keys
from faststream_concurrent_kafka.settings import Ordering


System = Literal["sequential", "max_workers", "concurrent", "ledger"]
"""FastStream one at a time, FastStream's `max_workers`, this library, or this library's offsets without a Kafka."""

MAX_WORKERS = 100
RETRY_BACKOFF_SEC = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One measurement, made in a fresh process."""

    system: System = "concurrent"
    records: int = 20_000
    """How many records are measured."""
    partitions: int = 8
    keys: Keys = "none"
    """Records without a key go to the partitions in turn; otherwise the key decides, and the whole topic is read."""
    sleep_ms: int = 0
    """How long a handler sleeps; 0 = it does nothing."""
    together: bool = False
    """Whether handlers wait until `concurrency_limit` of them are in flight, and then all end at once."""
    stuck: bool = False
    """Whether the very first record's handler ends only after all others; it is not counted in `records`."""
    ordering: Ordering = "unordered"
    max_attempts: int = 1
    """If more than one, `RETRY_BACKOFF_SEC` lies before the second."""
    fails_every: int = 0
    """The first attempt at every n-th record fails; 0 = at none."""
    concurrency_limit: int = 100
    max_uncommitted_tasks: int = 10_000
    logged: bool = False
    """Whether FastStream's default logger writes its two lines per record, to /dev/null."""
    gc_tuned: bool = False
    rss_every: int = 0
    """Note the process's memory after every so many records; 0 = only at the end."""

    @property
    def topic_size(self) -> int:
        """How many records the topic must hold."""
        return self.records + self.stuck

    def to_json(self, bootstrap: list[str], topic: str) -> str:
        """Return the trial as text for the measuring process."""
        return json.dumps({"bootstrap": bootstrap, "topic": topic, "trial": dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> tuple[Self, list[str], str]:
        """Read it back: trial, bootstrap servers, topic."""
        read = json.loads(text)
        return cls(**read["trial"]), [str(each) for each in read["bootstrap"]], str(read["topic"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The result of one trial. Wall and CPU time are from the first handled record to the last."""

    records: int
    wall_sec: float
    cpu_sec: float
    rss_mb: list[float]
    """Memory of the process; the last value is the one after the last record."""
    bytes_per_offset: float = 0.0
    """Bytes that the library keeps for a finished record behind a stuck one; only for the system `ledger`."""

    @property
    def rate(self) -> float:
        """Records per second of wall time."""
        return self.records / self.wall_sec

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per record, all threads."""
        return self.cpu_sec / self.records * 1e6
