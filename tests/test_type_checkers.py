"""mypy and pyright check the settings like ty (`tests/unit/test_typed_api.py`), but take longer."""

import sys

import pytest

from tests.unit.test_typed_api import check_lines


CHECKERS = {
    "mypy": ["--strict", "--no-incremental", "--no-error-summary", "--hide-error-context", "--no-pretty"],
    "pyright": ["--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_another_type_checker_tells_right_from_wrong(tmp_path, checker):
    """Each right line passes, and each wrong one is reported."""
    check_lines(tmp_path, checker, *CHECKERS[checker])
