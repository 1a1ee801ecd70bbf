"""The table of a record's transitions has exactly the transitions that happen."""

import pytest

from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.state import TRANSITIONS
from tests.simulation.run import play_all
from tests.states import SeenStates


@pytest.mark.slow("it plays worlds until every transition has happened")
def test_every_transition_of_the_table_happens_and_no_other(monkeypatch):
    """In as many random worlds as needed."""
    seen = SeenStates()
    monkeypatch.setattr(Record, "state", seen)
    table = {(before, after) for before, afters in TRANSITIONS.items() for after in afters}
    for first in range(0, 1000, 50):
        assert play_all(range(first, first + 50)) is None
        if len(seen.transitions) >= len(table):
            break
    assert seen.transitions == table
