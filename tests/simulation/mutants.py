"""All mutants: each has a deliberate fault in the library, which the simulation has to find."""

from tests.simulation import committing_mutants, handling_mutants
from tests.simulation.mutant import Mutant


MUTANTS = [
    each
    for module in (committing_mutants, handling_mutants)
    for each in vars(module).values()
    if isinstance(each, Mutant)
]
