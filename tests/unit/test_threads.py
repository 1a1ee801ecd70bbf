"""The number of threads for synchronous handlers; waits for one are reported, and do not count for time limits."""

import asyncio

import pytest
from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter
from hypothesis import given
from hypothesis import strategies as st

from faststream_concurrent_kafka import KafkaConcurrentHandler
from faststream_concurrent_kafka._record.record import Record
from faststream_concurrent_kafka._record.time_limit import TimeLimits
from faststream_concurrent_kafka.errors import HandlerTimeoutError
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.world import play


@pytest.mark.parametrize(("limit", "threads"), [(0, 40), (1, 41), (100, 140), (5000, 5040)])
def test_there_is_a_thread_for_each_slot_and_room_for_look_ups(limit, threads):
    """From the start to the stop. Without a concurrency limit the number stays."""

    async def main():
        limiter = current_default_thread_limiter()
        handler = KafkaConcurrentHandler(concurrency_limit=limit)
        handler.start()
        handler.start()
        assert limiter.total_tokens == threads
        await handler.stop()
        assert limiter.total_tokens == 40
        assert type(limiter) is type(CapacityLimiter(1))

    run_virtual(main())


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_limit_that_the_application_has_set_stays(when):
    """Set before the start, or between start and stop."""

    async def main():
        limiter = current_default_thread_limiter()
        if when == "before":
            limiter.total_tokens = 7
        handler = KafkaConcurrentHandler(concurrency_limit=100)
        handler.start()
        limiter.total_tokens = 7
        await handler.stop()
        assert limiter.total_tokens == 7

    run_virtual(main())


async def in_a_thread(sec=10.0):
    """Occupy a thread, as anyio does."""
    async with current_default_thread_limiter():
        await asyncio.sleep(sec)


def test_who_waits_for_a_thread_is_counted_as_waiting():
    """Other records go on; the wait counts from the moment when no thread is free until the record has one."""

    async def scenario(world):
        current_default_thread_limiter().total_tokens = 2

        async def process(_raw):
            await in_a_thread()
            await asyncio.sleep(5)

        for _ in range(5):
            world.handle(process)
        seen = []
        for _ in range(5):
            await asyncio.sleep(7.2)
            seen.append((len(world.handler.records), world.handler.records.waiting))
        assert seen == [(5, 3), (5, 1), (3, 0), (1, 0), (0, 0)]

    play(scenario)


def test_a_wait_that_is_cancelled_is_over():
    """Cancelled by a stop, or by the handler; the thread goes to the next record."""

    async def scenario(world):
        current_default_thread_limiter().total_tokens = 1
        outcomes = []

        async def process(_raw):
            try:
                async with asyncio.timeout(3):
                    await in_a_thread(1000)
            except TimeoutError:
                outcomes.append(world.handler.records.waiting)

        for _ in range(3):
            world.handle(process)
        await asyncio.sleep(2)
        assert world.handler.records.waiting == 2
        await world.until(lambda: len(outcomes) == 3)
        assert outcomes[-1] == 0
        assert current_default_thread_limiter().borrowed_tokens == 0

    play(scenario)


def test_what_a_handler_does_in_threads_beside_itself_is_not_its_wait():
    """The handler itself does not wait, so its time counts."""

    async def scenario(world):
        current_default_thread_limiter().total_tokens = 1

        async def process(_raw):
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(in_a_thread())
                await asyncio.sleep(5)

        world.handle(process)
        await asyncio.sleep(7)
        assert world.handler.records.waiting == 0

    play(scenario)


LIMIT_SEC = 10.5
PHASES = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=8)


@given(phases=PHASES)
def test_only_what_a_handler_runs_counts_against_its_limit(phases):
    """It waits, runs, and waits again; it is cancelled exactly when its running time reaches the limit."""
    expected_at, ran = 0.0, 0.0
    for waits, sec in phases:
        left = sec if waits else min(sec, LIMIT_SEC - ran)
        expected_at += left
        ran += 0 if waits else left
        if not waits and left < sec:
            break
    is_over = sum(sec for waits, sec in phases if not waits) > LIMIT_SEC

    async def main():
        loop, record = asyncio.get_running_loop(), Record(0, never)

        async def handle():
            for waits, sec in phases:
                if waits:
                    record.begin_to_wait()
                await asyncio.sleep(sec)
                if waits:
                    record.go_on()

        if is_over:
            with pytest.raises(HandlerTimeoutError):
                await TimeLimits().run(handle, LIMIT_SEC, record)
        else:
            await TimeLimits().run(handle, LIMIT_SEC, record)
        assert record.limit is None
        assert loop.time() == pytest.approx(expected_at, abs=0.01)

    run_virtual(main())


async def never(raw):
    raise AssertionError(raw)
