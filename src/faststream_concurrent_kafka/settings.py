"""Every setting of the library, declared once in `Settings`: name, type with its check, default and meaning."""

import dataclasses
import difflib
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, cast, get_args

from typing_extensions import TypedDict, Unpack

from faststream_concurrent_kafka._checks import Flag, Seconds, SecondsOrZero, check_fields, check_integer, integer
from faststream_concurrent_kafka.errors import SettingsError
from faststream_concurrent_kafka.policies import FailurePolicy


Ordering = Literal["unordered", "key", "partition"]
"""Which records of one partition never overlap, and start in the order of their offsets."""


def _check_ordering(name: str, value: Any) -> None:
    if value not in get_args(Ordering):
        raise SettingsError(f"{name} must be one of {', '.join(get_args(Ordering))}, got {value!r}")


def _check_window(name: str, value: Any) -> None:
    if value is not None:
        check_integer(name, value, at_least=1, meaning="None = no bound")


def _check_policy(name: str, value: Any) -> None:
    if not isinstance(value, FailurePolicy):
        raise SettingsError(f"{name} must be a FailurePolicy(...), got {value!r}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Validated settings of a `KafkaConcurrentHandler`.

    Raises:
        SettingsError: a value is of the wrong type or out of range; the text names it and what is allowed.

    """

    concurrency_limit: Annotated[int, integer(at_least=0, meaning="0 = no limit")] = 100
    """Records handled at once, over all subscribers; 0 = no limit but `max_uncommitted_tasks`."""

    enable_batch_commit: Flag = True
    """Whether the library commits, for `AckPolicy.MANUAL` subscribers; False = it never commits."""

    commit_batch_size: Annotated[int, integer(at_least=1)] = 1000
    """Commit when this many records have finished since the last commit, or after `commit_batch_timeout_sec`."""

    commit_batch_timeout_sec: Seconds = 1.0
    """Commit this many seconds after the first record finished since the last commit, if not before."""

    commit_metadata: Flag = True
    """Whether a commit says in its metadata which records behind an unfinished one have finished: they are not
    handled again after a crash, nor by the next owner of the partition."""

    shutdown_timeout_sec: Seconds = 15.0
    """Seconds that a stop waits for running handlers before it cancels them."""

    max_uncommitted_tasks: Annotated[int | None, _check_window] = 10_000
    """Records of one partition that may be fetched and not yet confirmed as committed by the broker; None = no bound,
    and none for the memory that they take."""

    rebalance_flush_timeout_sec: SecondsOrZero = 3.0
    """Seconds that a rebalance waits for running handlers before the partitions are given away; 0 = not at all."""

    cancel_lost_handlers: Flag = False
    """Whether handlers are cancelled whose partition went to another member; else they finish, and commit nothing."""

    commit_renewal_sec: SecondsOrZero = 3600.0
    """Seconds after which the offsets of idle partitions are committed again, before they expire; 0 = never."""

    commit_failure_timeout_sec: Seconds = 15.0
    """Seconds for which commits may fail before the health check turns red."""

    observer_interval: Seconds = 1.0
    """Seconds between two checks of tasks and consumers by the observer, and so before it logs a problem."""

    stall_timeout_sec: SecondsOrZero = 60.0
    """Seconds without a record, where there is one, after which the health check turns red; 0 = never."""

    ordering: Annotated[Ordering, _check_ordering] = "unordered"
    """Which records of a partition are handled one at a time, in the order of their offsets: none ("unordered"), those
    with the same key ("key"), or all ("partition")."""

    on_failure: Annotated[FailurePolicy, _check_policy] = FailurePolicy()  # noqa: RUF009 - frozen
    """What becomes of a record whose handling fails: retries, then commit, dead letter or halt."""

    handler_timeout_sec: SecondsOrZero = 0.0
    """Seconds after which a handler is cancelled, which counts as a failure; 0 = no limit."""

    tune_gc: Flag = False
    """Whether, until the stop, Python's garbage collector runs less often and skips the objects of the start."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.on_failure.then == "halt" and not self.enable_batch_commit:
            raise SettingsError(
                'on_failure=FailurePolicy(then="halt") needs enable_batch_commit=True: '
                "without it the subscriber's own policy commits past the failed record",
            )

    @classmethod
    def of(cls, **options: Unpack["Options"]) -> "Settings":
        """Return the settings that these keyword arguments make.

        Raises:
            SettingsError: there is no such setting, or a value is not allowed.

        """
        check_names(options, cls.__slots__)
        return cls(**options)

    def as_options(self) -> "Options":
        """Return these settings as keyword arguments, defaults included."""
        return cast("Options", {name: getattr(self, name) for name in self.__slots__})

    @property
    def window(self) -> int:
        """`max_uncommitted_tasks` as a number; without a bound, one that is never reached."""
        return sys.maxsize if self.max_uncommitted_tasks is None else self.max_uncommitted_tasks

    def doubts(self) -> list[str]:
        """Warn of values that are allowed and hardly intended, and say what follows from them."""
        doubts = self.on_failure.doubts()
        if self.max_uncommitted_tasks is None and not self.concurrency_limit:
            doubts.append(
                "max_uncommitted_tasks=None and concurrency_limit=0: nothing bounds how many records are fetched and "
                "kept in memory when handlers or commits are slower than the broker. Set one of them"
            )
        if self.window < self.concurrency_limit:
            doubts.append(
                f"max_uncommitted_tasks={self.max_uncommitted_tasks} is less than "
                f"concurrency_limit={self.concurrency_limit}: of one "
                f"{'partition' if self.enable_batch_commit else 'subscriber'} no more than "
                f"{self.max_uncommitted_tasks} records are handled at once, even while slots are free"
            )
        return doubts

    def overridden(self, overrides: Mapping[str, Any]) -> "Settings":
        """Return these settings with the overrides of one subscriber.

        Raises:
            SettingsError: a value is not allowed, or does not go with the others.

        """
        return dataclasses.replace(self, **overrides) if overrides else self

    def differences(self, other: "Settings") -> str:
        """Say which settings of `other` differ from these, for an error message."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return ", ".join(f"{name}={mine!r} (now {theirs!r})" for name, mine, theirs in pairs if mine != theirs)


class _RouterOptions(TypedDict, total=False):
    concurrency_limit: int
    ordering: Ordering
    on_failure: FailurePolicy
    handler_timeout_sec: float


# Closed: otherwise not every type checker refuses unknown names. A closed TypedDict allows no subclasses with more
# names.
class RouterOptions(_RouterOptions, total=False, closed=True):
    """The settings that a router or broker may override, as keyword arguments."""


class Options(_RouterOptions, total=False, closed=True):
    """The fields of `Settings` as keyword arguments: no type checker can derive them. A test compares the two."""

    enable_batch_commit: bool
    commit_batch_size: int
    commit_batch_timeout_sec: float
    commit_metadata: bool
    shutdown_timeout_sec: float
    max_uncommitted_tasks: int | None
    rebalance_flush_timeout_sec: float
    cancel_lost_handlers: bool
    commit_renewal_sec: float
    commit_failure_timeout_sec: float
    observer_interval: float
    stall_timeout_sec: float
    tune_gc: bool


def check_names(given: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name that is not known, and name the nearest one that is.

    Raises:
        SettingsError: a name is not known.

    """
    for name in {*given}.difference(known):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the settings are {', '.join(known)}"
        raise SettingsError(f"there is no setting {name} here: {hint}")
