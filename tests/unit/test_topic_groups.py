"""Which consumer group a record is meant for, by its `topic_group` headers."""

import logging

import pytest

from faststream_concurrent_kafka._record.topic_group import for_group, make_readable
from tests.unit.world import raw_record


OURS, THEIRS, UNREADABLE = b"billing", b"audit", b"\xff\xfe"


def headed(*groups):
    """A record with such `topic_group` headers, and others before and behind."""
    raw = raw_record()
    raw.headers = (("a", b"1"), *(("topic_group", group) for group in groups), ("b", b"\xff"))
    return raw


@pytest.mark.parametrize("groups", [(), (OURS,), (OURS, THEIRS), (OURS, OURS)])
def test_a_record_for_this_group_or_for_every_group_is_left_as_it_is(groups):
    """Of several headers the first decides."""
    raw = headed(*groups)
    assert for_group(raw, "billing") is raw


@pytest.mark.parametrize("groups", [(THEIRS,), (THEIRS, OURS), (UNREADABLE, THEIRS), (THEIRS, UNREADABLE), (b"",)])
@pytest.mark.parametrize("ours", ["billing", None])
def test_a_record_for_others_is_not_ours(groups, ours):
    """Also if the subscriber has no group at all."""
    assert for_group(headed(*groups), ours) is None


@pytest.mark.parametrize("value", [UNREADABLE, None, 5])
@pytest.mark.parametrize("readable", [(), (OURS,)])
def test_what_can_not_be_read_is_taken_out(value, readable, caplog):
    """At any place among the headers; the log names it once, with a part of its value."""
    for groups in ((value, *readable), (*readable, value)):
        raw = headed(*groups)
        wanted = for_group(raw, "billing")
        assert wanted == headed(*readable)
        assert len(raw.headers) == 3 + len(readable)
        make_readable(raw)
        assert raw == wanted
        assert for_group(raw, "billing") is raw
    assert [each.levelno for each in caplog.records] == [logging.WARNING] * 4


def test_a_hostile_value_does_not_fill_the_log(caplog):
    """At most a hundred characters of it are printed."""
    assert for_group(headed(b"\xff" * 1_000_000), "billing") == headed()
    assert len(caplog.text) < 400


def test_nothing_is_made_for_a_record_without_the_header():
    """Its headers stay the same object."""
    raw = headed()
    before = raw.headers
    make_readable(raw)
    assert raw.headers is before
