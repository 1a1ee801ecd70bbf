"""The faults of a run follow from its seed, and the tables are written between the markers."""

from collections import Counter
from itertools import pairwise
from typing import get_args

import pytest

from chaos import document
from chaos.plan import SESSION_TIMEOUT_SEC, Kind, plan
from chaos.run import RunSettings


def test_the_same_seed_gives_the_same_faults_and_another_one_others():
    """The plan depends on the seed only, so that a failed run can be repeated."""
    first, again, other = (plan(seed, seconds=300, gap_sec=6) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_a_short_run_sees_each_kind_once_and_a_long_one_all_of_them_often():
    """Each kind of fault occurs, and every freeze is longer than the session timeout."""
    for seed in range(20):
        faults = plan(seed, seconds=1_500, gap_sec=6)
        kinds = [fault.kind for fault in faults]
        assert set(kinds[:10]) == set(get_args(Kind))
        assert min(Counter(kinds).values()) >= 8
        assert 200 <= len(faults) <= 300
        assert faults[-1].at_sec < 1_500
        assert all(later.at_sec > earlier.at_sec for earlier, later in pairwise(faults))
        assert all(each.lasts_sec > SESSION_TIMEOUT_SEC for each in faults if each.kind == "freeze")
        assert all(0 <= each.pick < 1 for each in faults)


def test_most_handlers_are_quick_some_are_slow_and_keys_are_even():
    """The load is the same in every process of a seed."""
    asked = RunSettings(seed=3, minutes=1, records=50_000, gap_sec=6)
    load, again = asked.load, asked.load
    seconds = [load.steps(number)[0].after_sec for number in range(load.count)]
    assert seconds == [again.steps(number)[0].after_sec for number in range(load.count)]
    slow = [each for each in seconds if each >= 0.3]
    assert 50 < len(slow) < 200
    assert max(slow) < 2
    assert max(each for each in seconds if each < 0.3) < 0.02
    times = Counter(map(load.key, range(load.count)))
    assert len(times) == load.keys
    assert max(times.values()) < 60


def test_the_tables_go_between_their_markers(story, tmp_path):
    """The rest of the document stays as it is; a document without markers is an error."""
    story.handle(1, range(10), 2)
    findings = story.findings()
    page = tmp_path / "reliability.md"
    page.write_text(f"# Before\n\n{document.BEGIN}\nold\n{document.END}\n\nAfter\n")
    document.write(findings, document.conditions("python -m chaos"), page)
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\n\nAfter\n")
    assert "old" not in text
    assert "| records lost" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="chaos: begin"):
        document.write(findings, "", page)
