"""The failure policy: invalid values, waits, and the attempts against an oracle."""

import asyncio
import functools
import json
import math
import warnings
from typing import Any

import pydantic
import pytest
from fast_depends.exceptions import ValidationError
from faststream.exceptions import NackMessage, SubscriberNotFound
from hypothesis import given, settings
from hypothesis import strategies as st

from faststream_concurrent_kafka import DeadLetter, FailurePolicy, SettingsError
from faststream_concurrent_kafka._record.failure import NACK_DELAY_SEC, Failures
from faststream_concurrent_kafka._record.record import Outcome, Record
from faststream_concurrent_kafka._record.slots import Slots
from faststream_concurrent_kafka._record.state import FAILED, READY
from faststream_concurrent_kafka.policies import check_topic_name, is_retriable
from faststream_concurrent_kafka.settings import Settings
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.world import Source


MALFORMED = [
    SubscriberNotFound(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
    json.JSONDecodeError("why", "{", 0),
    pydantic.ValidationError.from_exception_data("order", []),
    ValidationError(incoming_options={}, locations=[], expected={}, original_error=ValueError()),
]


def refuse(**options: Any) -> None:
    FailurePolicy(**options)


class Odd:
    """Callable, but as a class: neither an exception type nor a function."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_attempts", value) for value in (-1, 1.0, True, None, "3", math.inf)),
        *(
            (name, value)
            for name in ("first_backoff_sec", "max_backoff_sec")
            for value in (-0.1, -1, math.nan, math.inf, -math.inf, True, None, "1", b"1", [])
        ),
        *(
            ("retry_on", value)
            for value in (None, "ValueError", 3, Odd, int, ValueError(), [ValueError], (ValueError, 3))
        ),
        ("retry_on", (ValueError, (KeyError,))),
        *(
            ("never_retry", value)
            for value in (None, "ValueError", Odd, ValueError(), [ValueError], (3,), is_retriable)
        ),
        *(("then", value) for value in (None, "dead letter", "Commit", DeadLetter, is_retriable, 1, [])),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),  # a function's repr differs between processes
)
def test_a_bad_value_names_itself(name, value):
    """The error names the field, the given value and what is allowed."""
    with pytest.raises(SettingsError) as raised:
        refuse(**{name: value})
    text = str(raised.value)
    assert text.startswith(f"{name} must be ")
    assert text.endswith(f"got {value!r}")


@pytest.mark.parametrize("name", ["first_backoff_sec", "max_backoff_sec"])
def test_seconds_that_are_larger_than_any_float_are_refused_by_name(name: str):
    """A Python integer may be larger than any float."""
    with pytest.raises(SettingsError, match=f"{name} must be a finite number"):
        refuse(**{name: 10**400})


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "ä", "a\n", "a" * 250, None, 3, b"dead", "orders:dead"])
def test_what_can_not_be_a_topic_is_refused(name):
    """At once, not when the first dead letter is published."""
    with pytest.raises(SettingsError, match="a dead letter topic must have a name"):
        DeadLetter(name)
    with pytest.raises(SettingsError, match="a dead letter topic must have a name"):
        check_topic_name(name)


async def ask(*_args):
    return True


async def ask_often(*_args):
    yield True


class AsyncCallable:
    """An object that is called like a function."""

    async def __call__(self, *_args):
        return True

    async def method(self, *_args):
        return True


ASYNC = {
    "a coroutine function": ask,
    "an async generator function": ask_often,
    "an object": AsyncCallable(),
    "a method": AsyncCallable().method,
    "a partial": functools.partial(ask, 1),
    "a partial of an object": functools.partial(AsyncCallable(), 1),
    "a partial of a partial": functools.partial(functools.partial(AsyncCallable(), 1), 2),
}


@pytest.mark.parametrize("function", ASYNC.values(), ids=ASYNC)
def test_async_callables_are_refused(function):
    """Their coroutine would count as true, or as a name."""
    with pytest.raises(SettingsError, match=r"retry_on must be .* ordinary function \(not an async one\)"):
        refuse(retry_on=function)
    with pytest.raises(SettingsError, match="not an async one"):
        DeadLetter(function)


def test_ordinary_callables_of_any_kind_are_taken():
    """A class, an object, a method, a partial."""

    class Callable:
        def __call__(self, *_args):
            return "dead"

    for function in (Callable(), Callable().__call__, functools.partial(Callable()), lambda *_: "dead", str):
        assert DeadLetter(function).topic is function
    assert FailurePolicy(max_attempts=2, retry_on=functools.partial(Callable())).wants_again(ValueError(), 1)


def test_an_awaitable_that_an_ordinary_callable_returns_is_no_answer():
    """The error says so, and no coroutine is left that was never awaited."""
    policy = FailurePolicy(max_attempts=2, retry_on=lambda *_: ask())  # ty: ignore[invalid-argument-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SettingsError, match="retry_on must be an ordinary function"):
            policy.wants_again(ValueError(), 1)


@pytest.mark.parametrize("name", ["a", "orders.dead", "Orders_dead-2", "...", "a" * 249])
def test_what_can_be_a_topic_is_taken(name):
    """The name is used unchanged."""
    assert DeadLetter(name).topic == check_topic_name(name) == name


def test_a_topic_may_be_a_callable():
    """Each name that it returns is checked."""
    assert DeadLetter(lambda raw: raw.topic + ".dead").topic


def test_policies_are_values():
    """They are frozen, equal if their fields are, and by default there is one attempt and then a commit."""
    policy = FailurePolicy(max_attempts=3, then=DeadLetter("dead"))
    assert policy == FailurePolicy(max_attempts=3, then=DeadLetter("dead"))
    assert policy != FailurePolicy(max_attempts=3)
    with pytest.raises(AttributeError):
        policy.max_attempts = 4  # ty: ignore[invalid-assignment]
    default = FailurePolicy()
    assert (default.max_attempts, default.then, default.retries) == (1, "commit", False)
    assert not default.wants_again(ValueError(), 1)


SECONDS = st.one_of(st.just(0), st.floats(1e-6, 1e6), st.integers(1, 1000))


@given(first=SECONDS, most=SECONDS, attempt=st.integers(1, 1000), jitter=st.floats(0, 1))
def test_the_wait_is_drawn_between_nothing_and_a_ceiling_that_doubles_up_to_the_cap(first, most, attempt, jitter):
    """Full jitter, in proportion to the random number."""
    first, most = sorted((first, most))
    policy = FailurePolicy(max_attempts=0, first_backoff_sec=first, max_backoff_sec=most)
    ceiling = min(most, first * 2 ** (attempt - 1))
    assert policy.backoff_sec(attempt, 1) == pytest.approx(ceiling)
    assert policy.backoff_sec(attempt, 0) == 0
    assert policy.backoff_sec(attempt, jitter) == pytest.approx(jitter * ceiling)
    assert policy.backoff_sec(attempt, jitter) <= policy.backoff_sec(attempt + 1, jitter) <= most


@pytest.mark.parametrize("first", [0, 1e-3, 0.5, 1e300, 10**300])
def test_a_record_may_be_tried_a_million_times(first):
    """The wait does not overflow."""
    policy = FailurePolicy(max_attempts=0, first_backoff_sec=first, max_backoff_sec=max(first, 30))
    assert policy.backoff_sec(10**6, 1) == (max(first, 30) if first else 0)
    assert policy.has_attempts_left(10**6)


@pytest.mark.parametrize(
    ("most", "attempt", "left"), [(0, 10**9, True), (1, 1, False), (3, 2, True), (3, 3, False), (3, 4, False)]
)
def test_attempts_are_counted_from_one(most, attempt, left):
    """`max_attempts` includes the first attempt; 0 means no limit."""
    policy = FailurePolicy(max_attempts=most)
    assert policy.has_attempts_left(attempt) == left
    assert policy.wants_again(ValueError(), attempt) == left
    assert policy.retries == (most != 1)


@pytest.mark.parametrize("error", MALFORMED, ids=lambda error: type(error).__name__)
def test_malformed_records_are_not_tried_again_by_default(error):
    """`retry_on` can ask for it."""
    assert not FailurePolicy(max_attempts=3).wants_again(error, 1)
    assert FailurePolicy(max_attempts=3, retry_on=Exception).wants_again(error, 1)


def test_what_can_not_be_read_is_malformed_whatever_was_raised():
    """For the default, and for a callable that uses it; another callable, or a type, decides by itself."""
    error = ConnectionError()

    def again(**options):
        return FailurePolicy(max_attempts=3, **options).wants_again(error, 1, is_unreadable=True)

    assert not again()
    assert not again(retry_on=lambda error, attempt: attempt < 2 and is_retriable(error, attempt))
    assert again(retry_on=lambda _error, _attempt: True)
    assert again(retry_on=ConnectionError)
    assert not again(retry_on=ConnectionError, never_retry=OSError)
    assert is_retriable(error, 1)


@pytest.mark.parametrize(
    ("retry_on", "never_retry", "error", "again"),
    [
        (OSError, (), ConnectionError(), True),
        (OSError, (), ValueError(), False),
        ((OSError, KeyError), (), KeyError(), True),
        ((OSError, KeyError), (), LookupError(), False),
        ((), (), ValueError(), False),
        (Exception, asyncio.CancelledError, asyncio.CancelledError(), False),
        (Exception, (), asyncio.CancelledError(), False),
        (is_retriable, (), asyncio.CancelledError(), True),
        (Exception, PermissionError, PermissionError(), False),
        (Exception, (PermissionError, KeyError), KeyError(), False),
        (Exception, PermissionError, OSError(), True),
        (lambda _error, _attempt: True, PermissionError, PermissionError(), False),
        (lambda error, _attempt: "again" in str(error), (), ValueError("again"), True),
        (lambda error, _attempt: "again" in str(error), (), ValueError("no"), False),
        (lambda _error, attempt: attempt > 1, (), ValueError(), False),
        (lambda _error, _attempt: "yes", (), ValueError(), True),
    ],
)
def test_what_is_tried_again(retry_on, never_retry, error, again):
    """Types, tuples of them or a callable; `never_retry` takes precedence."""
    policy = FailurePolicy(max_attempts=9, retry_on=retry_on, never_retry=never_retry)
    assert policy.wants_again(error, 1) is again


def test_the_callable_gets_the_exception_and_its_attempt_and_its_error_passes():
    """It is not called when no attempt is left, nor for an exception of `never_retry`."""
    asked: list[tuple[BaseException, int]] = []

    def retry_on(error, attempt):
        asked.append((error, attempt))
        raise LookupError("a mistake in it")

    policy = FailurePolicy(max_attempts=3, retry_on=retry_on, never_retry=PermissionError)
    error = ValueError()
    with pytest.raises(LookupError, match="a mistake in it"):
        policy.wants_again(error, 2)
    assert not policy.wants_again(error, 3)
    assert not policy.wants_again(PermissionError(), 1)
    assert asked == [(error, 2)]


# -- against an oracle --------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.sampled_from(["success", "retriable", "never", "malformed", "nack"]),
    st.tuples(st.just("nack after"), st.sampled_from([0, 0.25, 7])),
)
POLICIES = st.builds(
    FailurePolicy,
    max_attempts=st.integers(0, 4),
    first_backoff_sec=st.sampled_from([0, 0.5, 20]),
    never_retry=st.just(PermissionError),
    then=st.sampled_from(["commit", "halt", DeadLetter("dead")]),
)
ERRORS = {"retriable": ConnectionError, "never": PermissionError, "malformed": SubscriberNotFound, "nack": NackMessage}
JITTER = 0.75


def oracle(policy, script):
    """Return, for each attempt, how long the record waits after it, or how it ends. The last attempt succeeds."""
    for attempt, step in enumerate([*script, "success"], 1):
        is_last = policy.max_attempts != 0 and attempt >= policy.max_attempts
        match step:
            case "success":
                yield "done"
                return
            case "nack" if policy.max_attempts == 1 or not is_last:
                yield 0.5
            case "nack after", seconds if policy.max_attempts == 1 or not is_last:
                yield seconds
            case "retriable" if not is_last:
                yield JITTER * min(30, policy.first_backoff_sec * 2 ** (attempt - 1))
            case _:
                yield {"commit": "done", "halt": "halted"}.get(policy.then, "dead letter")
                return


async def follow(policy, script):
    """Let `Failures` handle a record whose attempts end as the script says; return waits and end."""
    options = Settings(on_failure=policy)
    slots, source = Slots(1, 1), Source(options)
    failures = Failures(Settings(), lambda: JITTER)
    record = Record("raw", source.process, source=source)
    happened = []
    record.share = slots.share()
    record.get_ready()
    for step in [*script, "success"]:
        record.begin()
        record.share.give_back(record)
        if step == "success":
            return [*happened, "done"]
        error = NackMessage(delay=step[1]) if isinstance(step, tuple) else ERRORS[step]()
        began = asyncio.get_running_loop().time()
        record.fail()
        outcome = Outcome.NACKED if isinstance(error, NackMessage) else Outcome.FAILED
        outcome = await failures.deal_with(record, outcome, error)
        assert slots.reserved == (outcome is Outcome.AGAIN)
        assert record.state is (READY if outcome is Outcome.AGAIN else FAILED)
        if outcome is Outcome.AGAIN:
            assert not source.halts
            assert not source.dead_letters
            happened.append(asyncio.get_running_loop().time() - began)
            continue
        if source.halts:
            assert outcome is Outcome.NOT_DONE
            return [*happened, "halted"]
        assert outcome is Outcome.DONE
        if source.dead_letters:
            assert source.dead_letters == [("raw", error)]
            return [*happened, "dead letter"]
        return [*happened, "done"]
    raise AssertionError(happened)


def rounded(what):
    return round(what, 6) if isinstance(what, int | float) else what


@settings(max_examples=4 * settings().max_examples)
@given(policy=POLICIES, script=st.lists(STEPS, max_size=6))
def test_attempts_waits_and_ends_are_those_of_the_oracle(policy, script):
    """A nack counts as an attempt if the policy retries; otherwise nacks have no limit."""
    assert NACK_DELAY_SEC == 0.5
    assert [rounded(each) for each in run_virtual(follow(policy, script))] == [*map(rounded, oracle(policy, script))]
