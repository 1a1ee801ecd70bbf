"""The library, deliberately broken: each mutant breaks a promise, and the simulation has to notice."""

from tests.simulation import committing_mutants, handling_mutants
from tests.simulation.mutant import Mutant


MUTANTS = [
    each
    for module in (committing_mutants, handling_mutants)
    for each in vars(module).values()
    if isinstance(each, Mutant)
]
