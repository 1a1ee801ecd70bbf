"""What the process does on SIGUSR1: the ways in which a program stops its broker itself."""

import asyncio
from collections.abc import Awaitable, Callable

from faststream.kafka import KafkaBroker

from faststream_concurrent_kafka import stop_concurrent_processing


async def _broker_stop(broker: KafkaBroker) -> None:
    await broker.stop()


async def _twice_at_once(broker: KafkaBroker) -> None:
    await asyncio.gather(broker.stop(), broker.stop())


async def _twice(broker: KafkaBroker) -> None:
    await broker.stop()
    await broker.stop()


async def _cancelled_only(broker: KafkaBroker) -> None:
    stop = asyncio.create_task(broker.stop())
    # After a few turns of the event loop the stop waits for the handlers.
    for _ in range(5):
        await asyncio.sleep(0)
    stop.cancel()
    await asyncio.wait({stop})


async def _cancelled(broker: KafkaBroker) -> None:
    await _cancelled_only(broker)
    # The stop goes on: the call that ends concurrent processing awaits the rest of it.
    await stop_concurrent_processing(broker.context)


async def _processing_first(broker: KafkaBroker) -> None:
    await stop_concurrent_processing(broker.context)
    await broker.stop()


async def _processing_last(broker: KafkaBroker) -> None:
    await broker.stop()
    await stop_concurrent_processing(broker.context)
    await stop_concurrent_processing(broker.context)


REQUESTS: dict[str, Callable[[KafkaBroker], Awaitable[None]]] = {
    "broker.stop": _broker_stop,
    "broker.stop twice": _twice,
    "broker.stop twice at once": _twice_at_once,
    "broker.stop cancelled": _cancelled,
    "broker.stop cancelled, nothing else": _cancelled_only,
    "processing first": _processing_first,
    "processing last, twice": _processing_last,
}
