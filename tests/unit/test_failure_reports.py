"""Logs and reports of records that fail, senseless delays, and no reference cycles."""

import asyncio
import dataclasses
import gc
import logging

import pytest
from faststream.exceptions import NackMessage
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import (
    DeadLetter,
    FailurePolicy,
    get_kafka_handler_report,
)
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka.errors import HandlerTimeoutError
from tests.unit.world import play


DEAD = DeadLetter("dead")


async def quick(_raw):
    pass


async def fail(_raw):
    raise ConnectionError("down")


async def ask_again(_raw):
    raise NackMessage(delay=60)


@pytest.mark.parametrize("then", ["commit", "halt", DEAD], ids=str)
@pytest.mark.parametrize("most", [1, 3])
def test_a_retry_on_that_raises_is_logged_and_the_record_tried_again_while_it_may_be(most, then, caplog):
    """The failure is retried as if `retry_on` had returned True; after the last attempt the policy goes on as usual."""

    def mistaken(_error, _attempt):
        raise LookupError("a mistake in it")

    async def scenario(world):
        record = world.deliver(fail)
        await asyncio.wait({record.task})
        assert record.task.exception() is None
        assert record.attempt == most
        assert len(world.source.dead_letters) == (then is DEAD)
        assert len(world.source.halts) == (then == "halt")
        assert await world.committed() == (then != "halt")

    play(scenario, on_failure=FailurePolicy(max_attempts=most, retry_on=mistaken, then=then))
    assert caplog.text.count("LookupError: a mistake in it") == most - 1


@pytest.mark.parametrize(
    ("options", "waited", "is_named"),
    [
        ({}, 0.5, False),
        ({"delay": 7}, 7, False),
        ({"delay": 0}, 0, False),
        ({"delay": 1.5}, 1.5, False),
        ({"delay": "x"}, 0.5, True),
        ({"delay": -1}, 0.5, True),
        ({"delay": None}, 0.5, True),
        ({"delay": True}, 0.5, True),
        ({"delay": float("nan")}, 0.5, True),
        ({"delay": float("inf")}, 0.5, True),
        ({"delay": 10**400}, 0.5, True),
        ({"delay_sec": 3}, 0.5, True),
        ({"delay": 7, "delay_sec": 3}, 0.5, True),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_nack_takes_a_delay_in_seconds_and_nothing_else(options, waited, is_named, caplog):
    """Any other value is logged, and the delay is half a second."""
    times: list[float] = []

    async def scenario(world):
        async def process(_raw):
            times.append(world.handler.now())
            if len(times) == 1:
                raise NackMessage(**options)

        record = world.deliver(process)
        await asyncio.wait({record.task})
        assert record.task.exception() is None
        assert times[1] - times[0] == pytest.approx(waited)
        assert await world.committed() == 1

    play(scenario)
    assert ("NackMessage takes nothing but delay=<seconds>" in caplog.text) == is_named


@pytest.mark.parametrize("problem", [LookupError("a bug"), asyncio.CancelledError("a producer's")], ids=repr)
def test_a_failure_that_can_not_be_dealt_with_halts_its_partition(problem, caplog):
    """For any error of the policy, so that health names the partition."""

    async def break_down(_record, _error):
        raise problem

    async def scenario(world):
        world.source.dead_letter = break_down
        record = world.deliver(fail)
        await asyncio.wait({record.task})
        assert record.task.exception() is None
        (halt,) = world.source.halts
        assert halt.startswith("orders[0]@0: its failure policy has failed: ")
        assert type(problem).__name__ in halt
        assert world.source.in_flight == world.handler.slots.reserved == 0
        assert await world.committed() == 0

    play(scenario, on_failure=FailurePolicy(then=DEAD))
    assert "The failure policy of orders[0]@0 has failed" in caplog.text


def test_the_logs_name_record_attempt_and_error(caplog):
    """A line for each retry, and one when the record is given up."""

    async def scenario(world):
        await asyncio.wait({world.deliver(fail).task})

    play(scenario, on_failure=FailurePolicy(max_attempts=3, first_backoff_sec=0))
    assert "orders[0]@0 failed at attempt 1 of 3, again in 0.00 s: ConnectionError: down" in caplog.messages
    assert "orders[0]@0 failed at attempt 2 of 3, again in 0.00 s: ConnectionError: down" in caplog.messages
    assert "orders[0]@0 is given up after 3 attempts, as if it were done: ConnectionError: down" in caplog.messages
    assert len(caplog.messages) == 3


def test_the_settings_of_the_subscriber_come_before_those_of_the_handler():
    """A subscriber's policy takes precedence."""

    async def scenario(world):
        world.source.settings = dataclasses.replace(world.handler.settings, on_failure=FailurePolicy(then="halt"))
        record = world.deliver(fail)
        await asyncio.wait({record.task})
        assert record.attempt == 1
        assert world.source.halts == ["orders[0]@0: failed at attempt 1: ConnectionError: down"]

    play(scenario, on_failure=FailurePolicy(max_attempts=3, then=DEAD))


def test_the_report_says_who_retries_and_where_a_partition_stands_still():
    """The report has the counts, the attempt of the oldest record, and the offset of the halt."""

    async def deny(_raw):
        raise PermissionError

    async def scenario(world):
        world.deliver(ask_again)
        world.deliver(deny, partition=1)
        world.deliver(quick, partition=1)
        await asyncio.sleep(1)
        report = get_kafka_handler_report(KafkaBroker(logger=None).context)
        assert (report.in_flight, report.waiting, report.retrying) == (1, 1, 1)
        retrying, halted = report.partitions
        assert (retrying.oldest_unfinished_offset, retrying.oldest_unfinished_attempt) == (0, 1)
        assert retrying.oldest_unfinished_is_retrying
        assert "in _wait" in (retrying.oldest_unfinished_at or "")
        assert (retrying.halted_at, halted.halted_at) == (None, 0)
        assert not halted.oldest_unfinished_is_retrying

    play(scenario, on_failure=FailurePolicy(max_attempts=0, never_retry=PermissionError, then="halt"))


@pytest.mark.parametrize(
    "error", [ConnectionError, lambda: NackMessage(delay=1), HandlerTimeoutError], ids=["failed", "nacked", "timed out"]
)
@pytest.mark.parametrize("then", ["commit", "halt", DEAD], ids=str)
def test_a_failed_record_is_freed_without_the_garbage_collector(error, then, caplog):
    """Retried, given up, dead or halted: no reference cycle keeps the record or its handler's objects alive."""
    # What is logged is kept by pytest.
    caplog.set_level(logging.CRITICAL, "faststream_concurrent_kafka")

    class Held:
        """An object on the stack of a handler."""

    async def process(_raw, _held=None):
        _held = Held()
        await asyncio.sleep(0)
        raise error()

    async def forget(_record, _error):
        await asyncio.sleep(0)

    async def scenario(world):
        world.source.dead_letter = forget
        gc.collect()
        gc.disable()
        try:
            first = world.deliver(process, key=b"a").task
            for key in (b"a", b"a", b"b", None):
                world.deliver(process, key=key)
            await asyncio.wait({first})
            del first
            await asyncio.sleep(1000)
            assert len(world.handler.records) == 0
            kept = [each for each in gc.get_objects() if isinstance(each, Record | Held)]
            assert not [each for each in kept if isinstance(each, Held) or each.source is world.source]
        finally:
            gc.enable()

    play(scenario, on_failure=FailurePolicy(max_attempts=3, then=then), ordering="key")
