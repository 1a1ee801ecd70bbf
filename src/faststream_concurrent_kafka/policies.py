"""What becomes of a record whose handling fails: how often and when it is retried, and what follows the last attempt.

Pure: no clock, no randomness, no logging. An attempt is one whole FastStream pass over the record; attempts are
numbered from 1.
"""

import contextvars
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from json import JSONDecodeError
from typing import Annotated, Any, Literal

import pydantic
from fast_depends.exceptions import ValidationError
from faststream.exceptions import SubscriberNotFound

from faststream_concurrent_kafka._checks import Flag, SecondsOrZero, check_fields, integer
from faststream_concurrent_kafka.errors import SettingsError


# The same bytes will not parse, decode, validate or find a handler the next time either.
_MALFORMED = (ValidationError, pydantic.ValidationError, JSONDecodeError, SubscriberNotFound, UnicodeDecodeError)
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_OF_RETRIES = ("first_backoff_sec", "max_backoff_sec", "retry_on", "never_retry")
# 2.0 ** 64 seconds is longer than any cap.
_MOST_DOUBLINGS = 64


# Whether FastStream could not read the record, while `retry_on` is called.
_is_unreadable: contextvars.ContextVar[bool] = contextvars.ContextVar("is_unreadable", default=False)


def is_retriable(error: BaseException, attempt: int) -> bool:  # noqa: ARG001 - what `retry_on` is called with
    """Whether another attempt may succeed: False for a malformed record. The default of `retry_on`.

    A record is malformed when FastStream can't read it: when its parser, its decoder or a filter raises anything, so
    that the handler was never called. And when an exception is pydantic's or FastDepends' ValidationError,
    JSONDecodeError, UnicodeDecodeError or SubscriberNotFound: also if the handler itself raises it, over the answer of
    another service for example. Failures of middlewares and dependencies count like those of the handler.

    A `retry_on` of your own may call it. Elsewhere it decides by the exception's type alone.
    """
    return not _is_unreadable.get() and not isinstance(error, _MALFORMED)


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """Publish the record unchanged to another topic; its offset is done once every in-sync replica has it (acks=all).

    Until then the publish is tried again, for ever: the offset of the record is not committed, and health is red.
    """

    topic: str | Callable[[Any], str]
    """The topic, or a callable that gets the `aiokafka.ConsumerRecord` and returns it; not one that the subscriber
    reads."""

    keep_timestamp: Flag = False
    """Whether the record keeps its time stamp, if the broker accepts it. Otherwise it gets the time of its publishing,
    because Kafka deletes records whose time stamp is older than the topic's retention; the original one is in a
    header."""

    def __post_init__(self) -> None:
        check_fields(self)
        if is_async(self.topic):
            raise SettingsError(f"topic must be a name or an ordinary function, not an async one: {self.topic!r}")
        if not callable(self.topic):
            check_topic_name(self.topic)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FailurePolicy:
    """What becomes of a record whose handling fails: retries, and then commit, dead letter or halt.

    Raises:
        SettingsError: a value is of the wrong type or out of range; the text names it and what is allowed.

    """

    max_attempts: Annotated[int, integer(at_least=0, meaning="0 = until it succeeds")] = 1
    """The largest number of attempts, the first one included; 0 = retry until it succeeds."""

    first_backoff_sec: SecondsOrZero = 0.5
    """Longest wait before the second attempt, in seconds; doubles with each further attempt. Each wait is drawn between
    0 and that (full jitter), so that records that fail together are not retried together."""

    max_backoff_sec: SecondsOrZero = 30.0
    """Longest wait before any attempt, in seconds."""

    retry_on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException, int], bool] = (
        is_retriable
    )
    """Which failures are retried: exception types, or a callable that gets the exception and the number of the failed
    attempt. By default all but those of malformed records (`is_retriable`). A value given here decides about malformed
    records as well: name the exceptions of a decoder that asks a schema registry."""

    never_retry: type[BaseException] | tuple[type[BaseException], ...] = ()
    """Exception types that are never retried; takes precedence over `retry_on`."""

    then: Literal["commit", "halt"] | DeadLetter = "commit"
    """After the last attempt: "commit" counts the record as done; `DeadLetter(topic)` publishes it to that topic;
    "halt" stops its partition at the record, until a restart retries it."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.first_backoff_sec > self.max_backoff_sec:
            raise SettingsError(
                f"first_backoff_sec={self.first_backoff_sec!r} must not be more than "
                f"max_backoff_sec={self.max_backoff_sec!r}, which no wait exceeds: lower the one or raise the other",
            )
        is_function = callable(self.retry_on) and not isinstance(self.retry_on, type)
        if not _are_exception_types(self.retry_on) and (not is_function or is_async(self.retry_on)):
            raise SettingsError(
                "retry_on must be an exception type, a tuple of them or an ordinary function (not an async one) that "
                f"gets the exception and the attempt, got {self.retry_on!r}",
            )
        if not _are_exception_types(self.never_retry):
            raise SettingsError(f"never_retry must be an exception type or a tuple of them, got {self.never_retry!r}")
        if self.then not in ("commit", "halt") and not isinstance(self.then, DeadLetter):
            raise SettingsError(f'then must be "commit", "halt" or DeadLetter(topic), got {self.then!r}')

    def doubts(self) -> list[str]:
        """Warn of values that are allowed and hardly intended, and say what follows from them."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        unused = [name for name in _OF_RETRIES if getattr(self, name) != defaults[name]]
        if not unused or self.retries:
            return []
        given = " and ".join(unused)
        return [f"FailurePolicy has {given}, but max_attempts=1, so no failure is tried again: raise max_attempts"]

    @property
    def retries(self) -> bool:
        """Whether the policy retries at all."""
        return self.max_attempts != 1

    def has_attempts_left(self, attempt: int) -> bool:
        """Whether there may be another attempt after this one."""
        return self.max_attempts == 0 or attempt < self.max_attempts

    def wants_again(self, error: BaseException, attempt: int, *, is_unreadable: bool = False) -> bool:
        """Whether a record is retried after this failure; raises what a callable `retry_on` raises.

        `is_unreadable` tells `is_retriable` that FastStream could not read the record.

        Raises:
            SettingsError: the callable has returned an awaitable.

        """
        if not self.has_attempts_left(attempt) or isinstance(error, self.never_retry):
            return False
        if isinstance(self.retry_on, type | tuple):
            return isinstance(error, self.retry_on)
        token = _is_unreadable.set(is_unreadable)
        try:
            return bool(ordinary("retry_on", self.retry_on(error, attempt)))
        finally:
            _is_unreadable.reset(token)

    def backoff_sec(self, attempt: int, jitter: float) -> float:
        """Return the wait after this attempt, in seconds; `jitter` is drawn between 0 and 1."""
        doublings = min(attempt - 1, _MOST_DOUBLINGS)
        return jitter * min(self.max_backoff_sec, self.first_backoff_sec * 2.0**doublings)


def check_topic_name(name: Any) -> str:
    """Check that a Kafka topic can have this name, and return it.

    Raises:
        SettingsError: it can't.

    """
    if not isinstance(name, str) or not _TOPIC_NAME.fullmatch(name) or name in {".", ".."}:
        raise SettingsError(
            f"a dead letter topic must have a name of 1 to 249 letters, digits, '.', '_' and '-', got {name!r}",
        )
    return name


def is_async(function: Any) -> bool:
    """Whether a callable is async: an async function, an object with an async `__call__`, or a partial of one."""
    while isinstance(function, functools.partial):
        function = function.func
    called = (function, type(function).__call__) if callable(function) else ()
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in called)


def ordinary(name: str, value: Any) -> Any:
    """Check that a function has not returned an awaitable, and return its result.

    Raises:
        SettingsError: it would.

    """
    if not inspect.isawaitable(value):
        return value
    if inspect.iscoroutine(value):
        value.close()
    raise SettingsError(f"{name} must be an ordinary function, not one that returns an awaitable")


def _are_exception_types(value: Any) -> bool:
    types = value if isinstance(value, tuple) else (value,)
    return all(isinstance(each, type) and issubclass(each, BaseException) for each in types)
