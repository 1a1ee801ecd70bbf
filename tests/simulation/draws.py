"""Draws a plan from its seed: first what every world may have, then, for some worlds, rarer events (twists)."""

import random
from typing import get_args

from faststream_concurrent_kafka import DeadLetter, FailurePolicy
from faststream_concurrent_kafka.settings import Ordering, Settings
from tests.simulation.plan import DEAD_TOPIC, FOREVER, SLOTS, End, Event, Fault, Kind, Plan, Script, Step
from tests.simulation.twists import Twist, epilogue_of, in_order, twisted


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


def make_plan(seed: int, twist: Twist | None = None) -> Plan:
    """Draw everything from the seed; with a `twist`, the plan has this twist and no other."""
    return twisted(_plan(seed), twist)


def _plan(seed: int) -> Plan:
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
    epilogue = epilogue_of(scripts, partitions)
    return Plan(seed, settings, partitions, scripts, epilogue, tuple(events), ends_at, session_sec)


def _settings(rng: random.Random) -> Settings:
    attempts, first_sec, longest_sec = (
        rng.choice([1, 1, 2, 3, 0]),
        rng.choice([0.0, 0.1, 0.5, 2.0]),
        rng.choice([0.5, 3.0]),
    )
    policy = FailurePolicy(
        max_attempts=attempts,
        first_backoff_sec=min(first_sec, longest_sec),
        max_backoff_sec=longest_sec,
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
    return in_order(scripts)


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
