"""The guides name files that exist."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PLACES = (ROOT, ROOT / "src" / "faststream_concurrent_kafka")
# In code style: a path to a Python file, a folder of tests, or a file of a package.
PATH = re.compile(r"`((?:\w+/)*\w+\.py|tests(?:/\w+)+)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize(
    "name",
    [
        "CLAUDE.md",
        "AGENTS.md",
        "README.md",
        *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
    ],
)
def test_the_files_that_it_names_exist(name):
    """Each link and each path in the document leads to a file."""
    document = ROOT / name
    text = document.read_text()
    missing = [
        path for path in PATH.findall(text) if not any((place / path).exists() for place in (*PLACES, ROOT / "tests"))
    ]
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing
