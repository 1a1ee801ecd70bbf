"""What happens in one simulated world: settings, records, faults. All of it is known before the world begins."""

import dataclasses
from typing import Any, Literal

from faststream_concurrent_kafka import FailurePolicy
from faststream_concurrent_kafka.settings import Settings


End = Literal[
    "return",
    "raise",
    "refuse",
    "raise CancelledError",
    "nack",
    "raise NackMessage",
    "ack and raise",
    "raise RejectMessage",
    "swallow its cancellation",
    "panic",
    "exit its generator",
    "stop the broker",
]
Kind = Literal["good", "malformed", "of another group"]
Fault = Literal[
    "start",
    "stop",
    "crash",
    "lose membership",
    "rebalance",
    "rebalance twice",
    "commits fail",
    "commits are refused",
    "commits break",
    "commits wait",
    "broker is silent",
    "publishing fails",
    "refuse a partition",
    "cut the log",
    "pause",
    "seek back",
    "subscribe",
]
Reset = Literal["earliest", "latest"]

DEAD_TOPIC = "dead"
SLOTS = 3
FOREVER = float("inf")
NACK_DELAY_SEC = 0.2
SWALLOWS_SEC = 0.7
# Nobody cancels a handler that is not slow, as far as the script goes.
_DONE: frozenset[End] = frozenset(
    {"return", "ack and raise", "raise RejectMessage", "swallow its cancellation", "stop the broker"}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One attempt of a handler."""

    takes_sec: float
    end: End


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """A record, when it comes, and what its handler does at each attempt; the last step is repeated."""

    number: int
    partition: int
    offset: int
    key: bytes | None
    kind: Kind
    at: float
    steps: tuple[Step, ...]

    def step(self, attempt: int) -> Step:
        """Return what is done at an attempt, from 1 on."""
        return self.steps[min(attempt, len(self.steps)) - 1]

    @property
    def value(self) -> bytes:
        """Return the bytes of the record: a number, or what is none."""
        return b"?%d" % self.number if self.kind == "malformed" else b"%d" % self.number


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that goes wrong, or is done, so many turns after a moment."""

    at: float
    after_turns: int
    what: Fault
    slot: int
    for_sec: float
    times: int
    place: int = 0
    """Of which partition, or how far in it, where that matters; any number."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    seed: int
    settings: Settings
    partitions: int
    scripts: tuple[Script, ...]
    epilogue: tuple[Script, ...]
    """One more record for each partition, once all is over: it flushes what was remembered."""
    events: tuple[Event, ...]
    ends_at: float
    session_sec: float
    reset: Reset = "earliest"
    """Where reading begins in a partition of which nothing is committed."""
    max_poll_sec: float = 300.0
    """A member that has not fetched for so long leaves its group."""
    initialises_after_sec: float = 0.0
    """How long the broker runs before the library does."""
    delays_fetches: bool = True
    """Whether the next record has to be fetched now and then; else all of them are buffered."""

    @property
    def policy(self) -> FailurePolicy:
        """What becomes of failures."""
        return self.settings.on_failure

    def fails_for_good(self, script: Script, attempt: int) -> bool:
        """Whether this attempt, which is not cancelled, is the last one and has failed."""
        return not self.is_done(script, attempt) and not self.goes_on(script, attempt)

    def is_done(self, script: Script, attempt: int) -> bool:
        """Whether this attempt does the record's work, or says that there is none."""
        return script.kind != "malformed" and not self.is_slow(script, attempt) and script.step(attempt).end in _DONE

    def is_slow(self, script: Script, attempt: int) -> bool:
        """Whether this attempt outlasts the time limit."""
        return 0 < self.settings.handler_timeout_sec < script.step(attempt).takes_sec

    def goes_on(self, script: Script, attempt: int) -> bool:
        """Whether a failure of this attempt is followed by another one."""
        if script.kind == "malformed":
            return False
        end, policy = script.step(attempt).end, self.policy
        has_left = policy.max_attempts == 0 or attempt < policy.max_attempts
        if end in {"nack", "raise NackMessage"} and not self.is_slow(script, attempt):
            return has_left or policy.max_attempts == 1
        return has_left and (end != "refuse" or self.is_slow(script, attempt))

    def is_wall(self, script: Script) -> bool:
        """Whether the record halts its partition, for ever."""
        if self.policy.then != "halt" or script.kind == "of another group":
            return False
        attempt = 1
        while self.goes_on(script, attempt) and not self.is_done(script, attempt):
            attempt += 1
        return not self.is_done(script, attempt)


def options_of(settings: Settings) -> dict[str, Any]:
    """Return settings as keyword arguments."""
    return {name: getattr(settings, name) for name in Settings.__slots__}
