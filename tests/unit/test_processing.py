"""The handler in virtual time: slots, outcomes, cancellation at every await, draining, the singleton (I29, I32)."""

import asyncio
import contextlib
import gc
import logging
from collections import Counter

import pytest
from faststream.exceptions import (
    AckMessage,
    NackMessage,
    RejectMessage,
    SkipMessage,
    StopApplication,
    StopConsume,
)

from faststream_concurrent_kafka import KafkaConcurrentHandler, SetupError
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.world import play


def test_the_limit_is_exact_and_reached():
    """At most three passes run at once, and three whenever there is work."""
    running, peaks = 0, []

    async def process(_raw):
        nonlocal running
        running += 1
        peaks.append(running)
        await asyncio.sleep(1)
        running -= 1

    async def scenario(world):
        records = [world.handle(process) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert (len(world.handler.records), world.handler.records.waiting) == (10, 7)
        await asyncio.wait({record.task for record in records})
        assert max(peaks) == 3
        assert await world.committed() == 10

    play(scenario, concurrency_limit=3)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a handler's"),
        TimeoutError(),
        AckMessage(),
        RejectMessage(),
        SkipMessage(),
        asyncio.CancelledError("raised by the handler"),
        StopConsume(),
        StopApplication(),
        SystemExit(3),
    ],
    ids=repr,
)
def test_a_pass_that_raises_is_done(error):
    """By the default policy; exceptions that stop something too, or a restart would stop at the same record."""

    async def process(_raw):
        raise error

    async def scenario(world):
        await asyncio.wait({world.handle(process).task})
        assert await world.committed() == 1
        await asyncio.sleep(0.1)
        assert world.source.stops == isinstance(error, StopConsume | SystemExit)
        assert world.source.application_stops == isinstance(error, SystemExit)

    play(scenario)


def test_a_record_that_was_not_acknowledged_is_handled_again_and_holds_no_slot_meanwhile():
    """It is handled again after half a second, in this process; meanwhile other records have the slot."""
    passes: list[str] = []

    async def nack_once(_raw):
        passes.append("nack")
        if len(passes) == 1:
            raise NackMessage

    async def other(_raw):
        passes.append("other")

    async def scenario(world):
        first = world.handle(nack_once)
        await asyncio.sleep(0.1)
        await asyncio.wait({world.handle(other).task})
        assert not first.task.done()
        assert await world.committed() == 0
        await asyncio.wait({first.task})
        assert passes == ["nack", "other", "nack"]
        assert await world.committed() == 2

    play(scenario, concurrency_limit=1)


def test_a_drain_lets_a_record_try_once_more_if_that_begins_in_time():
    """A record that fails again is left to the next owner; the drain does not wait for an attempt that is due later."""
    passes = Counter()

    async def always_nack(raw):
        passes[raw] += 1
        await asyncio.sleep(1)
        raise NackMessage(delay=60) if raw == 4 else NackMessage

    async def scenario(world):
        records = [world.handle(always_nack) for _ in range(4)]
        await asyncio.sleep(1.2)
        began = world.handler.now()
        assert await world.handler.records.drain(lambda _: True, timeout_sec=10)
        assert world.handler.now() - began == pytest.approx(1.3)
        assert all(record.task.done() for record in records)
        assert passes == {1: 2, 2: 2, 3: 2, 4: 1}
        assert await world.committed() == 0

    play(scenario)


@pytest.mark.parametrize("step", range(8))
def test_a_record_can_be_cancelled_at_every_await(step):
    """Waiting for a slot, before the first step, in the handler, in its backoff: settled once, undone, no slot lost."""

    async def slow(_raw):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise NackMessage

    async def quick(_raw):
        pass

    async def scenario(world):
        blocker = world.handle(slow) if step % 2 else None
        record = world.handle(slow)
        for _ in range(step):
            await asyncio.sleep(0)
        await world.handler.runner.cancel(lambda each: each is record)
        assert record.task.done()
        if blocker is not None:
            await world.handler.runner.cancel(lambda each: each is blocker)
        assert len(world.handler.records) == 0
        assert not world.handler.slots.is_full
        assert await world.committed() == 0
        await asyncio.wait({world.handle(quick).task})
        assert len(world.handler.records) == 0

    play(scenario, concurrency_limit=1)


@pytest.mark.parametrize("reaction", ["returns", "raises another error"])
def test_a_handler_that_reacts_to_its_cancellation_is_not_done(reaction):
    """Its work may be unfinished, so the record is delivered again."""

    async def process(_raw):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            if reaction != "returns":
                raise ValueError from None

    async def scenario(world):
        record = world.handle(process)
        await asyncio.sleep(1)
        assert await world.handler.runner.cancel(lambda _: True) == [record]
        assert record.task.done()
        assert await world.committed() == 0

    play(scenario)


def test_a_handler_that_swallows_its_cancellation_is_named_and_given_up(caplog):
    """A stop waits one second for it, and gives it up."""

    async def process(_raw):
        for _ in range(20):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(100)

    async def quick(_raw):
        await asyncio.sleep(0)

    async def scenario(world):
        record = world.handle(process)
        await asyncio.sleep(1)
        began = world.handler.now()
        await world.handler.runner.cancel(lambda _: True)
        assert world.handler.now() - began <= 1.3
        assert "goes on: orders[0]@0" in caplog.text
        assert len(world.handler.records) == 0
        while not record.task.done():
            record.task.cancel()
            await asyncio.sleep(0)
        assert not world.handler.slots.is_full
        world.handle(quick)
        assert world.handler.slots.is_full

    play(scenario, concurrency_limit=1)


def test_a_drain_is_bounded():
    """Handlers that take longer still run afterwards."""

    async def process(_raw):
        await asyncio.sleep(10)

    async def scenario(world):
        record = world.handle(process)
        assert not await world.handler.records.drain(lambda _: True, timeout_sec=3)
        assert world.handler.now() < 5
        assert not record.task.done()
        assert await world.handler.records.drain(lambda _: True, timeout_sec=8)
        assert await world.committed() == 1

    play(scenario)


def test_a_task_that_other_code_cancels_halts_its_partition():
    """The record pins its partition, so health names it, and no record overtakes it."""

    async def process(_raw):
        await asyncio.sleep(10)

    async def scenario(world):
        record = world.handle(process)
        await asyncio.sleep(1)
        record.task.cancel()
        await asyncio.wait({record.task})
        assert await world.committed() == 0
        assert world.source.halts == ["orders[0]@0: its task was cancelled by other code"]

    play(scenario)


def test_who_waits_for_a_slot_can_be_cancelled_and_is_woken_in_time():
    """A cancelled fetcher leaves nothing behind; the others are woken by a free slot, or by their timeout."""

    async def process(_raw):
        await asyncio.sleep(2)

    async def scenario(world):
        record = world.handle(process)
        assert world.handler.slots.is_full
        began = world.handler.now()
        waiting = [asyncio.create_task(world.handler.slots.wait_for_change(60)) for _ in range(3)]
        await asyncio.sleep(1)
        waiting[0].cancel()
        await asyncio.wait({record.task, *waiting})
        assert world.handler.now() - began == pytest.approx(2)
        assert not world.handler.slots.is_full
        await world.handler.slots.wait_for_change(5)
        assert world.handler.now() - began == pytest.approx(7)

    play(scenario, concurrency_limit=1)


def test_a_handled_record_is_freed_without_the_garbage_collector():
    """There are no reference cycles: the garbage collector is the largest cost of many records in flight."""

    async def process(_raw):
        await asyncio.sleep(0)

    async def nack_once(_raw, seen=set()):  # noqa: B006 - remembers over both passes
        if _raw not in seen:
            seen.add(_raw)
            raise NackMessage

    async def scenario(world):
        gc.collect()
        gc.disable()
        try:
            tasks = {world.handle(each).task for each in (process, nack_once) for _ in range(10)}
            await asyncio.wait(tasks)
            tasks.clear()
            await asyncio.sleep(2)
            kept = [each for each in gc.get_objects() if isinstance(each, Record) and each.source is world.source]
            assert not kept
        finally:
            gc.enable()

    play(scenario)


def test_without_limit_and_commits_memory_is_bounded_by_the_window():
    """`max_uncommitted_tasks` limits the records of the subscriber."""

    async def process(_raw):
        await asyncio.sleep(1)

    async def scenario(world):
        for _ in range(5):
            assert not world.handler.slots.is_full
            world.handler.runner.submit(Record(0, process, source=world.source))
        assert world.handler.slots.is_full

    play(scenario, concurrency_limit=0, enable_batch_commit=False, max_uncommitted_tasks=5)


def test_the_singleton_takes_the_same_settings_again_and_refuses_others():
    """The error names the differing settings, and what to do."""

    async def scenario(world):
        assert KafkaConcurrentHandler(concurrency_limit=4) is world.handler
        world.handler.start()
        with pytest.raises(SetupError, match=r"concurrency_limit=4 \(now 5\).*stop_concurrent_processing"):
            KafkaConcurrentHandler(concurrency_limit=5)
        assert KafkaConcurrentHandler.running() is world.handler

    play(scenario, concurrency_limit=4)
    assert KafkaConcurrentHandler.running() is None


def test_it_runs_in_one_event_loop_at_a_time():
    """A start in a second loop, while the first is open, is an error."""
    loop = asyncio.new_event_loop()

    async def start():
        KafkaConcurrentHandler(concurrency_limit=100).start()

    loop.run_until_complete(start())
    with pytest.raises(SetupError, match="another event loop"):
        run_virtual(start())
    handler = KafkaConcurrentHandler()
    loop.run_until_complete(handler.stop())
    loop.close()


def test_the_observer_names_trouble_once_and_its_end(caplog):
    """The same problem is not logged at every sample."""

    async def scenario(world):
        world.source.trouble = ["the consume loop of source has ended"]
        await asyncio.sleep(5)
        assert world.handler.problems() == world.source.trouble
        world.source.trouble = []
        await asyncio.sleep(2)

    with caplog.at_level(logging.WARNING):
        play(scenario)
    assert [message for message in caplog.messages if "ealthy" in message] == [
        "Unhealthy: the consume loop of source has ended",
        "Healthy again",
    ]


def test_a_stop_is_shared_and_goes_on_when_its_caller_is_cancelled():
    """Two callers share one stop, which goes on when one of them is cancelled."""

    async def process(_raw):
        await asyncio.sleep(3)

    async def scenario(world):
        world.handle(process)
        callers = [asyncio.create_task(world.handler.stop()) for _ in range(2)]
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.wait(callers)
        assert callers[0].cancelled()
        assert not world.handler.is_running
        assert world.source.stops == 1

    play(scenario)


def test_slots_that_are_not_released_are_worth_one_warning_that_says_where(caplog):
    """After `stall_timeout_sec` in which no record ended; health stays green, because long handlers are no fault."""

    async def scenario(world):
        go_on = asyncio.Event()

        async def hang(_raw):
            await go_on.wait()

        async def take_long(_raw):
            await asyncio.sleep(50)

        for _ in range(20):
            world.handle(take_long)
        await asyncio.sleep(510)
        assert not world.handler.records
        assert not caplog.messages
        for _ in range(5):
            world.handle(hang)
        await asyncio.sleep(58)
        assert not caplog.messages
        await asyncio.sleep(200)
        (message,) = caplog.messages
        assert message.startswith(
            "All 2 slots are taken, and none was released for 60 s. Of the records, 3 are waiting for a slot, 2 are in "
        )
        assert "test_processing.py:" in message
        assert "in hang" in message
        assert world.handler.problems() == []
        go_on.set()

    with caplog.at_level(logging.WARNING, "faststream_concurrent_kafka"):
        play(scenario, concurrency_limit=2)
