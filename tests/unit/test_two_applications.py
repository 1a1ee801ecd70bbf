"""Two brokers in one process share the handler, and each is stopped separately."""

import asyncio

import pytest

from faststream_concurrent_kafka import (
    KafkaConcurrentHandler,
    is_kafka_handler_healthy,
    stop_concurrent_processing,
)
from faststream_concurrent_kafka.testing import run_virtual
from tests.unit.attached import Attached


def handling(numbers):
    async def handle(number: int):
        await asyncio.sleep(1)
        numbers.append(number)

    return handle


@pytest.mark.parametrize("first_stops_its_broker", [False, True])
def test_what_one_stops_is_its_own(first_stops_its_broker):
    """The other broker goes on, healthy, until it is stopped as well, which ends the handler."""

    async def main():
        worlds, seen = (Attached(), Attached()), ([], [])
        subscribers = []
        for world, numbers in zip(worlds, seen, strict=True):
            await world.connect()
            subscribers.append(await world.subscriber(handling(numbers)))
            world.send(2)
        first, second = worlds
        assert first.handler is second.handler
        await first.until(lambda: len(first.handler.records) == 4)
        if first_stops_its_broker:
            await first.broker.stop()
        for _ in range(2):
            await stop_concurrent_processing(first.broker.context)
        assert first.committed() == 2
        assert (first.members(), second.members()) == (0, 1)
        assert not is_kafka_handler_healthy(first.broker.context)
        assert is_kafka_handler_healthy(second.broker.context)
        # It is not concurrent until it is initialised again.
        assert not {"get_msg", "consume_one", "start", "stop"} & subscribers[0].__dict__.keys()
        await asyncio.sleep(3)
        assert len(second.handler.attached) == 1

        second.send(2)
        await second.until(lambda: len(seen[1]) == 4)
        await stop_concurrent_processing(second.broker.context)
        assert second.committed() == 4
        assert KafkaConcurrentHandler.running() is None

    run_virtual(main())
