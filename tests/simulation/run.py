"""Many seeds, up to the first that breaks a promise."""

import dataclasses
import gc
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from faststream_concurrent_kafka import KafkaConcurrentHandler
from faststream_concurrent_kafka._commit.admission import Admission
from faststream_concurrent_kafka._partition.ledger import PartitionLedger
from faststream_concurrent_kafka._record.record import Record
from tests.simulation.draws import make_plan
from tests.simulation.environment import environment
from tests.simulation.oracle import ViolationError
from tests.simulation.twists import Twist
from tests.simulation.world import World


_BETWEEN_COLLECTIONS = 50
_KEPT = (KafkaConcurrentHandler, Admission, PartitionLedger, Record)


@dataclasses.dataclass(frozen=True, slots=True)
class Play:
    """The result of a seed."""

    seed: int
    twist: Twist | None
    violation: str | None
    trace: list[tuple[Any, ...]]
    passes: int

    def report(self, lines: int = 60) -> str:
        """Describe the violation, how to replay it, and the events before it."""
        story = self.story().splitlines()
        omitted = [f"... {len(story) - lines} lines before"] if len(story) > lines else []
        twist = f" --twist '{self.twist}'" if self.twist else ""
        replay = f"replay it with: python -m tests.simulation {self.seed}{twist}"
        return "\n".join([f"seed {self.seed}: {self.violation}", replay, *omitted, *story[-lines:], replay])

    def story(self) -> str:
        """Return the trace, a line for each event."""
        return "\n".join(f"{at:9.4f} {who:>6} {' '.join(map(str, what))}" for at, who, *what in self.trace)


def simulate(seed: int, twist: Twist | None = None) -> Play:
    """Play the world of a seed; with a twist, if one is given."""
    world = World(make_plan(seed, twist))
    violation = None
    with environment(world):
        try:
            world.play()
        except ViolationError as error:
            violation = str(error)
        finally:
            world.dispose()
    return Play(seed, twist, violation, world.oracle.trace, world.oracle.passes)


def play_all(seeds: Iterable[int], twist: Twist | None = None, progress: Callable[[str], object] = str) -> Play | None:
    """Play seeds, and return the first play in which a promise was broken."""
    with _collecting_by_hand():
        for count, seed in enumerate(seeds, 1):
            played = simulate(seed, twist)
            if played.violation is not None:
                return played
            if count % _BETWEEN_COLLECTIONS == 0:
                gc.collect()
            if count % 500 == 0:
                progress(f"{count} seeds")
    return None


def what_is_kept() -> list[object]:
    """Return the objects of the library that are still in memory."""
    gc.collect()
    return [each for each in gc.get_objects() if isinstance(each, _KEPT)]


@contextmanager
def _collecting_by_hand() -> Generator[None]:
    # A seed takes milliseconds, and the collector would traverse all imported objects.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
