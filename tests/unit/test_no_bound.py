"""`max_uncommitted_tasks=None`: uncommitted records never stop the fetching."""

import asyncio

import pytest
from aiokafka import TopicPartition

from tests.unit.attached import TOPIC, play


@pytest.mark.parametrize("most", [None, 50])
def test_a_stuck_record_holds_up_nothing_behind_it_without_a_bound(most):
    """With a bound its partition is paused; in both cases no commit passes the record."""
    count, seen, free = 500, [], asyncio.Event()

    async def handle(number: int):
        if number == 0:
            await free.wait()
        seen.append(number)

    async def scenario(world):
        subscriber = await world.subscriber(handle)
        world.send(count)
        await world.until(lambda: len(seen) == (count - 1 if most is None else most - 1))
        await asyncio.sleep(5)
        assert len(seen) == (count - 1 if most is None else most - 1)
        assert bool(subscriber.consumer.paused()) is (most is not None)
        assert subscriber.consumer.assignment() == {TopicPartition(TOPIC, 0)}
        assert world.committed() == 0
        free.set()
        await world.until(lambda: world.committed() == count)

    play(scenario, max_uncommitted_tasks=most, concurrency_limit=10)
