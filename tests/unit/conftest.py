"""Every unit test starts without a handler, leaves none behind, and its records keep to the table of their states."""

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
    """Return the pairs of states that records of the test have gone through."""
    seen = SeenStates()
    monkeypatch.setattr(Record, "state", seen)
    yield seen.transitions
    assert not {(before, after) for before, after in seen.transitions if after not in TRANSITIONS[before]}
