"""Links between documents of the repository lead to files and headings that exist."""

import re

import pytest

from tests.examples.programs import ROOT


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CLAUDE.md", *sorted(ROOT.glob("docs/**/*.md"))]


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_link_names_a_file_and_a_heading_that_exist(page):
    """Links to other sites are not checked."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if ":" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target
