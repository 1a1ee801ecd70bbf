"""Every option of the library in one place: frozen, validated, units in the names."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from faststream_concurrent_kafka._checks import check_flag, check_integer, check_seconds
from faststream_concurrent_kafka.errors import SettingsError
from faststream_concurrent_kafka.policies import FailurePolicy


Ordering = Literal["unordered", "key", "partition"]
"""Which records of one partition never overlap, and start in the order of their offsets."""


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

    commit_metadata: bool = True
    """Whether a commit tells, in its metadata, which records behind an unfinished one have finished: they are not
    handled again after a crash, nor by the next owner of the partition."""

    shutdown_timeout_sec: float = 15.0
    """Seconds that a stop waits for running handlers before it cancels them."""

    max_uncommitted_tasks: int = 10_000
    """Records of one partition that may be fetched and not yet acknowledged as committed by the broker."""

    rebalance_flush_timeout_sec: float = 3.0
    """Seconds that a rebalance waits for running handlers before the partitions are given away; 0 = not at all."""

    cancel_lost_handlers: bool = False
    """Whether handlers are cancelled whose partition went to another member; else they finish, and commit nothing."""

    commit_renewal_sec: float = 3600.0
    """Seconds after which the offsets of idle partitions are committed again, before they expire; 0 = never."""

    commit_failure_timeout_sec: float = 15.0
    """Seconds for which commits may keep failing before the health check turns red."""

    stall_timeout_sec: float = 60.0
    """Seconds without a record, where there is one, after which the health check turns red; 0 = never."""

    ordering: Ordering = "unordered"
    """"key": records of a partition with the same key, one at a time; "partition": all of a partition."""

    on_failure: FailurePolicy = FailurePolicy()  # noqa: RUF009 - frozen
    """What becomes of a record whose handling fails."""

    handler_timeout_sec: float = 0.0
    """Seconds after which a handler is cancelled, which counts as a failure; 0 = no limit."""

    def __post_init__(self) -> None:
        check_integer("concurrency_limit", self.concurrency_limit, at_least=0, meaning="0 = no limit")
        check_integer("commit_batch_size", self.commit_batch_size, at_least=1)
        check_integer("max_uncommitted_tasks", self.max_uncommitted_tasks, at_least=1)
        check_seconds("commit_batch_timeout_sec", self.commit_batch_timeout_sec)
        check_seconds("shutdown_timeout_sec", self.shutdown_timeout_sec)
        check_seconds("commit_failure_timeout_sec", self.commit_failure_timeout_sec)
        check_seconds("commit_renewal_sec", self.commit_renewal_sec, zero_allowed=True)
        check_seconds("rebalance_flush_timeout_sec", self.rebalance_flush_timeout_sec, zero_allowed=True)
        check_seconds("stall_timeout_sec", self.stall_timeout_sec, zero_allowed=True)
        check_flag("enable_batch_commit", self.enable_batch_commit)
        check_flag("commit_metadata", self.commit_metadata)
        check_flag("cancel_lost_handlers", self.cancel_lost_handlers)
        if self.ordering not in get_args(Ordering):
            raise SettingsError(f"ordering must be one of {', '.join(get_args(Ordering))}, got {self.ordering!r}")
        if not isinstance(self.on_failure, FailurePolicy):
            raise SettingsError(f"on_failure must be a FailurePolicy(...), got {self.on_failure!r}")
        if self.on_failure.then == "halt" and not self.enable_batch_commit:
            raise SettingsError(
                'on_failure=FailurePolicy(then="halt") needs enable_batch_commit=True: '
                "without it the subscriber's own policy commits past the failed record",
            )
        check_seconds("handler_timeout_sec", self.handler_timeout_sec, zero_allowed=True)

    def doubts(self) -> list[str]:
        """Say what is allowed and can hardly be meant, and what follows from it."""
        doubts = self.on_failure.doubts()
        if self.max_uncommitted_tasks < self.concurrency_limit:
            doubts.append(
                f"max_uncommitted_tasks={self.max_uncommitted_tasks} is less than "
                f"concurrency_limit={self.concurrency_limit}: of one "
                f"{'partition' if self.enable_batch_commit else 'subscriber'} no more than "
                f"{self.max_uncommitted_tasks} records are handled at once, whatever is free"
            )
        return doubts

    def overridden(self, overrides: Mapping[str, Any]) -> "Settings":
        """Return these settings with what one subscriber has of its own.

        Raises:
            SettingsError: a value is not allowed, or does not go with the others.

        """
        return dataclasses.replace(self, **overrides) if overrides else self

    def differences(self, other: "Settings") -> str:
        """Say which settings of `other` differ from these, for an error message."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return ", ".join(f"{name}={mine!r} (now {theirs!r})" for name, mine, theirs in pairs if mine != theirs)
