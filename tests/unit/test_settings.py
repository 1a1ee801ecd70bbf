"""Settings are checked at start-up, and an error names the setting, the value and what is allowed."""

import ast
import asyncio
import dataclasses
import inspect
import itertools
import math
import re
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_type_hints

import pytest
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaRouter
from hypothesis import assume, given
from hypothesis import strategies as st

from faststream_concurrent_kafka import (
    ConcurrentKafkaError,
    DeadLetter,
    FailurePolicy,
    KafkaConcurrentHandler,
    KafkaConcurrentProcessingMiddleware,
    SettingsError,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka._subscriber import discovery
from faststream_concurrent_kafka.settings import Options, RouterOptions, Settings
from faststream_concurrent_kafka.testing import run_virtual
from tests.examples.programs import ROOT


def build(**options: Any) -> Settings:
    return Settings(**options)


INTEGERS = {"concurrency_limit": 0, "commit_batch_size": 1, "max_uncommitted_tasks": 1}
SECONDS = (
    "commit_batch_timeout_sec",
    "shutdown_timeout_sec",
    "rebalance_flush_timeout_sec",
    "commit_failure_timeout_sec",
    "handler_timeout_sec",
    "stall_timeout_sec",
    "commit_renewal_sec",
)
ZERO_ALLOWED = {"rebalance_flush_timeout_sec", "handler_timeout_sec", "stall_timeout_sec", "commit_renewal_sec"}
BAD_NUMBERS = st.one_of(
    st.integers(max_value=-1),
    st.floats(max_value=-0.001),
    st.sampled_from([math.nan, math.inf, -math.inf, None, "5", True, False, [], b"1", Decimal(5), Fraction(5), 5 + 0j]),
)


@given(name=st.sampled_from([*INTEGERS, *SECONDS]), value=BAD_NUMBERS)
def test_a_bad_number_names_itself_and_what_is_allowed(name, value):
    """Wrong type, out of range, not finite: the error names the setting, the given value and what is allowed."""
    assume((name, value) != ("max_uncommitted_tasks", None))
    with pytest.raises(SettingsError) as raised:
        build(**{name: value})
    text = str(raised.value)
    assert name in text
    assert repr(value) in text
    assert "must be" in text


@pytest.mark.parametrize(("name", "least"), INTEGERS.items())
def test_integers_start_at_their_least_value_and_take_no_fraction(name, least):
    """Zero means no limit for the concurrency, and is refused for other settings."""
    assert getattr(build(**{name: least}), name) == least
    for value in (least - 1, 1.5):
        with pytest.raises(SettingsError, match=name):
            build(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_zero_seconds_are_refused_except_for_the_rebalance_and_the_time_limit(name):
    """Zero is valid where it means "do not wait" or "no limit"; a commit or stop that never waits is a mistake."""
    if name in ZERO_ALLOWED:
        assert getattr(build(**{name: 0}), name) == 0
    else:
        with pytest.raises(SettingsError, match="greater than 0"):
            build(**{name: 0})


def test_no_bound_is_none_and_zero_is_refused_with_a_text_that_says_so():
    """With a window of 0, no record would be fetched."""
    assert build(max_uncommitted_tasks=None).window == sys.maxsize
    assert build(max_uncommitted_tasks=3).window == 3
    with pytest.raises(SettingsError) as raised:
        build(max_uncommitted_tasks=0)
    assert str(raised.value) == "max_uncommitted_tasks must be an integer of at least 1 (None = no bound), got 0"


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_enable_batch_commit_is_a_bool(value):
    """A truthy value is no substitute for True."""
    with pytest.raises(SettingsError, match="enable_batch_commit must be True or False"):
        build(enable_batch_commit=value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(
            ("ordering", value, "one of unordered, key, partition")
            for value in ("", "Key", "keys", None, 1, b"key", [])
        ),
        *(
            ("on_failure", value, "a FailurePolicy(...)")
            for value in ("commit", "halt", None, DeadLetter("dead"), FailurePolicy, {"max_attempts": 3})
        ),
    ],
    ids=repr,
)
def test_what_is_no_ordering_or_policy_is_refused(name, value, allowed):
    """The error names the setting, the given value and what is allowed."""
    with pytest.raises(SettingsError) as raised:
        build(**{name: value})
    assert str(raised.value) == f"{name} must be {allowed}, got {value!r}"


def test_a_halt_needs_the_library_to_commit():
    """Otherwise the subscriber's own ack policy would commit past the record."""
    with pytest.raises(SettingsError, match=r"halt.*needs enable_batch_commit=True"):
        build(on_failure=FailurePolicy(then="halt"), enable_batch_commit=False)
    assert build(on_failure=FailurePolicy(then=DeadLetter("dead")), enable_batch_commit=False)


def test_a_halt_needs_a_consumer_group():
    """Without a group nothing is committed, so no committed offset could stay at the record."""
    broker = KafkaBroker(logger=None)
    subscriber = broker.subscriber("orders", ack_policy=AckPolicy.MANUAL)
    handler = KafkaConcurrentHandler(on_failure=FailurePolicy(then="halt"))
    try:
        with pytest.raises(ConcurrentKafkaError, match=r"halt.*group_id"):
            discovery.why_not(subscriber, handler)
    finally:
        handler.discard()


def test_overrides_are_checked_with_the_settings_they_go_with():
    """Other settings stay, and the original settings are not changed."""
    settings = build(ordering="key", enable_batch_commit=False, concurrency_limit=7)
    assert settings.overridden({}) is settings
    changed = settings.overridden({"handler_timeout_sec": 3})
    assert (changed.handler_timeout_sec, changed.ordering, changed.concurrency_limit) == (3, "key", 7)
    assert settings.handler_timeout_sec == 0
    with pytest.raises(SettingsError, match="needs enable_batch_commit=True"):
        settings.overridden({"on_failure": FailurePolicy(then="halt")})
    with pytest.raises(SettingsError, match="ordering must be one of"):
        settings.overridden({"ordering": "keys"})


def test_the_middleware_checks_its_overrides_when_it_is_configured():
    """At import time of the application; settings of two `configured` calls are merged."""
    with pytest.raises(SettingsError, match="handler_timeout_sec must be a finite number"):
        KafkaConcurrentProcessingMiddleware.configured(handler_timeout_sec=-1)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(SettingsError, match="concurrency_limit must be an integer of at least 1"):
            KafkaConcurrentProcessingMiddleware.configured(concurrency_limit=bad)  # ty: ignore[invalid-argument-type]
    first = KafkaConcurrentProcessingMiddleware.configured(ordering="key")
    second = first.configured(handler_timeout_sec=3)
    assert issubclass(second, first)
    assert dict(second.overrides) == {"ordering": "key", "handler_timeout_sec": 3}
    assert dict(first.overrides) == {"ordering": "key"}
    assert dict(KafkaConcurrentProcessingMiddleware.overrides) == {}
    assert dict(second.configured(handler_timeout_sec=0).overrides) == {"ordering": "key", "handler_timeout_sec": 0}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("concurency_limit", "did you mean concurrency_limit?"),
        ("max_uncommited", "did you mean max_uncommitted_tasks?"),
        ("q", "the settings are concurrency_limit, enable_batch_commit, "),
    ],
)
async def test_an_unknown_setting_is_refused_and_the_nearest_one_named(name, hint):
    """In every function that takes settings, and before anything is started."""
    broker = KafkaBroker(logger=None)
    wrong: dict[str, Any] = {name: 3}
    for refused in (
        lambda: Settings.of(**wrong),
        lambda: KafkaConcurrentHandler(**wrong),
        lambda: asyncio.run(initialize_concurrent_processing(broker.context, broker=broker, **wrong)),
    ):
        with pytest.raises(SettingsError) as raised:
            await asyncio.to_thread(refused)
        assert f"there is no setting {name}" in str(raised.value)
        assert hint in str(raised.value)
    assert KafkaConcurrentHandler._instance is None


def test_a_router_has_four_settings_of_its_own():
    """Another name is refused, also that of another setting."""
    wrong: dict[str, Any] = {"handler_timeout": 3}
    with pytest.raises(SettingsError, match="no setting handler_timeout here: did you mean handler_timeout_sec"):
        KafkaConcurrentProcessingMiddleware.configured(**wrong)
    wrong = {"commit_batch_size": 3}
    with pytest.raises(SettingsError, match="no setting commit_batch_size here"):
        KafkaConcurrentProcessingMiddleware.configured(**wrong)


def arguments(function):
    """Return the names and texts of a docstring's Args section."""
    section = str(inspect.getdoc(function)).partition("Args:\n")[2].partition("\n\n")[0]
    parts = re.split(r"^    (\w+): ", section, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def declared_texts():
    """Return the text under each field of `Settings`."""
    (definition,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def test_a_setting_says_the_same_wherever_it_is_described():
    """Keyword arguments, the docstring that editors show and the README agree with `Settings`."""
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    assert get_type_hints(Options) == get_type_hints(Settings)
    assert get_type_hints(RouterOptions).items() <= get_type_hints(Settings).items()
    texts = declared_texts()
    assert texts.keys() == fields.keys()

    documented = arguments(initialize_concurrent_processing)
    assert {name: text for name, text in documented.items() if name not in {"context", "broker"}} == texts
    assert arguments(KafkaConcurrentProcessingMiddleware.configured).keys() == get_type_hints(RouterOptions).keys()

    table = (ROOT / "README.md").read_text().partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", table, flags=re.MULTILINE))
    assert rows.pop("broker") == "None"
    assert {name: eval(value, {"FailurePolicy": FailurePolicy}) for name, value in rows.items()} == {  # noqa: S307
        name: field.default for name, field in fields.items()
    }


def test_a_first_backoff_above_the_longest_is_refused():
    """No wait exceeds `max_backoff_sec`, so it could never be reached."""
    with pytest.raises(SettingsError, match=r"first_backoff_sec=60 must not be more than max_backoff_sec=30"):
        FailurePolicy(max_attempts=3, first_backoff_sec=60)
    assert FailurePolicy(max_attempts=3, first_backoff_sec=60, max_backoff_sec=60)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, None),
        ({"max_uncommitted_tasks": 100}, None),
        ({"max_uncommitted_tasks": 5, "concurrency_limit": 5}, None),
        ({"max_uncommitted_tasks": 5, "concurrency_limit": 0}, None),
        ({"max_uncommitted_tasks": None}, None),
        ({"max_uncommitted_tasks": None, "concurrency_limit": 0}, "nothing bounds how many records are fetched"),
        ({"max_uncommitted_tasks": 99}, "of one partition no more than 99 records are handled at once"),
        ({"max_uncommitted_tasks": 99, "enable_batch_commit": False}, "of one subscriber no more than 99 records"),
        ({"on_failure": FailurePolicy(max_attempts=2, retry_on=OSError)}, None),
        ({"on_failure": FailurePolicy(max_attempts=0, first_backoff_sec=1)}, None),
        ({"on_failure": FailurePolicy(then=DeadLetter("dead"))}, None),
        ({"on_failure": FailurePolicy(retry_on=OSError)}, "FailurePolicy has retry_on, but max_attempts=1"),
        (
            {"on_failure": FailurePolicy(never_retry=OSError, max_backoff_sec=1)},
            "FailurePolicy has max_backoff_sec and never_retry, but",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_what_can_hardly_be_meant_is_told_with_what_follows(options, words):
    """A warning, no error: there may be many partitions, and a policy may be prepared before retries are enabled."""
    doubts = build(**options).doubts()
    assert len(doubts) == (words is not None)
    assert all(words in doubt for doubt in doubts)


def test_doubts_are_logged_at_start_and_those_of_an_override_for_its_subscriber(caplog):
    """Each once."""

    async def main() -> None:
        policy = FailurePolicy(retry_on=OSError)
        router = KafkaRouter(middlewares=[KafkaConcurrentProcessingMiddleware.configured(on_failure=policy)])
        broker = KafkaBroker(logger=None)

        async def handle(_text: str) -> None: ...

        for topic in ("orders", "bills"):
            router.subscriber(topic, group_id="group", ack_policy=AckPolicy.MANUAL)(handle)
        broker.include_router(router)
        await initialize_concurrent_processing(broker.context, broker=broker, max_uncommitted_tasks=10)
        await asyncio.sleep(5)
        await stop_concurrent_processing(broker.context)

    run_virtual(main())
    assert sorted(message.split(":")[0] for message in caplog.messages) == [
        "The subscriber of ['bills']",
        "The subscriber of ['orders']",
        "max_uncommitted_tasks=10 is less than concurrency_limit=100",
    ]


def test_differences_name_the_new_settings():
    """The text has both values of each differing setting."""
    text = build(ordering="key").differences(build(on_failure=FailurePolicy(max_attempts=3)))
    assert "ordering='key' (now 'unordered')" in text
    assert "on_failure=FailurePolicy(max_attempts=1" in text
    assert "handler_timeout_sec" not in text


def test_settings_errors_are_value_errors_of_the_librarys_root():
    """Callers may catch ValueError or the library's root error."""
    assert issubclass(SettingsError, ValueError)
    assert issubclass(SettingsError, ConcurrentKafkaError)


def test_a_refused_setting_leaves_no_half_made_singleton():
    """The next construction, with valid settings, works."""
    with pytest.raises(SettingsError):
        KafkaConcurrentHandler(concurrency_limit=-1)
    assert KafkaConcurrentHandler._instance is None
    handler = KafkaConcurrentHandler(concurrency_limit=7)
    try:
        assert handler.settings.concurrency_limit == 7
        assert KafkaConcurrentHandler(concurrency_limit=7) is handler
    finally:
        handler.discard()
