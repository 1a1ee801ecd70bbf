"""Task factories that start a task before `create_task` returns, and others that take no options."""

import asyncio
import sys

import pytest
from faststream.exceptions import NackMessage

from faststream_concurrent_kafka import DeadLetter, FailurePolicy
from tests.eager import eager_factory_without_options, eager_task_factory
from tests.unit.world import play


def plain_factory_without_options(loop, coro):
    return asyncio.Task(coro, loop=loop)


factories = pytest.mark.parametrize(
    "factory",
    [eager_task_factory, eager_factory_without_options, plain_factory_without_options],
    ids=["eager", "eager, without options", "plain, without options"],
)
orders = pytest.mark.parametrize("ordering", ["unordered", "key", "partition"])


def test_the_factory_of_these_tests_is_eager():
    """A task that never suspends is done when `create_task` returns, and has seen itself as `current_task()`."""

    async def scenario(_world):
        asyncio.get_running_loop().set_task_factory(eager_task_factory)

        async def itself():
            return asyncio.current_task()

        async def suspend():
            await asyncio.sleep(0)

        me = asyncio.current_task()
        task = asyncio.create_task(itself())
        assert task.done()
        assert task.result() is task
        assert asyncio.current_task() is me
        assert not asyncio.create_task(suspend()).done()
        await asyncio.sleep(0)

    play(scenario)


@factories
@orders
def test_records_that_never_suspend_leave_nothing_behind(ordering, factory):
    """Slots, order and offsets are as with any other factory, with any number of records behind one key."""
    many = sys.getrecursionlimit() + 100
    handled: list[int] = []

    async def gate(_raw):
        await asyncio.sleep(1)

    async def process(raw):
        handled.append(raw.offset)
        if raw.offset % 7 == 0 and handled.count(raw.offset) == 1:
            raise NackMessage(delay=0)

    async def scenario(world):
        asyncio.get_running_loop().set_task_factory(factory)
        world.deliver(gate, key=b"k")
        for _ in range(many):
            world.deliver(process, key=b"k")
        await world.until(lambda: not len(world.handler.records))
        assert world.source.in_flight == world.handler.slots.reserved == 0
        assert sorted(set(handled)) == list(range(1, many + 1))
        if ordering != "unordered":
            assert handled == sorted(handled)
        assert await world.committed() == many + 1
        # Its partitions are committed by time as well, and its next records too.
        world.deliver(process, key=b"k")
        await world.until(lambda: world.consumer.committed and max(world.consumer.committed.values()) == many + 2)
        assert get_kafka_handler_report_is_healthy(world)

    play(scenario, ordering=ordering, concurrency_limit=3)


def get_kafka_handler_report_is_healthy(world):
    return not world.handler.problems()


@factories
def test_a_commit_that_is_answered_at_once_is_followed_by_the_next(factory):
    """The request has ended before `create_task` returns it."""

    async def process(_raw):
        pass

    async def scenario(world):
        asyncio.get_running_loop().set_task_factory(factory)
        for expected in range(1, 6):
            world.deliver(process)
            await world.until(lambda: world.consumer.committed)
            await world.until(lambda wanted=expected: max(world.consumer.committed.values()) == wanted)

    play(scenario, commit_batch_timeout_sec=0.5)


@factories
@pytest.mark.parametrize("then", ["halt", DeadLetter("dead")], ids=str)
def test_failures_are_dealt_with_and_drains_and_cancellations_hold(factory, then):
    """Also in the first step of a task."""

    async def fail(_raw):
        raise ConnectionError

    async def hang(_raw):
        await asyncio.sleep(1000)

    async def scenario(world):
        asyncio.get_running_loop().set_task_factory(factory)
        world.deliver(fail)
        hanging = world.deliver(hang, partition=1)
        await asyncio.sleep(1)
        assert (len(world.source.halts), len(world.source.dead_letters)) == ((1, 0) if then == "halt" else (0, 1))
        assert not await world.handler.records.drain(lambda _: True, timeout_sec=2)
        assert await world.handler.runner.cancel(lambda _: True) == [hanging]
        assert hanging.task.done()
        assert world.source.in_flight == world.handler.slots.reserved == len(world.handler.records) == 0
        assert await world.handler.records.drain(lambda _: True, timeout_sec=2)

    play(scenario, on_failure=FailurePolicy(then=then), ordering="key")
