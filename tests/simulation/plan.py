"""The plan of one simulated world: settings, records and faults, all drawn before the world begins."""

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
# Only slow handlers are cancelled by their script.
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
    """A record, the time of its arrival, and what its handler does at each attempt; the last step is repeated."""

    number: int
    partition: int
    offset: int
    key: bytes | None
    kind: Kind
    at: float
    steps: tuple[Step, ...]

    def step(self, attempt: int) -> Step:
        """Return the handler's step of an attempt, from 1 on."""
        return self.steps[min(attempt, len(self.steps)) - 1]

    @property
    def value(self) -> bytes:
        """Return the value of the record: a number, or bytes that are none."""
        return b"?%d" % self.number if self.kind == "malformed" else b"%d" % self.number


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A fault or an action, so many turns of the loop after a moment."""

    at: float
    after_turns: int
    what: Fault
    slot: int
    for_sec: float
    times: int
    place: int = 0
    """A number that chooses a partition, or a place in it, for kinds that need one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan."""

    seed: int
    settings: Settings
    partitions: int
    scripts: tuple[Script, ...]
    epilogue: tuple[Script, ...]
    """One more record for each partition at the end, after which nothing may be remembered."""
    events: tuple[Event, ...]
    ends_at: float
    session_sec: float
    reset: Reset = "earliest"
    """`auto_offset_reset`: where a partition without a committed offset begins."""
    max_poll_sec: float = 300.0
    """The seconds without a fetch after which a member leaves its group."""
    initialises_after_sec: float = 0.0
    """How long the broker runs before concurrent processing is initialised."""
    delays_fetches: bool = True
    """Whether fetches sometimes suspend; otherwise all records are buffered."""

    @property
    def policy(self) -> FailurePolicy:
        """The failure policy."""
        return self.settings.on_failure

    def fails_for_good(self, script: Script, attempt: int) -> bool:
        """Whether this attempt is the last one and fails, without being cancelled."""
        return not self.is_done(script, attempt) and not self.goes_on(script, attempt)

    def is_done(self, script: Script, attempt: int) -> bool:
        """Whether this attempt finishes the record."""
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
