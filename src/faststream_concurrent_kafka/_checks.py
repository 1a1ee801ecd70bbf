"""Types of settings with a check: its error names the setting, the given value, and what is allowed."""

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

from faststream_concurrent_kafka.errors import SettingsError


def check_fields(settings: Any) -> None:
    """Check every field of a dataclass by the checks in its annotation.

    Raises:
        SettingsError: a value is of the wrong type or out of range.

    """
    for name, check in _checks_of(type(settings)):
        check(name, getattr(settings, name))


@functools.cache
def _checks_of(kind: type) -> list[tuple[str, Callable[[str, Any], None]]]:
    hints = get_type_hints(kind, include_extras=True).items()
    return [(name, check) for name, hint in hints for check in getattr(hint, "__metadata__", ())]


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be True or False, got {value!r}")


def check_integer(name: str, value: Any, *, at_least: int, meaning: str = "") -> None:
    """Check that a value is an integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        allowed = f"an integer of at least {at_least}" + (f" ({meaning})" if meaning else "")
        raise SettingsError(f"{name} must be {allowed}, got {value!r}")


def integer(at_least: int, meaning: str = "") -> Callable[[str, Any], None]:
    """Return a check that a value is an integer of at least `at_least`."""
    return functools.partial(check_integer, at_least=at_least, meaning=meaning)


def _check_seconds(name: str, value: Any, *, zero_allowed: bool) -> None:
    if not is_seconds(value) or (value == 0 and not zero_allowed):
        allowed = "of at least 0" if zero_allowed else "greater than 0"
        raise SettingsError(f"{name} must be a finite number of seconds {allowed}, got {value!r}")


def is_seconds(value: Any) -> bool:
    """Whether a value is a finite number that is not negative."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer may be too large for a float; NaN compares with nothing.
    return is_number and bool(0 <= value <= sys.float_info.max)


Flag = Annotated[bool, _check_flag]
Seconds = Annotated[float, functools.partial(_check_seconds, zero_allowed=False)]
SecondsOrZero = Annotated[float, functools.partial(_check_seconds, zero_allowed=True)]
