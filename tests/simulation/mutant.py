"""A library that is deliberately broken: how, and which promise that breaks."""

import dataclasses
from collections.abc import Callable

import pytest

from tests.simulation.twists import Twist


Patch = Callable[[pytest.MonkeyPatch], None]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A way to break the library, and the promises that it breaks."""

    name: str
    breaks: tuple[str, ...]
    """One of these is what the simulation says."""
    apply: Patch
    first: int = 0
    within: int = 400
    """So many seeds from the first on are enough."""
    twist: Twist | None = None
    """In each of their worlds, if it takes one."""

    @property
    def seeds(self) -> range:
        """Return which seeds are played."""
        return range(self.first, self.first + self.within)


def mutant(*breaks: str, first: int = 0, within: int = 400, twist: Twist | None = None) -> Callable[[Patch], Mutant]:
    """Make a mutant of a patch."""
    return lambda apply: Mutant(getattr(apply, "__name__", ""), breaks, apply, first, within, twist)
