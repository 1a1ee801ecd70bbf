"""Which faults happen when, drawn from one seeded `random.Random`. Pure: the same seed gives the same faults."""

import random
from typing import Literal, NamedTuple, get_args


SESSION_TIMEOUT_SEC = 6.0

Kind = Literal[
    "stop",
    "kill",
    "freeze",
    "rolling deploy",
    "scale up",
    "scale down",
    "broker kill",
    "broker pause",
    "stop all",
    "kill all",
]

# How often each kind is in a bag. Kinds are drawn until the bag is empty, then it is filled again, so each kind occurs.
_BAG: dict[Kind, int] = {
    "stop": 4,
    "kill": 4,
    "freeze": 3,
    "rolling deploy": 2,
    "scale up": 1,
    "scale down": 1,
    "broker kill": 2,
    "broker pause": 2,
    "stop all": 1,
    "kill all": 1,
}

# For how many seconds a fault lasts (frozen, silent, down, another number of workers); other kinds are instantaneous.
_LASTS_SEC: dict[Kind, tuple[float, float]] = {
    "freeze": (SESSION_TIMEOUT_SEC + 1.5, SESSION_TIMEOUT_SEC + 4.0),
    "scale up": (6.0, 20.0),
    "scale down": (6.0, 20.0),
    "broker kill": (0.5, 6.0),
    "broker pause": (1.0, 9.0),
}

_FIRST_SEC = 3.0


class Fault(NamedTuple):
    """One fault, with its time since the beginning of the run."""

    at_sec: float
    kind: Kind
    pick: float
    """From 0 to below 1: chooses the victim among the processes of that moment."""
    lasts_sec: float


def plan(seed: int, *, seconds: float, gap_sec: float) -> list[Fault]:
    """Return the faults of a run of so many seconds, `gap_sec` apart on average."""
    drawn = random.Random(seed)  # noqa: S311 - repeatable, not secret
    faults: list[Fault] = []
    bag: list[Kind] = []
    at_sec = _FIRST_SEC
    while at_sec < seconds:
        if not bag:
            # One of each kind first, so that a short run has many kinds.
            firsts, others = list(get_args(Kind)), [kind for kind, times in _BAG.items() for _ in range(times - 1)]
            drawn.shuffle(firsts)
            drawn.shuffle(others)
            bag = [*others, *firsts] if not faults else drawn.sample(others + firsts, len(others) + len(firsts))
        kind = bag.pop()
        faults.append(Fault(at_sec, kind, drawn.random(), drawn.uniform(*_LASTS_SEC.get(kind, (0.0, 0.0)))))
        at_sec += drawn.uniform(0.4, 1.6) * gap_sec
    return faults
