"""Records the transitions between states of records during a test."""

from typing import Any

from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.state import State


class SeenStates:
    """Replaces `Record.state`, and notes each transition. It raises nothing, because a handler might swallow that."""

    def __init__(self) -> None:
        self.transitions: set[tuple[State, State]] = set()
        self._slot: Any = Record.state

    def __get__(self, record: Any, _owner: Any = None) -> Any:
        """Return the state of a record."""
        return self if record is None else self._slot.__get__(record)

    def __set__(self, record: Any, state: State) -> None:
        """Note the transition of a record."""
        before = self._slot.__get__(record) if hasattr(record, "state") else state
        if before is not state:
            self.transitions.add((before, state))
        self._slot.__set__(record, state)
