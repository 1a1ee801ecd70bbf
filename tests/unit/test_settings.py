"""Settings are checked at start-up, and an error names the setting, the value and what is allowed."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faststream_concurrent_kafka import ConcurrentKafkaError, KafkaConcurrentHandler, SettingsError
from faststream_concurrent_kafka.settings import Settings


def build(**options: Any) -> Settings:
    return Settings(**options)


INTEGERS = {"concurrency_limit": 0, "commit_batch_size": 1, "max_uncommitted_tasks": 1}
SECONDS = (
    "commit_batch_timeout_sec",
    "shutdown_timeout_sec",
    "rebalance_flush_timeout_sec",
    "commit_failure_timeout_sec",
)
BAD_NUMBERS = st.one_of(
    st.integers(max_value=-1),
    st.floats(max_value=-0.001),
    st.sampled_from([math.nan, math.inf, -math.inf, None, "5", True, False, [], b"1"]),
)


@given(name=st.sampled_from([*INTEGERS, *SECONDS]), value=BAD_NUMBERS)
def test_a_bad_number_names_itself_and_what_is_allowed(name, value):
    """Wrong type, out of range, not finite: the error says which setting, what it got and what it takes."""
    with pytest.raises(SettingsError) as raised:
        build(**{name: value})
    text = str(raised.value)
    assert name in text
    assert repr(value) in text
    assert "must be" in text


@pytest.mark.parametrize(("name", "least"), INTEGERS.items())
def test_integers_start_at_their_least_value_and_take_no_fraction(name, least):
    """Zero means no limit for the concurrency, and is refused where it would stall."""
    assert getattr(build(**{name: least}), name) == least
    for value in (least - 1, 1.5):
        with pytest.raises(SettingsError, match=name):
            build(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_zero_seconds_are_refused_except_for_the_rebalance(name):
    """A rebalance that waits for nobody is a choice; a commit or stop that never waits is a mistake."""
    if name == "rebalance_flush_timeout_sec":
        assert build(**{name: 0}).rebalance_flush_timeout_sec == 0
    else:
        with pytest.raises(SettingsError, match="greater than 0"):
            build(**{name: 0})


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_enable_batch_commit_is_a_bool(value):
    """A truthy value is not taken for True."""
    with pytest.raises(SettingsError, match="enable_batch_commit must be True or False"):
        build(enable_batch_commit=value)


def test_settings_errors_are_value_errors_of_the_librarys_root():
    """Callers may catch either."""
    assert issubclass(SettingsError, ValueError)
    assert issubclass(SettingsError, ConcurrentKafkaError)


def test_a_refused_setting_leaves_no_half_made_singleton():
    """The next construction, with good settings, works."""
    with pytest.raises(SettingsError):
        KafkaConcurrentHandler(concurrency_limit=-1)
    assert KafkaConcurrentHandler._instance is None
    handler = KafkaConcurrentHandler(concurrency_limit=7)
    try:
        assert handler.settings.concurrency_limit == 7
        assert KafkaConcurrentHandler(concurrency_limit=7) is handler
    finally:
        handler.discard()
