"""Every unit test starts and ends without a handler, and its records make only transitions of the table."""

import pytest

from faststream_concurrent_kafka import KafkaConcurrentHandler
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.state import TRANSITIONS
from tests.states import SeenStates


@pytest.fixture(autouse=True)
def fresh_singleton():
    KafkaConcurrentHandler._instance = None
    yield
    assert KafkaConcurrentHandler._instance is None


@pytest.fixture(autouse=True)
def transitions(monkeypatch):
    """Return the transitions that the records of the test have made."""
    seen = SeenStates()
    monkeypatch.setattr(Record, "state", seen)
    yield seen.transitions
    assert not {(before, after) for before, after in seen.transitions if after not in TRANSITIONS[before]}
