"""Every option of the library in one place: frozen, validated, units in the names."""

import dataclasses
import math
from typing import Any

from faststream_concurrent_kafka.errors import SettingsError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Validated settings of a `KafkaConcurrentHandler`.

    Raises:
        SettingsError: a value is of the wrong type or out of range; the text names it and what is allowed.

    """

    concurrency_limit: int = 100
    """Records handled at once, over all subscribers; 0 = no limit but `max_uncommitted_tasks`."""

    enable_batch_commit: bool = True
    """Whether the library commits (`AckPolicy.MANUAL` subscribers); False = the subscriber's own policy does."""

    commit_batch_size: int = 1000
    """Commit as soon as so many records have finished since the last commit ..."""

    commit_batch_timeout_sec: float = 1.0
    """... or so many seconds after the first of them finished, whichever comes first."""

    shutdown_timeout_sec: float = 15.0
    """Seconds that a stop waits for running handlers before it cancels them."""

    max_uncommitted_tasks: int = 10_000
    """Records of one partition that may be fetched and not yet acknowledged as committed by the broker."""

    rebalance_flush_timeout_sec: float = 3.0
    """Seconds that a rebalance waits for running handlers before the partitions are given away; 0 = not at all."""

    commit_failure_timeout_sec: float = 15.0
    """Seconds for which commits may keep failing before the health check turns red."""

    def __post_init__(self) -> None:
        _check_integer("concurrency_limit", self.concurrency_limit, at_least=0, meaning="0 = no limit")
        _check_integer("commit_batch_size", self.commit_batch_size, at_least=1)
        _check_integer("max_uncommitted_tasks", self.max_uncommitted_tasks, at_least=1)
        _check_seconds("commit_batch_timeout_sec", self.commit_batch_timeout_sec)
        _check_seconds("shutdown_timeout_sec", self.shutdown_timeout_sec)
        _check_seconds("commit_failure_timeout_sec", self.commit_failure_timeout_sec)
        _check_seconds("rebalance_flush_timeout_sec", self.rebalance_flush_timeout_sec, zero_allowed=True)
        if not isinstance(self.enable_batch_commit, bool):
            raise SettingsError(f"enable_batch_commit must be True or False, got {self.enable_batch_commit!r}")

    def differences(self, other: "Settings") -> str:
        """Say which settings of `other` differ from these, for an error message."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return ", ".join(f"{name}={mine!r} (now {theirs!r})" for name, mine, theirs in pairs if mine != theirs)


def _check_integer(name: str, value: Any, *, at_least: int, meaning: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        allowed = f"an integer of at least {at_least}" + (f" ({meaning})" if meaning else "")
        raise SettingsError(f"{name} must be {allowed}, got {value!r}")


def _check_seconds(name: str, value: Any, *, zero_allowed: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        allowed = "of at least 0" if zero_allowed else "greater than 0"
        raise SettingsError(f"{name} must be a finite number of seconds {allowed}, got {value!r}")
