"""docs/invariants.md: `python -m tests.invariants` collects the citations of each invariant, and writes them there."""

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.simulation.mutants import MUTANTS
from tests.simulation.promises import PROMISES


_ROOT = Path(__file__).parents[1]
DOCUMENT = _ROOT / "docs" / "invariants.md"
_SOURCE = _ROOT / "src" / "faststream_concurrent_kafka"
_TESTS = _ROOT / "tests"
# The table of the simulation's promises, and what only speaks of citations.
_NOT_CITING = {_TESTS / "simulation" / "promises.py", Path(__file__), _TESTS / "unit" / "test_invariants.py"}
_NUMBER = re.compile(r"\bI\d+\b")
_STATEMENT = re.compile(r"^- \*\*(I\d+)\*\* ", re.MULTILINE)
_COLLECTED = "  - "


def stated(text: str) -> list[str]:
    """Return the numbers of the invariants of a document, in its order."""
    return [found[1] for found in _STATEMENT.finditer(text)]


def cited_by(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each invariant that a Python file of a folder cites, with the file."""
    for path in sorted(folder.rglob("*.py")):
        if path not in _NOT_CITING:
            for number in sorted({found[0] for found in _NUMBER.finditer(path.read_text())}):
                yield number, path


@functools.cache
def citations() -> dict[str, Mapping[str, list[str]]]:
    """Return what cites invariants: by kind and number, in which order they are written down."""
    return {
        "Kept in": _by_number((number, str(path.relative_to(_SOURCE))) for number, path in cited_by(_SOURCE)),
        "Simulation": _by_number((number, promise) for promise, number in PROMISES.items()),
        "Mutants": _by_number(
            (number, mutant.name)
            for mutant in MUTANTS
            for number in sorted({PROMISES[promise] for promise in mutant.breaks})
        ),
        "Tests": _by_number((number, str(path.relative_to(_TESTS))) for number, path in cited_by(_TESTS)),
    }


def written(text: str) -> str:
    """Return the document with the citations of now below each statement."""
    lines: list[str] = []
    cited = citations()
    for line in text.splitlines():
        if line.startswith(_COLLECTED):
            continue
        lines.append(line)
        if (found := _STATEMENT.match(line)) is not None:
            for kind, by_number in cited.items():
                if places := ", ".join(f"`{place}`" for place in by_number.get(found[1], [])):
                    lines.append(f"{_COLLECTED}{kind}: {places}")
    return "\n".join([*lines, ""])


def _by_number(pairs: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    by_number: dict[str, list[str]] = {}
    for number, place in pairs:
        by_number.setdefault(number, []).append(place)
    return by_number


def main() -> int:
    """Bring the document up to date."""
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
