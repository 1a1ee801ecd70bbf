"""What happens in one simulated world, drawn from its seed before it begins: settings, records, faults."""

import dataclasses
import random
from typing import Any, Literal, get_args

from faststream_concurrent_kafka import DeadLetter, FailurePolicy
from faststream_concurrent_kafka.settings import Ordering, Settings


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
]

DEAD_TOPIC = "dead"
SLOTS = 3
FOREVER = float("inf")
NACK_DELAY_SEC = 0.2
SWALLOWS_SEC = 0.7
_FAULTS: dict[Fault, int] = {
    "start": 6,
    "stop": 4,
    "crash": 4,
    "lose membership": 2,
    "rebalance": 4,
    "rebalance twice": 2,
    "commits fail": 3,
    "commits are refused": 2,
    "commits break": 1,
    "commits wait": 4,
    "broker is silent": 1,
    "publishing fails": 2,
}
# Nobody cancels a handler that is not slow, as far as the script goes.
_DONE: frozenset[End] = frozenset({"return", "ack and raise", "raise RejectMessage", "swallow its cancellation"})


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

    @property
    def policy(self) -> FailurePolicy:
        """What becomes of failures."""
        return self.settings.on_failure

    def fails_for_good(self, script: Script, attempt: int) -> bool:
        """Whether this attempt, which is not cancelled by anybody, is the last one and has failed."""
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


def make_plan(seed: int) -> Plan:
    """Draw everything from the seed."""
    rng = random.Random(seed)  # noqa: S311 - a simulation, no secret
    settings = _settings(rng)
    partitions = rng.choice([1, 2, 2, 3, 4])
    ends_at = rng.choice([3.0, 6.0, 12.0])
    scripts = _scripts(rng, settings, partitions, ends_at)
    events = [Event(0.0, 0, "start", 0, 0, 0)]
    for _ in range(rng.choice([0, 2, 4, 6, 8])):
        what = rng.choices(list(_FAULTS), list(_FAULTS.values()))[0]
        turns = rng.choice([0, 0, 1, 2, 3, 5, 8, 13, 21])
        sec = rng.choice([0.05, 0.5, 2.0, 6.0]) * rng.random()
        events.append(Event(rng.uniform(0, ends_at), turns, what, rng.randrange(SLOTS), sec, rng.choice([1, 2, 5])))
    if rng.random() < 0.5:
        events.append(Event(rng.uniform(0, ends_at / 2), 0, "start", 1, 0, 0))
    events.sort(key=lambda event: event.at)
    session_sec = rng.choice([1.0, 3.0, 6.0])
    return Plan(
        seed, settings, partitions, scripts, _epilogue(scripts, partitions), tuple(events), ends_at, session_sec
    )


def _settings(rng: random.Random) -> Settings:
    policy = FailurePolicy(
        max_attempts=rng.choice([1, 1, 2, 3, 0]),
        first_backoff_sec=rng.choice([0.0, 0.1, 0.5, 2.0]),
        max_backoff_sec=rng.choice([0.5, 3.0]),
        never_retry=PermissionError,
        then=rng.choice(["commit", "commit", "halt", DeadLetter(DEAD_TOPIC)]),
    )
    return Settings(
        concurrency_limit=rng.choice([0, 1, 2, 4, 100, 100]),
        max_uncommitted_tasks=rng.choice([2, 4, 8, 1000, 1000]),
        commit_batch_size=rng.choice([1, 3, 10, 1000]),
        commit_batch_timeout_sec=rng.choice([0.05, 0.3, 1.0]),
        shutdown_timeout_sec=rng.choice([0.2, 2.0, 8.0]),
        rebalance_flush_timeout_sec=rng.choice([0.0, 0.2, 1.0, 3.0]),
        commit_metadata=rng.random() < 0.5,
        cancel_lost_handlers=rng.random() < 0.25,
        ordering=rng.choice(get_args(Ordering)),
        handler_timeout_sec=rng.choice([0.0, 0.0, 0.9]),
        on_failure=policy,
    )


def _scripts(rng: random.Random, settings: Settings, partitions: int, ends_at: float) -> tuple[Script, ...]:
    most_sec = rng.choice([0.01, 0.1, 0.4, 1.5, 3.0])
    trouble = rng.choice([0.0, 0.1, 0.4])
    keys = rng.choice([[b"a"], [b"a", b"b", None], [b"a", b"b", b"c", b"d", b"", None]])
    at_once = rng.random() < 0.4
    ends = [0] * partitions
    scripts: list[Script] = []
    for number in range(rng.choice([4, 10, 20, 35])):
        partition = rng.randrange(partitions)
        # Transactions and compaction leave gaps.
        offset = ends[partition] + (rng.choice([1, 2]) if rng.random() < 0.05 else 0)
        ends[partition] = offset + 1
        kind: Kind = "good"
        if rng.random() < trouble / 4:
            kind = rng.choice(["malformed", "of another group"])
        steps = _steps(rng, settings, most_sec, trouble)
        at = 0.0 if at_once else rng.uniform(0, ends_at * 0.8)
        scripts.append(Script(number, partition, offset, rng.choice(keys), kind, at, steps))
    # In a partition they come in the order of their offsets.
    for partition in range(partitions):
        places = [place for place, script in enumerate(scripts) if script.partition == partition]
        moments = sorted(scripts[place].at for place in places)
        for place, at in zip(places, moments, strict=True):
            scripts[place] = dataclasses.replace(scripts[place], at=at)
    return tuple(scripts)


def _epilogue(scripts: tuple[Script, ...], partitions: int) -> tuple[Script, ...]:
    ends = [1 + max((each.offset for each in scripts if each.partition == it), default=-1) for it in range(partitions)]
    step = Step(0.0, "return")
    return tuple(
        Script(len(scripts) + partition, partition, end, None, "good", FOREVER, (step,))
        for partition, end in enumerate(ends)
    )


def _steps(rng: random.Random, settings: Settings, most_sec: float, trouble: float) -> tuple[Step, ...]:
    limit = settings.handler_timeout_sec

    def takes_sec() -> float:
        if limit and rng.random() < trouble / 2:
            return limit + rng.uniform(0.1, 2)
        return 0.0 if rng.random() < 0.1 else rng.random() * most_sec

    policy = settings.on_failure
    steps = []
    while rng.random() < trouble and len(steps) < 4:
        failing: list[End] = ["raise", "raise", "raise CancelledError", "nack", "raise NackMessage", "refuse"]
        steps.append(Step(takes_sec(), rng.choice([*failing, "swallow its cancellation"])))
    if policy.max_attempts > 0 and rng.random() < trouble / 5:
        return (*steps, Step(takes_sec(), "raise"))
    good: list[End] = ["return", "return", "return", "ack and raise", "raise RejectMessage"]
    takes = takes_sec() if policy.max_attempts > 0 else min(takes_sec(), limit / 2 if limit else FOREVER)
    return (*steps, Step(takes, rng.choice(good)))
