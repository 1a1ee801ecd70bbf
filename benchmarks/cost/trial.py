"""One measurement of CPU per record, and its result: exchanged by the parent and the measuring processes."""

import dataclasses
import json
from typing import Literal, Self


System = Literal["sequential", "floor", "library"]
"""FastStream's own loop; FastStream with one bare task per record; this library."""
Collector = Literal["default", "tuned", "off"]

SYSTEMS: tuple[System, ...] = ("sequential", "floor", "library")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CostTrial:
    """One measurement, made in a fresh process."""

    system: System
    records: int
    concurrency_limit: int = 100
    sleep_sec: float | None = None
    """How long a handler sleeps; 0 = it suspends for one turn of the loop, None = it does not suspend."""
    collector: Collector = "default"
    is_counted: bool = False
    """Whether instructions or bytecodes are counted, which slows everything down: it runs in virtual time."""
    profile: bool = False
    """Whether bytecodes are counted by function, instead of time."""

    def to_json(self) -> str:
        """Return the trial as text for the measuring process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it back."""
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """What one function of Python code does per record."""

    package: str
    name: str
    bytecodes: float
    resumptions: float
    """Calls, and resumptions of a coroutine."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The result of a trial."""

    cpu_us: float
    """CPU microseconds per record, from the first handler on."""
    functions: tuple[Function, ...] = ()
    """Only with `profile`; then `cpu_us` is meaningless."""

    def to_json(self) -> str:
        """Return what the parent reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it back."""
        read = json.loads(text)
        return cls(cpu_us=read["cpu_us"], functions=tuple(Function(**each) for each in read["functions"]))
