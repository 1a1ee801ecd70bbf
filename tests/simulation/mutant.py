"""A mutant: a deliberate fault in the library, and the promises that it breaks."""

import dataclasses
from collections.abc import Callable

import pytest

from tests.simulation.twists import Twist


Patch = Callable[[pytest.MonkeyPatch], None]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A deliberate fault in the library, and the promises that it may break."""

    name: str
    breaks: tuple[str, ...]
    """The simulation has to report one of these."""
    apply: Patch
    first: int = 0
    within: int = 400
    """How many seeds, from the first on, are enough to find it."""
    twist: Twist | None = None
    """The twist of all these worlds, if it needs one."""

    @property
    def seeds(self) -> range:
        """Return the seeds to play."""
        return range(self.first, self.first + self.within)


def mutant(*breaks: str, first: int = 0, within: int = 400, twist: Twist | None = None) -> Callable[[Patch], Mutant]:
    """Make a mutant of a patch."""
    return lambda apply: Mutant(getattr(apply, "__name__", ""), breaks, apply, first, within, twist)
