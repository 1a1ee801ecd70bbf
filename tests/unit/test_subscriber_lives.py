"""Subscribers that are stopped, dropped, and started again, also by their own records."""

import asyncio
import gc
import weakref

import pytest

from faststream_concurrent_kafka import is_kafka_handler_healthy
from tests.unit.attached import play


@pytest.mark.parametrize("life", ["declared", "started", "restarted"])
def test_a_subscriber_that_was_dropped_is_let_go_of(life):
    """FastStream keeps no reference to a subscriber that is not persistent, and neither does the library."""

    async def live(world):
        async def handle(_number: int):
            pass

        world.send(3)
        subscriber = await world.subscriber(handle, start=life != "declared", persistent=False)
        if life != "declared":
            await world.until(lambda: world.committed() == 3)
            await subscriber.stop()
        if life == "restarted":
            await subscriber.start()
            await subscriber.stop()
        return weakref.ref(subscriber)

    async def scenario(world):
        dropped = await live(world)
        world.consumers.clear()
        # The fake broker drops its references to waiting consumers at the next record.
        world.send(1)
        await asyncio.sleep(2)
        gc.collect()
        assert dropped() is None
        assert not world.handler.attached

    play(scenario)


def test_a_subscriber_that_is_stopped_and_started_again_is_concurrent_again():
    """It goes on at its committed offset, and a stop of the handler stops it."""
    seen, gate = [], asyncio.Event()

    async def scenario(world):
        async def handle(number: int):
            seen.append(number)
            await gate.wait()

        subscriber = await world.subscriber(handle)
        for life in range(3):
            gate.clear()
            world.send(5)
            await world.until(lambda: world.handler.records.waiting == 0 and len(seen) == 5 * (life + 1))  # noqa: B023
            gate.set()
            await subscriber.stop()
            assert world.members() == 0
            assert world.committed() == 5 * (life + 1)
            assert not world.handler.sources
            await subscriber.start()
        assert world.members() == 1
        await world.handler.stop()
        assert world.members() == 0
        assert sorted(seen) == list(range(15))

    play(scenario)


@pytest.mark.parametrize("how", ["await", "task"])
def test_a_record_may_start_its_own_subscriber_again(how):
    """Each record is handled once, also this one; its earlier consumer has left the group."""
    seen, tasks = [], []

    async def scenario(world):
        async def restart():
            await subscriber.stop()
            await subscriber.start()

        async def handle(number: int):
            await asyncio.sleep(0.2)
            if number == 3 and number not in seen:
                if how == "await":
                    await restart()
                else:
                    tasks.append(asyncio.create_task(restart()))
            seen.append(number)

        world.send(6)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: len(world.consumers) == 2)
        world.send(4)
        await world.until(lambda: world.committed() == 10)
        assert sorted(seen) == list(range(10))
        assert world.members() == 1
        assert is_kafka_handler_healthy(world.broker.context)
        await asyncio.gather(*tasks)

    play(scenario)


def test_a_start_waits_for_the_stop_that_is_under_way():
    """Otherwise FastStream would replace the consumer that the stop still uses."""
    seen = []

    async def scenario(world):
        async def handle(number: int):
            await asyncio.sleep(2)
            seen.append(number)

        world.send(3)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: len(world.handler.records) == 3)
        await asyncio.gather(subscriber.stop(), subscriber.start())
        assert world.members() == 1
        world.send(3)
        await world.until(lambda: world.committed() == 6)
        assert sorted(seen) == list(range(6))

    play(scenario)


def test_a_stop_while_the_subscriber_starts_leaves_nothing_running():
    """Otherwise FastStream would start a loop without a consumer."""

    async def scenario(world):
        async def handle(_number: int):
            pass

        subscriber = await world.subscriber(handle, start=False)
        starting = asyncio.create_task(subscriber.start())
        await world.until(lambda: world.consumers)
        await subscriber.stop()
        await asyncio.wait({starting})
        assert not subscriber.running
        assert not subscriber.tasks
        assert world.members() == 0

    play(scenario)


def test_a_stop_of_everything_reaches_a_subscriber_that_a_record_starts_again():
    """No task is left, and the record is not cancelled during that start."""
    seen = []

    async def scenario(world):
        async def handle(number: int):
            await subscriber.stop()
            asyncio.get_running_loop().call_soon(begin_to_stop_everything)
            await subscriber.start()
            seen.append(number)

        everything = []

        def begin_to_stop_everything():
            everything.append(asyncio.create_task(world.handler.stop()))

        world.send(1)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: everything)
        await everything[0]
        assert seen == [0]
        assert world.members() == 0

    play(scenario)
