"""Code that tests share with other programs is in testkit: no module outside of tests imports from tests."""

import re
from pathlib import Path


ROOT = Path(__file__).parents[2]
_NAMES_TESTS = re.compile(r"^\s*(from|import) tests\b|[\"']tests\.", re.MULTILINE)


def test_nothing_outside_of_tests_imports_from_tests():
    sources = [
        path
        for folder in ("src", "testkit", "chaos", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 50
    assert not [str(path) for path in sources if _NAMES_TESTS.search(path.read_text())]
