"""`python -m tests.simulation SEED` replays a seed; `--seeds COUNT [--first SEED]` plays many, up to one that fails."""

import argparse
import secrets
import sys
import time
from typing import get_args

from tests.simulation.draws import make_plan
from tests.simulation.plan import options_of
from tests.simulation.run import play_all, simulate
from tests.simulation.twists import Twist


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="the seed to replay, with its plan and its trace")
    parser.add_argument("--seeds", type=int, default=1000, help="how many to play instead")
    parser.add_argument("--first", type=int, help="from which on; without it a random one")
    parser.add_argument("--twist", choices=get_args(Twist), help="what is in all of them, instead of what they draw")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.twist)
    first = secrets.randbelow(10**9) if arguments.first is None else arguments.first
    tell(f"{arguments.seeds} seeds from {first} on")
    began = time.monotonic()
    failed = play_all(range(first, first + arguments.seeds), arguments.twist, progress=tell)
    if failed is not None:
        tell(failed.report())
        return 1
    tell(f"no promise broken, {(time.monotonic() - began) / arguments.seeds * 1000:.0f} ms a seed")
    return 0


def replay(seed: int, twist: Twist | None) -> int:
    plan = make_plan(seed, twist)
    tell(f"seed {seed}: {plan.partitions} partitions, until {plan.ends_at} s, session timeout {plan.session_sec} s")
    for name, value in options_of(plan.settings).items():
        tell(f"  {name}={value!r}")
    for script in plan.scripts:
        steps = ", ".join(f"{step.end} after {step.takes_sec:.3f} s" for step in script.steps)
        place = f"{script.partition}@{script.offset}"
        tell(f"  record {script.number} at {place}, key {script.key!r}, {script.kind}, {script.at:.3f} s: {steps}")
    played = simulate(seed, twist)
    tell(played.story())
    tell(played.violation or "no promise broken")
    return int(played.violation is not None)


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
