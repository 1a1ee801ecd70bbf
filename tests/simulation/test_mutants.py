"""The simulation finds each deliberate fault in the library, and reports the broken promise."""

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.promises import numbered
from tests.simulation.run import play_all


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_library_is_caught(mutant, monkeypatch):
    """A bounded number of seeds finds it, by one of its promises."""
    mutant.apply(monkeypatch)
    caught = play_all(mutant.seeds, mutant.twist)
    assert caught is not None, "it was not caught"
    assert caught.violation is not None
    assert caught.violation.partition(":")[0] in map(numbered, mutant.breaks), caught.report()


def test_the_report_replays():
    """A violation has a command that replays it, and the events before it."""
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS[0].apply(patch)
        caught = play_all(range(10))
    assert caught is not None
    assert f"python -m tests.simulation {caught.seed}" in caught.report()
    assert "VIOLATED" in caught.report()


def test_there_are_enough():
    """There are at least fifteen mutants, each with its own name."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 15
