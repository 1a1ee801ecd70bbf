"""Counts the bytecodes of each Python function: the same in every run, on every machine."""

import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Any

from benchmarks.cost.trial import Function


class Profile:
    """Counts bytecodes and resumptions by code object, from `begin` to `end`."""

    def __init__(self) -> None:
        self._bytecodes = Counter[CodeType]()
        self._resumptions = Counter[CodeType]()
        self._packages: dict[CodeType, str] = {}

    def begin(self) -> None:
        """Start counting."""
        sys.settrace(self._trace)

    def clear(self) -> None:
        """Reset the counts."""
        self._bytecodes.clear()
        self._resumptions.clear()

    def end(self, records: int) -> tuple[Function, ...]:
        """Stop counting; return the counts per record, the costliest functions first."""
        sys.settrace(None)
        return tuple(
            Function(
                self._packages.get(code, "?"), code.co_qualname, count / records, self._resumptions[code] / records
            )
            for code, count in self._bytecodes.most_common()
        )

    def _trace(self, frame: FrameType, event: str, _argument: object) -> Any:
        code = frame.f_code
        if event == "call":
            frame.f_trace_opcodes = True
            self._resumptions[code] += 1
            if code not in self._packages:
                self._packages[code] = _package(str(frame.f_globals.get("__name__", "?")))
        elif event == "opcode":
            self._bytecodes[code] += 1
        return self._trace


def _package(module: str) -> str:
    """Return the package of a module; the in-memory Kafka counts as part of the benchmark."""
    top = module.partition(".")[0]
    return "the benchmark" if top == "__main__" or module.startswith("faststream_concurrent_kafka.testing") else top
