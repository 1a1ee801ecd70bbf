"""Rarer events that only some worlds have: each twist changes a plan, by its own random numbers.

So the worlds of seeds without a twist do not change when a twist is added here.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Literal

from tests.simulation.plan import FOREVER, SLOTS, End, Event, Fault, Plan, Script, Step


Twist = Literal[
    "latest",
    "one refused",
    "wide gaps",
    "another tail",
    "thrown out",
    "polls",
    "late",
    "pauses",
    "seeks",
    "subscribes",
    "bursts",
    "panics",
    "stops itself",
]
_HAS_ONE = 0.45
_HAS_TWO = 0.1
# Not yet: "another tail" and "thrown out", which are played alone, and "late", whose records the handler of these
# worlds does not know.
_DRAWN: tuple[Twist, ...] = (
    "latest",
    "one refused",
    "wide gaps",
    "polls",
    "pauses",
    "seeks",
    "subscribes",
    "bursts",
    "panics",
    "stops itself",
)


def twisted(plan: Plan, twist: Twist | None) -> Plan:
    """Return the plan with the twists of its seed, or with the given twist only."""
    rng = random.Random(f"twists of {plan.seed}")  # noqa: S311 - a simulation, no secret
    draw = rng.random()
    chosen = rng.sample(_DRAWN, (draw < _HAS_ONE) + (draw < _HAS_TWO)) if twist is None else [twist]
    for each in chosen:
        plan = _TWISTS[each](plan, rng)
    events = tuple(sorted(plan.events, key=lambda event: event.at))
    return dataclasses.replace(plan, events=events, epilogue=epilogue_of(plan.scripts, plan.partitions))


def in_order(scripts: Sequence[Script]) -> tuple[Script, ...]:
    """Let the records of each partition arrive in the order of their offsets."""
    ordered = list(scripts)
    for partition in {script.partition for script in scripts}:
        places = [place for place, script in enumerate(scripts) if script.partition == partition]
        moments = sorted(scripts[place].at for place in places)
        for place, at in zip(places, moments, strict=True):
            ordered[place] = dataclasses.replace(scripts[place], at=at)
    return tuple(ordered)


def epilogue_of(scripts: Sequence[Script], partitions: int) -> tuple[Script, ...]:
    """Return one more record for each partition, after all others."""
    ends = [1 + max((each.offset for each in scripts if each.partition == it), default=-1) for it in range(partitions)]
    step = Step(0.0, "return")
    return tuple(
        Script(len(scripts) + partition, partition, end, None, "good", FOREVER, (step,))
        for partition, end in enumerate(ends)
    )


# -- the broker's --------------------------------------------------------------------------------------------------


def _latest(plan: Plan, rng: random.Random) -> Plan:
    """Partitions begin at the end; some have their first record late, while processes start and stop."""
    quiet = [rng.choice([0.0, 0.3, 0.6]) * plan.ends_at for _ in range(plan.partitions)]
    scripts = [
        dataclasses.replace(script, at=rng.uniform(quiet[script.partition], plan.ends_at * 0.95))
        for script in plan.scripts
    ]
    events = list(plan.events)
    for _ in range(rng.choice([1, 2, 3])):
        at = rng.uniform(0.1, 0.8) * plan.ends_at
        events.append(_event(rng, at, rng.choice(["stop", "crash"]), slot=rng.choice([0, 0, 1])))
        events.append(_event(rng, at + rng.random(), "start", slot=rng.randrange(SLOTS)))
    return dataclasses.replace(plan, reset="latest", scripts=in_order(scripts), events=tuple(events))


def _one_refused(plan: Plan, rng: random.Random) -> Plan:
    """Commits of one partition are refused for some time, in which the group rebalances or stops."""
    events = list(plan.events)
    for _ in range(rng.choice([1, 2])):
        at = rng.uniform(0, plan.ends_at * 0.6)
        events.append(_event(rng, at, "refuse a partition", for_sec=rng.choice([0.5, 3.0, 9.0])))
        after: list[Fault] = ["rebalance", "rebalance", "stop", "start"]
        # At any time of its retries.
        events += [_event(rng, at + rng.uniform(0.2, 6), rng.choice(after), slot=0) for _ in range(3)]
    if rng.random() < 0.7:
        # That a single partition is refused shows only when others are committed with it.
        settings = dataclasses.replace(
            plan.settings, rebalance_flush_timeout_sec=3.0, commit_batch_timeout_sec=0.5, commit_batch_size=1000
        )
        plan = dataclasses.replace(plan, settings=settings)
    return dataclasses.replace(plan, events=tuple(events))


def _wide_gaps(plan: Plan, rng: random.Random) -> Plan:
    """Compaction has left few records."""
    often = rng.choice([0.1, 1.0])
    shifts = [0] * plan.partitions
    scripts = []
    for script in plan.scripts:
        if rng.random() < often:
            shifts[script.partition] += rng.choice([100, 3000, 20_000])
        scripts.append(dataclasses.replace(script, offset=script.offset + shifts[script.partition]))
    return dataclasses.replace(plan, scripts=tuple(scripts))


def _another_tail(plan: Plan, rng: random.Random) -> Plan:
    """All processes crash, and the new leader has other records at offsets that were delivered."""
    at = rng.uniform(0.4, 1.0) * plan.ends_at
    cut = _event(rng, at, "cut the log")
    events = (*plan.events, cut, _event(rng, at + rng.random(), "start", slot=0))
    plan = dataclasses.replace(plan, events=events)
    mine = [place for place, script in enumerate(plan.scripts) if script.partition == cut.place % plan.partitions]
    if mine and rng.random() < 0.8:
        # A record that is still being handled, so that commits have metadata.
        stuck = mine[rng.randrange(len(mine)) // 2]
        scripts = list(plan.scripts)
        scripts[stuck] = dataclasses.replace(scripts[stuck], kind="good", steps=(Step(at, "return"),))
        settings = dataclasses.replace(
            plan.settings,
            commit_metadata=True,
            handler_timeout_sec=0.0,
            max_uncommitted_tasks=1000,
            ordering="unordered",
        )
        plan = dataclasses.replace(plan, settings=settings, scripts=tuple(scripts))
    return plan


def _thrown_out(plan: Plan, rng: random.Random) -> Plan:
    """A member is evicted without noticing; another one takes over, commits, and leaves the group empty."""
    events = list(plan.events)
    for _ in range(rng.choice([2, 4])):
        at = rng.uniform(0.1, 0.8) * plan.ends_at
        events.append(_event(rng, at - rng.choice([0.0, 0.5]), "start", slot=1))
        events.append(_event(rng, at, "lose membership", slot=rng.choice([0, 0, 1])))
        leaves_at = at + rng.choice([0.05, 0.3, 1.0, 3.0]) * rng.random()
        events.append(_event(rng, leaves_at, rng.choice(["stop", "stop", "lose membership"]), slot=1))
    return dataclasses.replace(plan, events=tuple(events))


def _polls(plan: Plan, rng: random.Random) -> Plan:
    """Handlers, drains and stops may take longer than `max_poll_interval_ms`."""
    return dataclasses.replace(plan, max_poll_sec=rng.choice([0.3, 0.8, 2.0]))


# -- the user's ----------------------------------------------------------------------------------------------------


def _late(plan: Plan, rng: random.Random) -> Plan:
    """The library is initialised when the broker runs already, and FastStream may have a record in hand."""
    return dataclasses.replace(plan, initialises_after_sec=rng.choice([0.0, 0.05, 0.5, 2.0]) * rng.random())


def _user_does(what: Fault) -> Callable[[Plan, random.Random], Plan]:
    def add(plan: Plan, rng: random.Random) -> Plan:
        more = [
            _event(
                rng,
                rng.uniform(0, plan.ends_at),
                what,
                slot=rng.choice([0, 0, 1]),
                for_sec=rng.choice([0.01, 0.5, 3.0]),
            )
            for _ in range(rng.choice([2, 4]))
        ]
        return dataclasses.replace(plan, events=(*plan.events, *more))

    return add


def _bursts(plan: Plan, rng: random.Random) -> Plan:
    """There are far more records than the window has places, all of them buffered."""
    steps = (Step(rng.choice([0.0, 0.005, 0.05]), "return"),)
    scripts, ends = list(plan.scripts), [script.offset for script in epilogue_of(plan.scripts, plan.partitions)]
    at = rng.choice([0.0, 0.0, plan.ends_at / 2])
    for _ in range(rng.choice([40, 80, 160])):
        partition = rng.randrange(plan.partitions)
        key = rng.choice([None, b"%d" % rng.randrange(12)])
        scripts.append(Script(len(scripts), partition, ends[partition], key, "good", at, steps))
        ends[partition] += 1
    settings = dataclasses.replace(
        plan.settings,
        max_uncommitted_tasks=rng.choice([3, 8, 20, 1000]),
        concurrency_limit=rng.choice([0, 4, 100]),
    )
    return dataclasses.replace(plan, settings=settings, scripts=in_order(scripts), delays_fetches=False)


# -- handlers ------------------------------------------------------------------------------------------------------


def _panics(plan: Plan, rng: random.Random) -> Plan:
    """Some exceptions of handlers are no `Exception`."""
    kinds: list[End] = ["panic", "exit its generator"]
    scripts = [
        dataclasses.replace(
            script,
            steps=tuple(
                dataclasses.replace(step, end=rng.choice(kinds)) if step.end == "raise" else step
                for step in script.steps
            ),
        )
        for script in plan.scripts
    ]
    if plan.settings.on_failure.max_attempts > 0:
        chosen = rng.randrange(len(scripts))
        step = Step(rng.random() * 0.1, rng.choice(kinds))
        scripts[chosen] = dataclasses.replace(scripts[chosen], kind="good", steps=(step,))
    return dataclasses.replace(plan, scripts=tuple(scripts))


def _stops_itself(plan: Plan, rng: random.Random) -> Plan:
    """A handler stops the broker that it runs on."""
    scripts = list(plan.scripts)
    chosen = rng.randrange(len(scripts))
    step = Step(rng.random() * 0.3, "stop the broker")
    scripts[chosen] = dataclasses.replace(scripts[chosen], kind="good", steps=(step,))
    again = _event(rng, rng.uniform(0.5, 1) * plan.ends_at, "start")
    # It waits for all other records, for an unknown time.
    settings = dataclasses.replace(plan.settings, handler_timeout_sec=0.0)
    return dataclasses.replace(plan, settings=settings, scripts=tuple(scripts), events=(*plan.events, again))


def _event(rng: random.Random, at: float, what: Fault, *, slot: int | None = None, for_sec: float = 0) -> Event:
    turns = rng.choice([0, 0, 1, 3, 8])
    slot = rng.randrange(SLOTS) if slot is None else slot
    return Event(at, turns, what, slot, for_sec, rng.choice([1, 2]), rng.randrange(1000))


_TWISTS: dict[Twist, Callable[[Plan, random.Random], Plan]] = {
    "latest": _latest,
    "one refused": _one_refused,
    "wide gaps": _wide_gaps,
    "another tail": _another_tail,
    "thrown out": _thrown_out,
    "polls": _polls,
    "late": _late,
    "pauses": _user_does("pause"),
    "seeks": _user_does("seek back"),
    "subscribes": _user_does("subscribe"),
    "bursts": _bursts,
    "panics": _panics,
    "stops itself": _stops_itself,
}
