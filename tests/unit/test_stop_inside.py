"""A stop that a record's handler calls: it waits for all other records, and lets the calls of that record return."""

import asyncio

import anyio
import pytest

from faststream_concurrent_kafka import stop_concurrent_processing
from tests.unit.attached import play


async def plainly(stop):
    await stop()


async def in_a_task(stop):
    await asyncio.create_task(stop())


async def within_a_time_limit(stop):
    await asyncio.wait_for(stop(), 60)


async def gathered(stop):
    await asyncio.gather(stop(), asyncio.sleep(0))


async def shielded(stop):
    await asyncio.shield(stop())


async def waited_for(stop):
    await asyncio.wait({asyncio.create_task(stop())})


async def in_a_task_group(stop):
    async with asyncio.TaskGroup() as group:
        group.create_task(stop())


async def in_anyios_task_group(stop):
    async with anyio.create_task_group() as group:
        group.start_soon(stop)


async def in_a_task_that_is_awaited_later(stop):
    stopping = asyncio.create_task(stop())
    await asyncio.sleep(0.5)
    await stopping


async def within_all_of_these(stop):
    await in_a_task_group(lambda: gathered(lambda: shielded(lambda: within_a_time_limit(stop))))


WAYS = [
    plainly,
    in_a_task,
    within_a_time_limit,
    gathered,
    shielded,
    waited_for,
    in_a_task_group,
    in_anyios_task_group,
    in_a_task_that_is_awaited_later,
    within_all_of_these,
]


@pytest.mark.parametrize("what", ["subscriber", "broker", "processing"])
@pytest.mark.parametrize("way", WAYS)
def test_a_record_that_awaits_the_stop_gets_control_back_when_all_others_have_ended(way, what):
    """The rest of the stop waits for that record: everything is committed, nothing is cancelled, nothing is left."""
    ended: list[int] = []

    async def scenario(world):
        async def stop():
            match what:
                case "subscriber":
                    await subscriber.stop()
                case "broker":
                    await world.broker.stop()
                case _:
                    await stop_concurrent_processing(world.broker.context)

        async def handle(number: int):
            if number == 3:
                await way(stop)
                assert sorted(ended) == [0, 1, 2]
                assert world.members() == 1, "it leaves its group after this record"
            await asyncio.sleep(2)
            ended.append(number)

        world.send(4)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: len(ended) == 4)
        assert world.handler.now() < 6, "it waits for what there is to wait for"
        await world.until(lambda: world.members() == 0)
        assert world.committed() == 4

    play(scenario)


def test_a_task_that_a_record_has_started_and_does_not_await_waits_for_that_record_as_well():
    """The task has inherited the record's context, but no record awaits it, so it has to wait like any other."""
    ended, tasks = [], []

    async def scenario(world):
        async def stop():
            await subscriber.stop()
            ended.append("stopped")

        async def handle(number: int):
            if number == 1:
                tasks.append(asyncio.create_task(stop()))
            await asyncio.sleep(2 + number)
            ended.append(number)

        world.send(2)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: len(ended) == 3)
        assert ended == [0, 1, "stopped"]
        assert world.committed() == 2

    play(scenario)


def test_records_that_stop_each_others_subscribers_do_not_wait_for_each_other():
    """Neither two records of one subscriber, nor two that stop each other's."""
    ended = []

    async def scenario(world):
        async def handle(number: int):
            await others[number % 2].stop()
            ended.append(number)

        world.send(1, "orders")
        world.send(1, "bills")
        world.send(1, "orders")
        world.send(1, "bills")
        gate = asyncio.Event()

        async def gated(number: int):
            await gate.wait()
            await handle(number)

        first = await world.subscriber(gated, "orders")
        others = {1: first, 0: await world.subscriber(gated, "bills")}
        await world.until(lambda: world.handler.records.waiting == 0 and len(world.handler.records) == 4)
        gate.set()
        await world.until(lambda: len(ended) == 4, within_sec=5)
        await world.until(lambda: world.members("orders") + world.members("bills") == 0, within_sec=5)
        assert (world.committed("orders"), world.committed("bills")) == (2, 2)

    play(scenario, topics=["bills"])


def test_what_fails_after_it_has_awaited_its_own_stop_is_not_done(caplog):
    """What its handler uses may be closed: the record is delivered again, and one log line says so."""
    seen = []

    async def scenario(world):
        async def handle(number: int):
            seen.append(number)
            if number == 1 and seen.count(1) == 1:
                await world.broker.stop()
                raise RuntimeError("the producer is closed")

        world.send(2)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: world.members() == 0 and not world.broker.running)
        assert world.committed() == 1
        (line,) = [each for each in caplog.messages if "will be delivered again" in each]
        assert "orders[0]@1" in line
        assert "the producer is closed" in line
        await subscriber.start()
        await world.until(lambda: world.committed() == 2)
        assert seen == [0, 1, 1]

    play(scenario)


def test_handlers_that_outlast_the_deadline_do_not_take_the_stopping_record_with_them():
    """They are cancelled; the call of the stopping record returns, and that record is done."""
    ended = []

    async def scenario(world):
        async def handle(number: int):
            if number:
                await subscriber.stop()
                ended.append(world.handler.now())
            else:
                await asyncio.sleep(1000)

        world.send(2)
        subscriber = await world.subscriber(handle)
        began = world.handler.now()
        await world.until(lambda: world.members() == 0)
        assert ended == [pytest.approx(began + 3, abs=0.5)]
        assert world.committed() == 0

    play(scenario, shutdown_timeout_sec=3.0)


@pytest.mark.parametrize("turns", range(12))
def test_a_stop_goes_on_whenever_its_caller_is_cancelled(turns):
    """At each await: the stop still drains, commits and leaves the group, and no reference is kept."""
    ended = []

    async def scenario(world):
        async def handle(number: int):
            await asyncio.sleep(0)
            ended.append(number)

        world.send(3)
        subscriber = await world.subscriber(handle)
        await world.until(lambda: world.handler.records.waiting or ended)
        stopping = asyncio.create_task(world.broker.stop())
        for _ in range(turns):
            await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.wait({stopping})
        await subscriber.stop()
        assert world.committed() in {None, len(ended)}
        assert world.members() == 0
        assert not world.handler.sources

    play(scenario)
