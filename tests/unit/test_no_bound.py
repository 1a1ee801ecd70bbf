"""`max_uncommitted_tasks=None`: nothing that the broker has waits for what is not committed."""

import asyncio

import pytest
from aiokafka import TopicPartition

from tests.unit.attached import TOPIC, play


@pytest.mark.parametrize("most", [None, 50])
def test_a_stuck_record_holds_up_nothing_behind_it_without_a_bound(most):
    """With one, its partition is paused; and nothing past the record is committed in either case."""
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
