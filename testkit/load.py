"""Each record, and what its handler does at each attempt. Pure: the same in every process with the same seed."""

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from testkit.journal import DONE


MAX_ATTEMPTS = 3
# Far above the duration of quick handlers on a busy machine: only a handler that hangs is cancelled at the limit.
HANDLER_TIMEOUT_SEC = 1.5
_DRAWS = 6 + 2 * MAX_ATTEMPTS

# How an attempt fails, how often, and which exception the dead letter names if it was the last attempt.
_FAILURES = {
    "raise": (60, "builtins.RuntimeError"),
    "time out": (10, "builtins.TimeoutError"),
    "nack": (12, "faststream.exceptions.NackMessage"),
    "nack later": (6, "faststream.exceptions.NackMessage"),
    "refuse": (8, "builtins.PermissionError"),
    "hang": (3, "faststream_concurrent_kafka.errors.HandlerTimeoutError"),
    "swallow": (1, "faststream_concurrent_kafka.errors.HandlerTimeoutError"),
}
# Failures come in bursts: a restart in a burst leaves records undone, one between two bursts does not.
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
    """One record."""

    key: bytes | None
    partition: int
    steps: tuple[Step, ...]
    """What the handler does at each attempt up to the last; empty if it is never called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """The records with the numbers 0 to `count` - 1, which ascend with the offsets in each partition."""

    seed: int
    count: int
    keys: int = 2_000
    partitions: int = 12
    ordering: str = "key"
    quick_sec: Sequence[float] = (0.0, 0.01)
    """The shortest and longest duration of quick handlers, in seconds; slow ones take `slow_sec`."""
    slow_sec: Sequence[float] = (0.3, 2.0)
    slow_share: float = 0.0
    storms: bool = False
    """Whether some attempts fail, and some records have no key, the same key, or bytes that can't be parsed."""
    stuck: int | None = None
    """A record whose handler never ends."""

    def key(self, number: int) -> bytes | None:
        """Return the key of a record."""
        return self._role(number).key

    def partition(self, number: int) -> int:
        """Return the partition of a record, which is the same for all records of its key."""
        return self._role(number).partition

    def steps(self, number: int) -> tuple[Step, ...]:
        """Return what the handler does at each attempt up to the last; empty if it is never called."""
        return self._role(number).steps

    def value(self, number: int) -> bytes:
        """Return the value of a record."""
        return b"%d" % number if self.steps(number) else b"no number: %d" % number

    def lane(self, number: int) -> str:
        """Return the lane of a record, its key or partition: records of one lane must not overlap."""
        if self.ordering == "partition":
            return f"partition {self.partition(number)}"
        key = self.key(number)
        return f"record {number}" if key is None or self.ordering == "unordered" else f"key {key.decode()}"

    def is_dead(self, number: int) -> bool:
        """Whether the record ends in the dead letter topic."""
        steps = self.steps(number)
        return not steps or steps[-1].does != DONE

    def attempts(self, number: int) -> int:
        """Return the number of attempts in its dead letter."""
        return len(self.steps(number)) or 1

    def error(self, number: int) -> str:
        """Return the exception in its dead letter."""
        steps = self.steps(number)
        return _FAILURES[steps[-1].does][1] if steps else "pydantic_core._pydantic_core.ValidationError"

    def is_final(self, number: int, attempt: int, outcome: str | None) -> bool:
        """Whether an attempt with this outcome finishes the record."""
        steps = self.steps(number)
        return attempt == len(steps) and outcome == steps[-1].does

    @functools.cached_property
    def _role(self) -> "functools._lru_cache_wrapper[Role]":
        # Enough for the records that are needed repeatedly, out of a million.
        return functools.lru_cache(2**17)(self.draw)

    def draw(self, number: int) -> Role:
        """Return a record, by its number."""
        digest = hashlib.blake2b(f"{self.seed}/{number}".encode(), digest_size=4 * _DRAWS).digest()
        share, keyed, placed, formed, *draws = (each / 2**32 for each in struct.unpack(f">{_DRAWS}I", digest))
        if not self.storms:
            drawn = int(keyed * self.keys)
            return Role(b"%d" % drawn, drawn % self.partitions, (self._calm_step(number, *draws[:2]),))
        key, partition = None, int(placed * self.partitions)
        if share >= _KEYLESS_SHARE:
            drawn = 0 if share < _KEYLESS_SHARE + _HOT_SHARE else int(keyed * self.keys)
            key, partition = b"%d" % drawn, drawn % self.partitions
        return Role(key, partition, () if formed < _MALFORMED_SHARE else self._steps(number, draws))

    def _calm_step(self, number: int, slow: float, long: float) -> Step:
        if number == self.stuck:
            return Step("hang", 0.0)
        low, high = self.slow_sec if slow < self.slow_share else self.quick_sec
        return Step(DONE, low + (high - low) * long)

    def _steps(self, number: int, draws: Sequence[float]) -> tuple[Step, ...]:
        failing, times, *draws_of_steps = draws
        fails = 0
        if number // _WEATHER % 2 and failing < _FAILING_SHARE:
            fails = 1 + int(times * MAX_ATTEMPTS)
        steps = []
        for attempt in range(1, MAX_ATTEMPTS + 1):
            how, long = draws_of_steps[2 * attempt - 2 : 2 * attempt]
            does = DONE if attempt > fails else _failure(how)
            steps.append(Step(does, self.quick_sec[0] + (self.quick_sec[1] - self.quick_sec[0]) * long))
            if does in {DONE, "refuse"}:
                break
        return tuple(steps)


def _failure(drawn: float) -> str:
    left = drawn * sum(share for share, _ in _FAILURES.values())
    for does, (share, _) in _FAILURES.items():
        left -= share
        if left < 0:
            return does
    return "raise"
