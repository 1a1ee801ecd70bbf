"""Every end of a handler has an outcome: an exception of any type is a failure, and a stopped partition is named."""

import asyncio
import logging

import pytest
from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import DeadLetter, FailurePolicy, get_kafka_handler_report
from tests.unit.world import play


DEAD = DeadLetter("dead")


class PanicError(BaseException):
    """Like `pyo3_runtime.PanicException`, of a Rust extension."""


KINDS = [
    lambda: PanicError("index out of bounds"),
    lambda: BaseExceptionGroup("several", [PanicError("one"), ValueError("two")]),
    lambda: GeneratorExit("the handler's own"),
    lambda: asyncio.CancelledError("the handler's own"),
    lambda: pytest.fail.Exception("of a test"),
    lambda: ValueError("an ordinary one"),
]
NAMES = ["panic", "group", "generator exit", "leaked cancellation", "pytest", "ordinary"]
kinds = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


async def quick(_raw):
    await asyncio.sleep(0)


def problems():
    return get_kafka_handler_report(KafkaBroker(logger=None).context).problems


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("then", ["commit", "halt", DEAD], ids=str)
@kinds
def test_whatever_a_handler_raises_is_a_failure_by_policy(kind, then, most):
    """Retried, given up, halted or dead: the slot is released, the key goes on, and health names a halted partition."""

    async def process(_raw):
        await asyncio.sleep(0)
        raise kind()

    async def scenario(world):
        record = world.deliver(process, key=b"k")
        successor = world.deliver(quick, key=b"k")
        await asyncio.sleep(100)
        assert record.task.exception() is None
        assert record.attempt == most
        assert world.source.in_flight == world.handler.slots.reserved == len(world.handler.records) == 0
        assert len(world.source.halts) == (then == "halt")
        assert len(world.source.dead_letters) == (then is DEAD)
        assert successor.attempt == (then != "halt")
        assert await world.committed() == (0 if then == "halt" else 2)
        assert [each for each in problems() if each.startswith("orders[0]@0 has halted")] == (
            list(problems()) if then == "halt" else []
        )
        assert bool(problems()) == (then == "halt")

    play(scenario, on_failure=FailurePolicy(max_attempts=most, then=then), ordering="key", concurrency_limit=1)


@kinds
def test_policies_take_any_type_of_exception(kind):
    """`retry_on` and `never_retry` take any `BaseException` type."""

    async def process(_raw):
        raise kind()

    async def attempts(world, policy):
        world.source.settings = type(world.source.settings)(on_failure=policy)
        record = world.deliver(process)
        await asyncio.wait({record.task})
        return record.attempt

    async def scenario(world):
        type_ = type(kind())
        assert await attempts(world, FailurePolicy(max_attempts=2, retry_on=type_)) == 2
        assert await attempts(world, FailurePolicy(max_attempts=2, retry_on=OSError)) == 1
        assert await attempts(world, FailurePolicy(max_attempts=2, never_retry=type_)) == 1

    play(scenario)


@kinds
def test_a_retry_on_that_raises_whatever_has_the_record_tried_again(kind, caplog):
    """The mistake is in the policy, not in the record."""

    def mistaken(_error, _attempt):
        raise kind()

    async def process(_raw):
        raise ConnectionError

    async def scenario(world):
        record = world.deliver(process)
        await asyncio.wait({record.task})
        assert record.attempt == 3
        assert await world.committed() == 1

    play(scenario, on_failure=FailurePolicy(max_attempts=3, retry_on=mistaken))
    assert caplog.text.count("retry_on has failed") == 2


@kinds
def test_a_dead_letter_that_fails_with_whatever_halts_its_partition(kind):
    """Health names the partition."""

    async def process(_raw):
        raise ConnectionError

    async def break_down(_record, _error):
        await asyncio.sleep(0)
        raise kind()

    async def scenario(world):
        world.source.dead_letter = break_down
        record = world.deliver(process)
        await asyncio.wait({record.task})
        assert record.task.exception() is None
        assert len(world.source.halts) == 1
        assert world.handler.slots.reserved == 0
        assert problems()[0].startswith("orders[0]@0 has halted its partition: ")

    play(scenario, on_failure=FailurePolicy(then=DEAD))


@pytest.mark.parametrize("is_grouped", [False, True])
def test_an_interrupt_goes_on_and_its_record_is_left_undone(is_grouped):
    """Ctrl-C in a handler ends the run of the event loop, and the record is not committed."""
    tasks = []

    async def process(_raw):
        await asyncio.sleep(0)
        if is_grouped:
            raise BaseExceptionGroup("of a task group", [KeyboardInterrupt()])
        raise KeyboardInterrupt

    async def scenario(world):
        record = world.deliver(process)
        tasks.append(record.task)
        await asyncio.wait({record.task}, timeout=1)
        assert isinstance(record.task.exception(), BaseExceptionGroup)
        assert await world.committed() == 0
        assert problems() == ("orders[0]@0 has halted its partition: it was left undone. A restart tries it again.",)

    if is_grouped:
        play(scenario)
        return
    with pytest.raises(KeyboardInterrupt):
        play(scenario)
    # Retrieved, or asyncio would log it during a later test.
    assert isinstance(tasks[0].exception(), KeyboardInterrupt)


def test_a_partition_that_has_stopped_is_named_whatever_has_stopped_it():
    """Health reads the ledgers, so it finds also a record without a source that was cancelled before its first step."""

    async def scenario(world):
        record = world.deliver(quick, partition=1)
        record.source = None
        world.source.in_flight -= 1
        record.task.cancel()
        await world.until(problems)
        assert problems() == ("orders[1]@0 has halted its partition: it was left undone. A restart tries it again.",)
        assert world.handler.slots.reserved == 0

    play(scenario)


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("is_silent", [True, False], ids=["FastStream is silent", "FastStream logs"])
def test_a_record_that_is_given_up_is_logged_once_with_its_traceback(is_silent, most, caplog):
    """The library logs the traceback if FastStream has no logger, and repeats none that FastStream has logged."""

    async def process(_raw):
        raise PanicError("boom")

    async def scenario(world):
        world.source.logs = not is_silent
        await asyncio.wait({world.deliver(process).task})

    play(scenario, on_failure=FailurePolicy(max_attempts=most))
    errors = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert [each.exc_info is not None for each in errors] == ([True] if is_silent else [False] * (most - 1))
    assert [each.getMessage() for each in errors] == [
        f"orders[0]@0 is given up after {most} attempt{'s' * (most > 1)}, as if it were done: PanicError: boom"
    ] * (is_silent or most > 1)
