"""The transitions between the states of records that happen while a test runs."""

from typing import Any

from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.state import State


class SeenStates:
    """In place of `Record.state`: notes each transition. It raises nothing, or a handler might swallow that."""

    def __init__(self) -> None:
        self.transitions: set[tuple[State, State]] = set()
        self._slot: Any = Record.state

    def __get__(self, record: Any, _owner: Any = None) -> Any:
        """Return the state of a record."""
        return self if record is None else self._slot.__get__(record)

    def __set__(self, record: Any, state: State) -> None:
        """Note that a record comes to another state."""
        before = self._slot.__get__(record) if hasattr(record, "state") else state
        if before is not state:
            self.transitions.add((before, state))
        self._slot.__set__(record, state)
