"""`tune_gc`: the garbage collector of the process is tuned from the start to the stop, and restored exactly."""

import asyncio
import gc
import logging

import pytest
from faststream import AckPolicy
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    KafkaConcurrentProcessingMiddleware,
    SetupError,
    initialize_concurrent_processing,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.test_processes import exit_code_of_child


PYTHONS_OWN = (700, 10, 10)


@pytest.fixture(autouse=True)
def _collector():
    """Each test begins with Python's own thresholds and nothing frozen; restores the collector's settings."""
    before = gc.get_threshold()
    gc.unfreeze()
    gc.set_threshold(*PYTHONS_OWN)
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def state():
    return gc.get_threshold()[:2], gc.get_freeze_count() > 0


TUNED, AS_IT_WAS = ((50_000, 20), True), ((700, 10), False)


def play(scenario, **options):
    """Run a scenario while concurrent processing is initialised."""

    async def main():
        context = KafkaBroker(logger=None).context
        await initialize_concurrent_processing(context, **options)
        try:
            await scenario()
        finally:
            await stop_concurrent_processing(context)

    run_virtual(main())


async def is_tuned():
    assert state() == TUNED


async def is_as_it_was():
    assert state() == AS_IT_WAS


def test_it_is_tuned_until_the_stop_and_logged_in_one_line(caplog):
    """Thresholds and frozen objects change, and are restored by the stop."""
    caplog.set_level(logging.INFO, "faststream_concurrent_kafka")
    play(is_tuned, tune_gc=True)
    assert state() == AS_IT_WAS
    (line,) = [text for text in caplog.messages if "tune_gc" in text]
    assert "(50000, 20, " in line
    assert "in place of (700, 10, " in line


def test_unasked_nothing_is_changed():
    """The collector belongs to the process."""
    play(is_as_it_was)
    assert state() == AS_IT_WAS


@pytest.mark.parametrize(
    ("limit", "thresholds", "is_told"),
    [
        (499, PYTHONS_OWN, False),
        (500, PYTHONS_OWN, True),
        (0, PYTHONS_OWN, True),
        (500, (2000, 10, 10), True),
        (500, (701, 10, 10), False),
        (0, (50_000, 20, 20), False),
    ],
)
def test_where_it_would_help_the_log_says_that_it_exists(caplog, limit, thresholds, is_told):
    """From `concurrency_limit=500` on, unless the application has set thresholds itself."""
    caplog.set_level(logging.INFO, "faststream_concurrent_kafka")
    gc.set_threshold(*thresholds)
    play(nothing, concurrency_limit=limit)
    assert sum("tune_gc=True" in text for text in caplog.messages) == is_told


async def nothing():
    """Do nothing."""


def test_thresholds_that_others_set_meanwhile_stay():
    """The objects are unfrozen all the same."""

    async def change():
        gc.set_threshold(1234, 5, 5)

    play(change, tune_gc=True)
    assert state() == ((1234, 5), False)


def test_what_the_application_froze_before_stays_frozen():
    """The library freezes nothing more, because unfreezing would include the application's objects."""
    gc.freeze()
    frozen = gc.get_freeze_count()

    async def no_more_is_frozen():
        assert state() == TUNED
        assert gc.get_freeze_count() <= frozen

    play(no_more_is_frozen, tune_gc=True)
    assert state() == ((700, 10), True)


def test_what_the_application_freezes_meanwhile_stays_frozen():
    """The thresholds are restored all the same."""
    kept = []

    async def freeze_more():
        kept.extend([each] for each in range(1000))
        gc.freeze()

    play(freeze_more, tune_gc=True)
    assert state() == ((700, 10), True)


def test_what_the_application_unfreezes_meanwhile_is_no_fault():
    """The stop has nothing to unfreeze."""

    async def unfreeze():
        gc.unfreeze()

    play(unfreeze, tune_gc=True)
    assert state() == AS_IT_WAS


def test_two_applications_have_it_until_the_later_one_stops():
    """Both share the handler, so the collector is tuned until the second stop."""

    async def main():
        first, second = KafkaBroker(logger=None).context, KafkaBroker(logger=None).context
        for context in (first, second, first):
            await initialize_concurrent_processing(context, tune_gc=True)
        await stop_concurrent_processing(first)
        assert state() == TUNED
        await stop_concurrent_processing(second)
        assert state() == AS_IT_WAS

    run_virtual(main())


def test_an_initialisation_that_fails_leaves_it_as_it_was():
    """Also if the initialisation fails after the handler was started."""

    async def main():
        broker = KafkaBroker(logger=None, middlewares=[KafkaConcurrentProcessingMiddleware])

        async def handle(_text: str) -> None: ...

        broker.subscriber("orders", group_id="group", max_workers=2, ack_policy=AckPolicy.MANUAL)(handle)
        with pytest.raises(SetupError, match="max_workers"):
            await initialize_concurrent_processing(broker.context, broker=broker, tune_gc=True)
        assert state() == AS_IT_WAS

    run_virtual(main())


def test_a_stop_that_fails_puts_it_back():
    """Also if a subscriber's own stop, or the close of the committer, raises an exception."""

    class BadEndError(RuntimeError):
        pass

    async def main():
        context = KafkaBroker(logger=None).context
        handler = await initialize_concurrent_processing(context, tune_gc=True)

        async def close(**_options):
            await real()
            raise BadEndError

        real, handler.committer.close = handler.committer.close, close
        with pytest.raises(BadEndError):
            await stop_concurrent_processing(context)
        assert state() == AS_IT_WAS

    run_virtual(main())


def test_a_loop_that_ends_without_a_stop_is_made_up_for_by_the_next_initialisation():
    """The next initialisation restores the settings from before the first one."""

    async def begin():
        await initialize_concurrent_processing(KafkaBroker(logger=None).context, tune_gc=True)

    asyncio.run(begin())
    play(is_as_it_was)
    assert state() == AS_IT_WAS


def test_a_forked_child_begins_with_what_was_there():
    """The child's collector is as before the tuning; the parent's stays tuned."""

    def child():
        assert state() == AS_IT_WAS

    async def fork():
        assert exit_code_of_child(child) == 0
        assert state() == TUNED

    play(fork, tune_gc=True)
    assert state() == AS_IT_WAS
