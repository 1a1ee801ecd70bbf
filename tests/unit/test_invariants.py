"""The list of invariants and its citations agree."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import invariants
from tests.simulation.mutants import MUTANTS
from tests.simulation.promises import PROMISES


STATED = invariants.stated(invariants.DOCUMENT.read_text())


def test_invariants_are_numbered_one_after_the_other():
    """The numbers are consecutive, and each is used once."""
    assert [f"I{number}" for number in range(1, len(STATED) + 1)] == STATED


@pytest.mark.parametrize("kind", ["Kept in", "Simulation", "Mutants", "Tests"])
def test_nothing_cites_an_invariant_that_there_is_not(kind):
    """Each cited number has a statement in the document."""
    assert invariants.citations()[kind].keys() <= set(STATED)


@pytest.mark.parametrize("number", STATED)
def test_each_invariant_is_cited_by_code_and_by_a_test(number):
    """The module that keeps it and a test that fails without it cite its number."""
    assert number in invariants.citations()["Kept in"]
    assert number in invariants.citations()["Tests"]


def test_the_document_is_up_to_date():
    """`python -m tests.invariants` brings it up to date."""
    text = invariants.DOCUMENT.read_text()
    assert invariants.written(text) == text


def test_mutants_break_promises_that_are_known():
    """Each mutant names promises of the simulation, which belong to invariants."""
    assert {promise for mutant in MUTANTS for promise in mutant.breaks} <= PROMISES.keys()


_CHECKS = {"violated", "check_committed", "_until"}


def checked_promises() -> Iterator[str]:
    """Yield the promises that the simulation's code names where it checks them."""
    for path in Path(invariants.__file__).parent.glob("simulation/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := getattr(node.func, "attr", "")) in _CHECKS:
                # The world names itself first, and `_until` takes what it waits for.
                texts = [each.value if isinstance(each, ast.Constant) else None for each in node.args]
                promise = texts[1] if name == "_until" or texts[0] == "world" else texts[0]
                if isinstance(promise, str):
                    yield promise


def test_the_simulation_checks_the_promises_that_have_a_number():
    """A promise without a number would fail only in the run that finds it broken."""
    assert set(checked_promises()) == PROMISES.keys()
