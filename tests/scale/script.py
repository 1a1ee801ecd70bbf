"""What each record is, and what its handler does at each attempt: pure, and the same in every process of a seed."""

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


MAX_ATTEMPTS = 3
LONGEST_SEC = 0.01
# Far above what a busy machine makes of ten milliseconds: who is cancelled at the limit is who hangs.
HANDLER_TIMEOUT_SEC = 1.5
_DRAWS = 6 + 2 * MAX_ATTEMPTS

# What a failing attempt does, its share, and the exception that the dead letter names if it was the last one.
_FAILURES = {
    "raise": (60, "builtins.RuntimeError"),
    "time out": (10, "builtins.TimeoutError"),
    "nack": (12, "faststream.exceptions.NackMessage"),
    "nack later": (6, "faststream.exceptions.NackMessage"),
    "refuse": (8, "builtins.PermissionError"),
    "hang": (3, "faststream_concurrent_kafka.errors.HandlerTimeoutError"),
    "swallow": (1, "faststream_concurrent_kafka.errors.HandlerTimeoutError"),
}
# Failures come in storms: a restart in between leaves nothing undone, one in a storm does.
_WEATHER = 2_500
_MALFORMED_SHARE = 0.001
_FAILING_SHARE = 0.02
_KEYLESS_SHARE = 0.02
_HOT_SHARE = 0.005


class Step(NamedTuple):
    """What a handler does at one attempt."""

    does: str
    """"ok", or one of the ways to fail."""
    after_sec: float


class Role(NamedTuple):
    """What one record is."""

    key: bytes | None
    partition: int
    steps: tuple[Step, ...]
    """What the handler does at each attempt up to the last; nothing where it is never called."""


class Script:
    """The records 0 to `count` - 1. One number is one record: in each partition they ascend with the offsets."""

    def __init__(self, seed: int, *, count: int, keys: int, partitions: int, ordering: str) -> None:
        self.seed = seed
        self.count = count
        self.keys = keys
        self.partitions = partitions
        self.ordering = ordering
        self._role = lru_cache(None)(self._draw)

    def _draw(self, number: int) -> Role:
        digest = hashlib.blake2b(f"{self.seed}/{number}".encode(), digest_size=4 * _DRAWS).digest()
        share, keyed, placed, formed, *draws = (each / 2**32 for each in struct.unpack(f">{_DRAWS}I", digest))
        key, partition = None, int(placed * self.partitions)
        if share >= _KEYLESS_SHARE:
            drawn = 0 if share < _KEYLESS_SHARE + _HOT_SHARE else int(keyed * self.keys)
            key, partition = b"%d" % drawn, drawn % self.partitions
        return Role(key, partition, () if formed < _MALFORMED_SHARE else self._steps(number, draws))

    def _steps(self, number: int, draws: Sequence[float]) -> tuple[Step, ...]:
        failing, times, *draws_of_steps = draws
        fails = 0
        if number // _WEATHER % 2 and failing < _FAILING_SHARE:
            fails = 1 + int(times * MAX_ATTEMPTS)
        steps = []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            how, long = draws_of_steps[2 * attempt - 2 : 2 * attempt]
            does = "ok" if attempt > fails else self._failure(how)
            steps.append(Step(does, long * LONGEST_SEC))
            if does in {"ok", "refuse"}:
                break
        return tuple(steps)

    @staticmethod
    def _failure(drawn: float) -> str:
        left = drawn * sum(share for share, _ in _FAILURES.values())
        for does, (share, _) in _FAILURES.items():
            left -= share
            if left < 0:
                return does
        return "raise"

    def key(self, number: int) -> bytes | None:
        """Return the key of a record; one is hot, and some have none."""
        return self._role(number).key

    def partition(self, number: int) -> int:
        """Return the partition of a record, which is that of all with its key."""
        return self._role(number).partition

    def steps(self, number: int) -> tuple[Step, ...]:
        """Return what the handler does at each attempt up to the last; nothing where it is never called."""
        return self._role(number).steps

    def value(self, number: int) -> bytes:
        """Return the value of a record."""
        return b"%d" % number if self.steps(number) else b"no number: %d" % number

    def lane(self, number: int) -> str:
        """Name what the record shares with those that it must not overlap."""
        if self.ordering == "partition":
            return f"partition {self.partition(number)}"
        key = self.key(number)
        return f"record {number}" if key is None else f"key {key.decode()}"

    def is_dead(self, number: int) -> bool:
        """Whether the record ends in the dead letter topic."""
        steps = self.steps(number)
        return not steps or steps[-1].does != "ok"

    def attempts(self, number: int) -> int:
        """Return how many attempts its dead letter speaks of."""
        return len(self.steps(number)) or 1

    def error(self, number: int) -> str:
        """Return the exception that its dead letter names."""
        steps = self.steps(number)
        return _FAILURES[steps[-1].does][1] if steps else "pydantic_core._pydantic_core.ValidationError"

    def is_final(self, number: int, attempt: int, outcome: str | None) -> bool:
        """Whether a record has come to its end by an attempt that ended so."""
        steps = self.steps(number)
        return attempt == len(steps) and outcome == steps[-1].does
