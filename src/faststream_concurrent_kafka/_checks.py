"""Checks that settings share: an error names the setting, what was given and what is allowed."""

import sys
from typing import Any

from faststream_concurrent_kafka.errors import SettingsError


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be True or False, got {value!r}")


def check_integer(name: str, value: Any, *, at_least: int, meaning: str = "") -> None:
    """Refuse what is no integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        allowed = f"an integer of at least {at_least}" + (f" ({meaning})" if meaning else "")
        raise SettingsError(f"{name} must be {allowed}, got {value!r}")


def check_seconds(name: str, value: Any, *, zero_allowed: bool = False) -> None:
    """Refuse what is no finite number of seconds."""
    if not is_seconds(value) or (value == 0 and not zero_allowed):
        allowed = "of at least 0" if zero_allowed else "greater than 0"
        raise SettingsError(f"{name} must be a finite number of seconds {allowed}, got {value!r}")


def is_seconds(value: Any) -> bool:
    """Whether it is a finite number that is not negative."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer may be too large for a float; NaN compares with nothing.
    return is_number and bool(0 <= value <= sys.float_info.max)
